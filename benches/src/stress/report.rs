//! The result of a run: rows of figures, and the files they go to.
//!
//! The JSON report is one object: `{"machine": {...}, "options": {...}, "rows": [...]}`, and `"comparison":
//! [...]` with `--compare`. Each row
//! is flat, so that `jq .rows[].p99_ms` does what one hopes for; the groups of fields below exist
//! in this program only.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use raftstore::Stage;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::disk::Disk;
use super::error::StressError;
use super::machine::Machine;
use super::options::Options;
use crate::compare::report::Compared;

/// The stations of a write in the order it passes them.
pub const STATIONS: [&str; 6] = [
    Stage::Propose.name(),
    Stage::Collect.name(),
    Stage::Persist.name(),
    Stage::Send.name(),
    Stage::Apply.name(),
    Stage::Respond.name(),
];

/// Everything a run has to tell.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine it ran on.
    pub machine: Machine,
    /// What was asked for, with automatic choices resolved.
    pub options: ReportOptions,
    /// One for each region count.
    pub rows: Vec<Row>,
    /// The other systems beside ours, with `--compare`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub comparison: Vec<Compared>,
}

/// The options of the command line, and what this program always does.
#[derive(Clone, Debug, Serialize)]
pub struct ReportOptions {
    /// As given.
    #[serde(flatten)]
    pub given: Options,
    /// Poller threads of each store, resolved.
    pub pollers_per_store: u64,
    /// Log-writer threads of each store, resolved.
    pub log_writers_per_store: u64,
    /// How threads are laid out.
    pub layout: &'static str,
    /// How writes are issued.
    pub clients: &'static str,
}

impl ReportOptions {
    /// Resolves the automatic choices for `machine`.
    pub fn new(options: &Options, machine: &Machine) -> Self {
        Self {
            given: options.clone(),
            pollers_per_store: options.pollers_for(machine.cores),
            log_writers_per_store: options.log_writers(),
            layout: "one process, a poller pool per store",
            clients: "callbacks",
        }
    }
}

/// One region count, measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// Regions in the run.
    pub regions: u64,
    /// Where the Raft log lived.
    pub log: &'static str,
    /// Whether each log write was synced.
    pub sync: bool,
    /// Writes outstanding over all regions.
    pub outstanding: u64,
    /// Whether Ctrl-C cut the measuring short; the figures are of the time until then.
    pub interrupted: bool,
    /// Writes answered with success in the measuring window.
    pub writes: u64,
    /// The same, in a second.
    pub writes_per_s: f64,
    /// Time from propose to answer.
    #[serde(flatten)]
    pub latency: Latency,
    /// How the coldest regions fare; only where keys are skewed.
    #[serde(flatten)]
    pub fairness: Option<Fairness>,
    /// What the disk got; only where the log is on one.
    #[serde(flatten)]
    pub disk: Option<Disk>,
    /// CPU a write.
    #[serde(flatten)]
    pub cost: Cost,
    /// Memory a region.
    #[serde(flatten)]
    pub memory: Memory,
    /// What went wrong.
    #[serde(flatten)]
    pub health: Health,
    /// Where the time of a write went.
    pub stages: Stages,
    /// The repeats this row is the median of.
    pub repeats: Repeats,
}

/// Time from propose to answer, milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// 99.9th percentile.
    pub p999_ms: f64,
}

/// How the tenth of the regions with the fewest writes fares. They are served as well as the others where their
/// latency is no longer than that of all.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Fairness {
    /// 99th percentile of their latencies, milliseconds.
    pub coldest_p99_ms: f64,
    /// The same, divided by that of all writes.
    pub coldest_to_all_p99: f64,
}

impl Fairness {
    /// `None` where the coldest had no write.
    pub fn new(coldest_p99_ms: Option<f64>, p99_ms: f64) -> Option<Self> {
        let coldest_p99_ms = coldest_p99_ms?;
        Some(Self { coldest_p99_ms, coldest_to_all_p99: coldest_p99_ms / p99_ms })
    }
}

