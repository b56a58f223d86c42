//! The result of a comparison: a row for each region count and system.
//!
//! There is no memory in it. What the allocator was asked for says little of others (openraft asks ahead for 0.7 MB
//! a peer, and touches little of it; the stack and the cache of a thread are not in it), and what is resident
//! depends on what the system before has left.

use serde::Serialize;

use super::System;
use crate::stress::report::{push_line, Fairness, Row};

/// The name of our own stores beside the others'.
pub const OURS: &str = "ours";

/// One system with one region count. Figures that there are none of are absent.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Compared {
    /// `ours`, or the name of the other system.
    pub system: &'static str,
    /// How it is set up; of ours, the options of the report say that.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub setup: &'static str,
    /// Regions in the run.
    pub regions: u64,
    /// Writes answered with success in a second; of repeats, the median, as all figures here.
    pub writes_per_s: Option<f64>,
    /// The slowest repeat.
    pub min_writes_per_s: Option<f64>,
    /// The fastest repeat.
    pub max_writes_per_s: Option<f64>,
    /// Median time from propose to answer.
    pub p50_ms: Option<f64>,
    /// 99th percentile of it.
    pub p99_ms: Option<f64>,
    /// How the coldest regions fare; only where keys are skewed.
    #[serde(flatten)]
    pub fairness: Option<Fairness>,
    /// CPU microseconds of the process per answered write.
    pub cpu_us_per_write: Option<f64>,
    /// Leaders changed under load, over all repeats.
    pub leader_changes: Option<u64>,
    /// Writes answered with an error, over all repeats.
    pub errors: Option<u64>,
    /// Writes answered with success and not found afterwards.
    pub lost: u64,
    /// Writes applied more than once.
    pub duplicated: u64,
    /// Our writes in a second, divided by this system's.
    pub ours_to_this_writes: Option<f64>,
    /// Our CPU a write, divided by this system's.
    pub ours_to_this_cpu: Option<f64>,
    /// Why it was not measured, or not to the end.
    pub note: Option<String>,
}

impl Compared {
    /// A system without figures.
    pub fn unmeasured(system: System, regions: u64) -> Self {
        Self { system: system.name(), setup: system.describe(), regions, ..Self::default() }
    }

    /// Our own stores.
    pub fn ours(row: &Row) -> Self {
        Self {
            writes_per_s: Some(row.writes_per_s),
            min_writes_per_s: Some(row.repeats.min_writes_per_s),
            max_writes_per_s: Some(row.repeats.max_writes_per_s),
            p50_ms: Some(row.latency.p50_ms),
            p99_ms: Some(row.latency.p99_ms),
            fairness: row.fairness,
            cpu_us_per_write: Some(row.cost.cpu_us_per_write),
            leader_changes: Some(row.health.leader_changes),
            errors: Some(row.health.errors),
            lost: row.health.lost,
            duplicated: row.health.duplicated,
            system: OURS,
            regions: row.regions,
            ..Self::default()
        }
    }

    /// Another system, measured as ours was.
    pub fn of(system: System, row: &Row, ours: &Row) -> Self {
        Self {
            system: system.name(),
            setup: system.describe(),
            ours_to_this_writes: Some(ours.writes_per_s / row.writes_per_s),
            ours_to_this_cpu: Some(ours.cost.cpu_us_per_write / row.cost.cpu_us_per_write),
            ..Self::ours(row)
        }
    }

    /// The bare loop that belongs to our row; `None` where an interrupt came before it.
    ///
    /// It knows no clients, so it has no latency; it runs on one core, so its writes in a second are what one
    /// core commits.
    pub fn bare(ours: &Row) -> Option<Self> {
        let cpu_us = ours.cost.bare_raft_cpu_us_per_write?;
        let writes_per_s = 1e6 / cpu_us;
        Some(Self {
            writes_per_s: Some(writes_per_s),
            cpu_us_per_write: Some(cpu_us),
            ours_to_this_writes: Some(ours.writes_per_s / writes_per_s),
            ours_to_this_cpu: ours.cost.ratio_to_bare,
            ..Self::unmeasured(System::Bare, ours.regions)
        })
    }

