//! The machine a run was made on, and what the process used of it.

use std::fs;
use std::time::Duration;

use rustix::time::{clock_gettime, ClockId};
use serde::Serialize;

/// The machine, as far as figures depend on it.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Cores this process may use.
    pub cores: usize,
    /// The name the processor gives itself.
    pub cpu_model: String,
    /// All memory of the machine, bytes.
    pub memory_bytes: u64,
    /// The release of the kernel.
    pub kernel: String,
}

impl Machine {
    /// Asks `/proc`; what is not found there reads `unknown` or 0.
    pub fn detect() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu_model: cpu_model(&read("/proc/cpuinfo")),
            memory_bytes: kilobytes(&read("/proc/meminfo"), "MemTotal:") << 10,
            kernel: or_unknown(read("/proc/sys/kernel/osrelease").trim()),
        }
    }

    /// One line for tables and charts.
    pub fn describe(&self) -> String {
        format!(
            "{} cores ({}), {:.0} GB, Linux {}",
            self.cores,
            self.cpu_model,
            self.memory_bytes as f64 / f64::from(1 << 30),
            self.kernel
        )
    }
}

/// What the process used up to a moment. Two samples make a difference.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessSample {
    /// CPU time of all threads, user and system.
    pub cpu_time: Duration,
    /// Memory resident, bytes.
    pub rss_bytes: u64,
    /// Memory the program asked jemalloc for and still holds, bytes; without jemalloc's own
    /// overhead. Meaningful only where jemalloc is the global allocator.
    pub allocated_bytes: u64,
}

impl ProcessSample {
    /// Samples now.
    pub fn take() -> Self {
        Self {
            cpu_time: process_cpu_time(),
            rss_bytes: kilobytes(
                &fs::read_to_string("/proc/self/status").unwrap_or_default(),
                "VmRSS:",
            ) << 10,
            allocated_bytes: allocated_bytes(),
        }
    }
}

/// CPU time of all threads of the process so far, user and system, exact to nanoseconds.
pub fn process_cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn allocated_bytes() -> u64 {
    // The figures of jemalloc stand still until its epoch moves.
    if tikv_jemalloc_ctl::epoch::advance().is_err() {
        return 0;
    }
    tikv_jemalloc_ctl::stats::allocated::read().map_or(0, |bytes| bytes as u64)
}

fn cpu_model(cpuinfo: &str) -> String {
    let model = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or("", |(_, model)| model.trim());
    or_unknown(model)
}

/// The number behind `key` in a file of `/proc` that counts in kilobytes.
fn kilobytes(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

fn or_unknown(text: &str) -> String {
    if text.is_empty() {
        "unknown".to_owned()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        assert_eq!(kilobytes("VmPeak:\t 9 kB\nVmRSS:\t  1234 kB\n", "VmRSS:"), 1234);
        assert_eq!(kilobytes("", "VmRSS:"), 0);
        let model = cpu_model("processor: 0\nmodel name\t: Fast One @ 3 GHz\n");
        assert_eq!(model, "Fast One @ 3 GHz");
        assert_eq!(cpu_model(""), "unknown");
    }

    #[test]
    fn process_time_moves_with_work() {
        let before = ProcessSample::take();
        let mut sum = 0_u64;
        while process_cpu_time() < before.cpu_time + Duration::from_millis(2) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(ProcessSample::take().cpu_time > before.cpu_time);
        assert!(before.rss_bytes > 0);
    }

    #[test]
    fn machine_has_cores_and_memory() {
        let machine = Machine::detect();
        assert!(machine.cores > 0 && machine.memory_bytes > 0, "{machine:?}");
        assert!(machine.describe().contains("cores"));
    }
}