/// CPU a write, all stores and clients of the process together.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cost {
    /// CPU microseconds of the process per answered write, in the measuring window.
    pub cpu_us_per_write: f64,
    /// The same of the bare loop at equal regions, payload and depth; `None` where it was not
    /// measured (the run was interrupted).
    pub bare_raft_cpu_us_per_write: Option<f64>,
    /// The first divided by the second.
    pub ratio_to_bare: Option<f64>,
}

/// Memory of the process grown since before the stores started, per region, all stores together.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    /// Resident bytes.
    pub rss_bytes_per_region: f64,
    /// Bytes held from the allocator.
    pub allocated_bytes_per_region: f64,
}

/// What went wrong, and the time until the first write was possible everywhere.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Health {
    /// From starting the regions until all of them had a leader, seconds.
    pub election_s: f64,
    /// Leaders changed after that, over all repeats.
    pub leader_changes: u64,
    /// Writes answered with an error in the measuring window, over all repeats.
    pub errors: u64,
    /// Writes answered with success and not found afterwards, over all repeats.
    pub lost: u64,
    /// Writes applied more than once, over all repeats.
    pub duplicated: u64,
}

/// The stations of a write and the time it spent in each, in the order of the flow.
#[derive(Clone, Debug, Default)]
pub struct Stages(pub Vec<(&'static str, StageLatency)>);

impl Stages {
    /// The time at `station`, one of [`STATIONS`].
    pub fn get(&self, station: &str) -> Option<&StageLatency> {
        let (_, latency) = self.0.iter().find(|(name, _)| *name == station)?;
        Some(latency)
    }
}

impl Serialize for Stages {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (station, latency) in &self.0 {
            map.serialize_entry(station, latency)?;
        }
        map.end()
    }
}

/// The time a write spent at one station, milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StageLatency {
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
}

/// The repeats a row was chosen from.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Repeats {
    /// How many there were.
    pub count: usize,
    /// The slowest.
    pub min_writes_per_s: f64,
    /// The fastest.
    pub max_writes_per_s: f64,
}

impl Row {
    /// The repeat with the median writes per second (of an even number, the lower one).
    ///
    /// What went wrong in any repeat shows in the row: those counts are sums. Interrupted repeats
    /// only count where there is no other. `None` when there are no repeats.
    pub fn median(repeats: Vec<Self>) -> Option<Self> {
        let total = |count: fn(&Health) -> u64| repeats.iter().map(|r| count(&r.health)).sum();
        let health = Health {
            election_s: 0.0,
            leader_changes: total(|h| h.leader_changes),
            errors: total(|h| h.errors),
            lost: total(|h| h.lost),
            duplicated: total(|h| h.duplicated),
        };
        let (cut, mut whole): (Vec<_>, Vec<_>) = repeats.into_iter().partition(|r| r.interrupted);
        if whole.is_empty() {
            whole = cut;
        }
        whole.sort_by(|a, b| a.writes_per_s.total_cmp(&b.writes_per_s));
        let repeats = Repeats {
            count: whole.len(),
            min_writes_per_s: whole.first()?.writes_per_s,
            max_writes_per_s: whole.last()?.writes_per_s,
        };
        let row = whole.swap_remove((whole.len() - 1) / 2);
        Some(Self {
            repeats,
            health: Health { election_s: row.health.election_s, ..health },
            ..row
        })
    }

    /// Adds the figure of the bare loop.
    pub fn compare_to_bare(&mut self, bare_us: f64) {
        self.cost.bare_raft_cpu_us_per_write = Some(bare_us);
        self.cost.ratio_to_bare = Some(self.cost.cpu_us_per_write / bare_us);
    }

    /// What is wrong with the data, for standard error; `None` when nothing is.
    pub fn damage(&self) -> Option<String> {
        let Health { lost, duplicated, .. } = self.health;
        let mut found = Vec::new();
        if lost > 0 {
            found.push(format!("{lost} answered writes are lost"));
        }
        if duplicated > 0 {
            found.push(format!("{duplicated} writes are duplicated"));
        }
        if found.is_empty() {
            return None;
        }
        Some(format!("{} regions: {}", self.regions, found.join(", ")))
    }
}