    /// What is wrong with the data, for standard error; `None` for our own, whose row says it.
    pub fn damage(&self) -> Option<String> {
        if self.system == OURS || self.lost + self.duplicated == 0 {
            return None;
        }
        let Self { system, regions, lost, duplicated, .. } = self;
        Some(format!("{system}, {regions} regions: {lost} writes lost, {duplicated} duplicated"))
    }
}

/// The rows as comma-separated values, with a header; absent figures are empty.
pub fn to_csv(rows: &[Compared]) -> String {
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells = csv_cells(row);
        if number == 0 {
            push_line(&mut text, cells.iter().map(|(name, _)| *name));
        }
        push_line(&mut text, cells.iter().map(|(_, value)| value.as_str()));
    }
    text
}

fn csv_cells(row: &Compared) -> Vec<(&'static str, String)> {
    let figure = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
    let count = |value: Option<u64>| value.map_or(String::new(), |v| v.to_string());
    // A note is a sentence, and may hold commas.
    let note = row.note.as_deref().unwrap_or_default().replace([',', '"'], ";");
    vec![
        ("regions", row.regions.to_string()),
        ("system", row.system.to_owned()),
        ("writes_per_s", figure(row.writes_per_s)),
        ("min_writes_per_s", figure(row.min_writes_per_s)),
        ("max_writes_per_s", figure(row.max_writes_per_s)),
        ("p50_ms", figure(row.p50_ms)),
        ("p99_ms", figure(row.p99_ms)),
        ("coldest_p99_ms", figure(row.fairness.map(|f| f.coldest_p99_ms))),
        ("coldest_to_all_p99", figure(row.fairness.map(|f| f.coldest_to_all_p99))),
        ("cpu_us_per_write", figure(row.cpu_us_per_write)),
        ("leader_changes", count(row.leader_changes)),
        ("errors", count(row.errors)),
        ("lost", row.lost.to_string()),
        ("duplicated", row.duplicated.to_string()),
        ("ours_to_this_writes", figure(row.ours_to_this_writes)),
        ("ours_to_this_cpu", figure(row.ours_to_this_cpu)),
        ("note", note),
    ]
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::stress::report::tests::row;

    /// Ours, openraft and the bare loop with so many regions.
    pub(crate) fn compared(regions: u64) -> Vec<Compared> {
        let ours = row(regions, 300_000.0, 2.0);
        let mut skipped = Compared::unmeasured(System::ThreadPerRegion, regions);
        skipped.note = Some("not tried: 30,000 threads".to_owned());
        vec![
            Compared::ours(&ours),
            Compared::of(System::Openraft, &row(regions, 60_000.0, 100.0), &ours),
            Compared::bare(&ours).unwrap(),
            skipped,
        ]
    }

    #[test]
    fn ratios_are_ours_to_the_other() {
        let rows = compared(10);
        assert_eq!(rows[0].ours_to_this_writes, None);
        assert!((rows[1].ours_to_this_writes.unwrap() - 5.0).abs() < 1e-9);
        assert!((rows[1].ours_to_this_cpu.unwrap() - 0.2).abs() < 1e-9);
        let bare = &rows[2];
        // 2e6 / 300,000 us against 1.5 us.
        assert!((bare.ours_to_this_cpu.unwrap() - 20.0 / 4.5).abs() < 1e-9);
        assert_eq!((bare.p99_ms, bare.leader_changes), (None, None));
    }

    #[test]
    fn csv_rows_have_as_many_cells_as_the_header() {
        let csv = to_csv(&compared(10));
        let counts: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
        assert_eq!(counts, [17; 5]);
    }

    #[test]
    fn damage_of_another_system_is_told_with_its_name() {
        let mut rows = compared(10);
        assert_eq!(rows[1].damage(), None);
        rows[1].lost = 2;
        assert!(rows[1].damage().unwrap().starts_with("openraft, 10 regions: 2"));
    }
}
