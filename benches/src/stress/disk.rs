//! What writes cost the disk, from the stores' own metrics and the kernel's account of the process.

use std::fs;

use prometheus::proto::MetricFamily;
use prometheus::Registry;
use serde::Serialize;

use super::table::{figure, grouped};

const BYTES: &str = "raftstore_log_written_bytes_total";
const BATCHES: &str = "raftstore_log_write_seconds";

/// What writes cost the disk; only where the log is on one. A write is there once for each store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Disk {
    /// Bytes of the log for each write and store.
    pub log_bytes_per_write: f64,
    /// Bytes that the process had written to the disk for each write and store, as the kernel counts them: whole
    /// pages, and old files that were rewritten.
    pub disk_bytes_per_write: f64,
    /// The same for each byte of a value.
    pub amplification: f64,
    /// Writes for each log batch of a store: so many share what a batch costs, its sync first of all.
    pub writes_per_batch: f64,
}

/// The counts at one moment, all stores together.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskSample {
    log_bytes: f64,
    batches: u64,
    disk_bytes: u64,
}

impl DiskSample {
    /// Samples now.
    pub fn take(registry: &Registry) -> Self {
        let families = registry.gather();
        let metrics = |name: &str| {
            let family = families.iter().find(|family| family.get_name() == name);
            family.map(MetricFamily::get_metric).unwrap_or_default()
        };
        Self {
            log_bytes: metrics(BYTES).iter().map(|it| it.get_counter().get_value()).sum(),
            batches: metrics(BATCHES).iter().map(|it| it.get_histogram().get_sample_count()).sum(),
            disk_bytes: written_bytes(&fs::read_to_string("/proc/self/io").unwrap_or_default()),
        }
    }

    /// What came since `before`, for so many writes of so many bytes, each on so many stores. `None` if there was
    /// nothing, as with a log in memory.
    pub fn since(&self, before: &Self, writes: u64, payload: u64, stores: u64) -> Option<Disk> {
        let batches = self.batches.saturating_sub(before.batches);
        if batches == 0 || writes == 0 {
            return None;
        }
        let copies = (writes * stores) as f64;
        let disk_bytes_per_write =
            self.disk_bytes.saturating_sub(before.disk_bytes) as f64 / copies;
        Some(Disk {
            log_bytes_per_write: (self.log_bytes - before.log_bytes) / copies,
            disk_bytes_per_write,
            amplification: disk_bytes_per_write / payload as f64,
            writes_per_batch: copies / batches as f64,
        })
    }
}

impl Disk {
    /// For below the table.
    pub fn line(&self, regions: u64) -> String {
        format!(
            "{} regions: a write takes {} B of each store's log, {} B of the disk ({} times its value); {} writes \
             a log batch",
            grouped(regions),
            figure(self.log_bytes_per_write),
            figure(self.disk_bytes_per_write),
            figure(self.amplification),
            figure(self.writes_per_batch)
        )
    }
}

/// As `/proc/self/io` tells it; 0 where it does not.
fn written_bytes(io: &str) -> u64 {
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_for_each_write_and_store() {
        let before = DiskSample { log_bytes: 1e6, batches: 10, disk_bytes: 1 << 20 };
        let now =
            DiskSample { log_bytes: 1e6 + 30e3, batches: 40, disk_bytes: (1 << 20) + 120_000 };
        let disk = now.since(&before, 100, 16, 3).expect("something was written");
        assert_eq!((disk.log_bytes_per_write, disk.disk_bytes_per_write), (100.0, 400.0));
        assert_eq!((disk.amplification, disk.writes_per_batch), (25.0, 10.0));
        assert!(disk.line(1_000).starts_with("1,000 regions: a write takes 100 B of"), "{disk:?}");
        assert_eq!(before.since(&before, 100, 16, 3), None);
    }

    #[test]
    fn the_kernels_account_is_read() {
        let io = "rchar: 7\nwchar: 8\nread_bytes: 9\nwrite_bytes: 4096\ncancelled_write_bytes: 1\n";
        assert_eq!(written_bytes(io), 4096);
        assert_eq!(written_bytes(""), 0);
    }
}