impl Report {
    /// The JSON report, with a line break at its end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report is plain data");
        text.push('\n');
        text
    }

    /// The rows as comma-separated values, with a header; absent figures are empty.
    pub fn to_csv(&self) -> String {
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let cells = csv_cells(row);
            if number == 0 {
                push_line(&mut text, cells.iter().map(|(name, _)| name.as_str()));
            }
            push_line(&mut text, cells.iter().map(|(_, value)| value.as_str()));
        }
        text
    }
}

/// Columns and values of one row. Nothing in them needs quoting.
fn csv_cells(row: &Row) -> Vec<(String, String)> {
    fn cell(name: &str, value: impl ToString) -> (String, String) {
        (name.to_owned(), value.to_string())
    }
    let optional = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
    let mut cells = vec![
        cell("regions", row.regions),
        cell("log", row.log),
        cell("sync", row.sync),
        cell("outstanding", row.outstanding),
        cell("interrupted", row.interrupted),
        cell("writes", row.writes),
        cell("writes_per_s", row.writes_per_s),
        cell("min_writes_per_s", row.repeats.min_writes_per_s),
        cell("max_writes_per_s", row.repeats.max_writes_per_s),
        cell("repeats", row.repeats.count),
        cell("p50_ms", row.latency.p50_ms),
        cell("p99_ms", row.latency.p99_ms),
        cell("p999_ms", row.latency.p999_ms),
        cell("cpu_us_per_write", row.cost.cpu_us_per_write),
        cell("bare_raft_cpu_us_per_write", optional(row.cost.bare_raft_cpu_us_per_write)),
        cell("ratio_to_bare", optional(row.cost.ratio_to_bare)),
        cell("rss_bytes_per_region", row.memory.rss_bytes_per_region),
        cell("allocated_bytes_per_region", row.memory.allocated_bytes_per_region),
        cell("election_s", row.health.election_s),
        cell("leader_changes", row.health.leader_changes),
        cell("errors", row.health.errors),
        cell("lost", row.health.lost),
        cell("duplicated", row.health.duplicated),
    ];
    for station in STATIONS {
        let stage = row.stages.get(station);
        cells.push((format!("{station}_p50_ms"), optional(stage.map(|s| s.p50_ms))));
        cells.push((format!("{station}_p99_ms"), optional(stage.map(|s| s.p99_ms))));
    }
    let fairness = row.fairness.as_ref();
    cells.push(cell("coldest_p99_ms", optional(fairness.map(|f| f.coldest_p99_ms))));
    cells.push(cell("coldest_to_all_p99", optional(fairness.map(|f| f.coldest_to_all_p99))));
    let disk = row.disk.as_ref();
    cells.push(cell("log_bytes_per_write", optional(disk.map(|d| d.log_bytes_per_write))));
    cells.push(cell("disk_bytes_per_write", optional(disk.map(|d| d.disk_bytes_per_write))));
    cells.push(cell("amplification", optional(disk.map(|d| d.amplification))));
    cells.push(cell("writes_per_batch", optional(disk.map(|d| d.writes_per_batch))));
    cells
}

pub(crate) fn push_line<'a>(text: &mut String, cells: impl Iterator<Item = &'a str>) {
    text.push_str(&cells.collect::<Vec<_>>().join(","));
    text.push('\n');
}

/// Replaces the file at `path` in one step: a reader sees the old text or the new, never a part.
///
/// What is no plain file (a pipe, `/dev/null`) is written to as it is.
pub fn write_file(path: &Path, text: &str) -> Result<(), StressError> {
    replace(path, text).map_err(|source| StressError::Write { path: path.to_path_buf(), source })
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let target = match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => return fs::write(path, text),
        Ok(_) => fs::canonicalize(path)?, // Behind a link, the file it leads to.
        Err(_) => path.to_path_buf(),
    };
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = target.with_file_name(name);
    let written = fs::File::create_new(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&temporary, &target));
    if written.is_err() {
        drop(fs::remove_file(&temporary));
    }
    written
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A row with plausible figures.
    pub(crate) fn row(regions: u64, writes_per_s: f64, p99_ms: f64) -> Row {
        let stage = StageLatency { p50_ms: 0.01, p99_ms: 0.2 };
        let mut row = Row {
            regions,
            log: "memory",
            outstanding: regions.max(64),
            writes: (writes_per_s * 5.0) as u64,
            writes_per_s,
            latency: Latency { p50_ms: p99_ms / 5.0, p99_ms, p999_ms: p99_ms * 1.7 },
            cost: Cost { cpu_us_per_write: 2e6 / writes_per_s, ..Cost::default() },
            memory: Memory { rss_bytes_per_region: 14_900.0, allocated_bytes_per_region: 12_345.0 },
            stages: Stages(STATIONS.map(|station| (station, stage)).into()),
            repeats: Repeats {
                count: 3,
                min_writes_per_s: writes_per_s * 0.9,
                max_writes_per_s: writes_per_s * 1.05,
            },
            ..Row::default()
        };
        row.compare_to_bare(1.5);
        row
    }

    /// A report with these rows.
    pub(crate) fn report(rows: Vec<Row>) -> Report {
        let options = Options::parse_args(["stress"]).unwrap();
        let machine = Machine {
            cores: 2,
            cpu_model: "Example CPU @ 2.8 GHz".to_owned(),
            memory_bytes: 24 << 30,
            kernel: "6.1.0".to_owned(),
        };
        Report {
            options: ReportOptions::new(&options, &machine),
            machine,
            rows,
            comparison: Vec::new(),
        }
    }

    #[test]
    fn json_has_the_promised_keys() {
        let text = report(vec![row(10, 500_000.0, 0.4)]).to_json();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        for key in ["cores", "cpu_model", "memory_bytes", "kernel"] {
            assert!(json["machine"].get(key).is_some(), "{key}: {text}");
        }
        for key in ["regions", "stores", "seed", "warmup_s", "duration_s", "layout", "clients"] {
            assert!(json["options"].get(key).is_some(), "{key}: {text}");
        }
        assert_eq!(json["options"]["outstanding"], "auto");
        let row = &json["rows"][0];
        let keys = "regions writes_per_s p50_ms p99_ms p999_ms cpu_us_per_write \
                    rss_bytes_per_region allocated_bytes_per_region election_s leader_changes \
                    errors lost duplicated stages bare_raft_cpu_us_per_write ratio_to_bare repeats \
                    log sync interrupted";
        for key in keys.split_whitespace() {
            assert!(row.get(key).is_some(), "{key}: {text}");
        }
        assert!(row.get("coldest_p99_ms").is_none(), "keys are not skewed: {text}");
        for station in STATIONS {
            assert!(row["stages"][station]["p99_ms"].is_f64(), "{station}");
        }
    }

    #[test]
    fn csv_rows_have_as_many_cells_as_the_header() {
        let mut bare = row(1, 4e5, 0.2);
        bare.cost = Cost::default();
        bare.stages = Stages::default();
        let csv = report(vec![bare, row(10, 5e5, 0.4)]).to_csv();
        let counts: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(counts.len(), 3);
        assert!(counts.iter().all(|count| *count == counts[0]), "{csv}");
        assert!(csv.starts_with("regions,log,sync,"));
    }

    #[test]
    fn median_is_by_throughput_and_hides_no_loss() {
        let mut repeats: Vec<Row> = [3e5, 1e5, 2e5].map(|rate| row(1, rate, 1.0)).into();
        repeats[0].health.lost = 2;
        repeats[1].health.duplicated = 1;
        let mut cut = row(1, 9e5, 1.0);
        cut.interrupted = true;
        repeats.push(cut);
        let median = Row::median(repeats).unwrap();
        assert_eq!(median.writes_per_s, 2e5);
        assert_eq!(median.repeats.count, 3);
        assert_eq!(median.repeats.min_writes_per_s, 1e5);
        assert_eq!(median.repeats.max_writes_per_s, 3e5);
        let damage = median.damage().unwrap();
        assert!(damage.contains("2 answered writes are lost"), "{damage}");
        assert!(damage.contains("1 writes are duplicated"), "{damage}");
        assert!(Row::median(Vec::new()).is_none());
    }

    #[test]
    fn file_is_replaced_and_nothing_else_stays() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("report.json");
        write_file(&path, "old").unwrap();
        write_file(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
        write_file(Path::new("/dev/null"), "gone").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let error = write_file(&temp.path().join("no/where"), "x").unwrap_err();
        assert!(error.to_string().contains("no/where"), "{error}");
    }
}
