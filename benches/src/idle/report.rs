//! What `stress idle` tells: a table, and one JSON object `{"machine": ..., "options": ..., "rows": [...]}`.

use serde::Serialize;

use super::clients::Latency;
use super::options::Options;
use super::row::Row;
use crate::stress::machine::Machine;
use crate::stress::table::{bytes, figure, grouped};

/// Everything a run has to tell.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine it ran on.
    pub machine: Machine,
    /// As given.
    pub options: Options,
    /// One for each region count.
    pub rows: Vec<Row>,
}

/// What the columns are about, their titles and widths; values are set to the right.
const COLUMNS: [(&str, &str, usize); 22] = [
    ("", "regions", 8),
    ("from cold", "s", 8),
    ("", "CPU s", 8),
    ("CPU % of a core", "awake", 8),
    ("", "asleep", 8),
    ("", "cold", 8),
    ("", "active", 8),
    ("mem/region/store", "awake", 10),
    ("", "asleep", 10),
    ("", "cold", 10),
    ("RSS/region/store", "awake", 10),
    ("", "cold", 10),
    ("write ms p50/p99", "awake", 13),
    ("", "asleep", 13),
    ("", "cold", 13),
    ("thaw", "CPU us", 8),
    ("store lost", "s", 8),
    ("", "timeouts", 9),
    ("", "CPU s", 7),
    ("", "woken", 8),
    ("started anew", "here s", 8),
    ("", "led s", 7),
];

/// What stands above the rows: the machine, the options, what is counted, the titles.
pub fn header(report: &Report) -> String {
    let titles = COLUMNS.iter().map(|(_, title, width)| format!("{title:>width$}"));
    format!(
        "{}\n{}\nmemory: log store{} and state machine included; CPU: the whole process\n\n{}\n{}",
        report.machine.describe(),
        report.options.describe(),
        if report.options.log.name() == "memory" { ", with all entries," } else { "" },
        groups().trim_end(),
        titles.collect::<String>().trim_end()
    )
}

/// Each group's name above its first column, and over those that follow.
fn groups() -> String {
    let mut line = String::new();
    let mut until = 0;
    for (group, title, width) in COLUMNS {
        if !group.is_empty() {
            // From where its first title begins.
            let from = (until + width).saturating_sub(title.len().max(4));
            line.push_str(&" ".repeat(from.saturating_sub(line.chars().count())));
            line.push_str(group);
        }
        until += width;
    }
    line
}

/// One row, aligned with the titles.
pub fn line(row: &Row) -> String {
    let lost =
        |of: fn(&super::row::Failover) -> String| row.failover.as_ref().map_or("-".into(), of);
    let cells: [String; COLUMNS.len()] = [
        grouped(row.regions),
        figure(row.cold.seconds),
        figure(row.cold.cpu_s),
        figure(row.awake.cpu_percent),
        figure(row.asleep.cpu_percent),
        figure(row.slept_long.cpu_percent),
        figure(row.active.cpu_percent),
        bytes(row.awake.allocated_bytes),
        bytes(row.asleep.allocated_bytes),
        bytes(row.slept_long.allocated_bytes),
        bytes(row.awake.rss_bytes),
        bytes(row.slept_long.rss_bytes),
        row.write_awake.as_ref().map_or("-".into(), quantiles),
        quantiles(&row.write_asleep),
        quantiles(&row.write_cold),
        figure(row.thaw_cpu_us),
        lost(|it| figure(it.seconds)),
        lost(|it| figure(it.election_timeouts)),
        lost(|it| figure(it.cpu_s)),
        lost(|it| grouped(it.woken)),
        figure(row.restart.registered_s),
        figure(row.restart.led_s),
    ];
    let mut line = String::new();
    for (cell, (_, _, width)) in cells.iter().zip(COLUMNS) {
        // A cell wider than its column still leaves a gap.
        let width = width.max(cell.len() + 1);
        line.push_str(&format!("{cell:>width$}"));
    }
    if let Some(sent) = row.awake.heartbeats_sent.filter(|_| row.awake.is_too_much()) {
        line.push_str(&format!(
            "  (awake: too much for this machine, {:.0} % of heartbeats, {} changes of leaders)",
            100.0 * sent,
            row.awake.leader_changes
        ));
    }
    line
}

fn quantiles(latency: &Latency) -> String {
    format!("{}/{}", figure(latency.p50_ms), figure(latency.p99_ms))
}

impl Report {
    /// The JSON report, with a line break at its end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report is plain data");
        text.push('\n');
        text
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::row::{Failover, Quiet};
    use super::*;

    /// A report of rows with figures that grow with the regions.
    pub(in super::super) fn report(counts: &[u64]) -> Report {
        let row = |regions: &u64| Row {
            regions: *regions,
            awake: Quiet {
                cpu_percent: *regions as f64 / 500.0,
                allocated_bytes: 5000.0,
                rss_bytes: 6e3,
                leader_changes: 0,
                heartbeats_sent: Some(if *regions > 10_000 { 0.4 } else { 0.98 }),
            },
            asleep: Quiet {
                cpu_percent: 0.4,
                allocated_bytes: 4000.0,
                rss_bytes: 5e3,
                heartbeats_sent: Some(0.0),
                leader_changes: 0,
            },
            failover: Some(Failover { led: 333, woken: 333, seconds: 1.21, ..Failover::default() }),
            ..Row::default()
        };
        Report {
            machine: Machine::detect(),
            options: Options::parse_args(["stress idle"]).unwrap(),
            rows: counts.iter().map(row).collect(),
        }
    }

    #[test]
    fn rows_stand_below_their_titles() {
        let report = report(&[1_000]);
        let header = header(&report);
        let (titles, line) = (header.lines().last().unwrap(), line(&report.rows[0]));
        let end = titles.find("awake").unwrap() + "awake".len();
        assert!(line[..end].ends_with(" 2.00"), "{header}\n{line}");
        let end = titles.find("woken").unwrap() + "woken".len();
        assert!(line[..end].ends_with(" 333"), "{header}\n{line}");
        for word in ["from cold", "store lost", "log store", "tick 100ms", "3 stores"] {
            assert!(header.contains(word), "{word}: {header}");
        }
    }

    #[test]
    fn without_a_store_to_lose_there_are_no_figures_of_it() {
        let mut row = report(&[10]).rows.remove(0);
        row.failover = None;
        assert_eq!(line(&row).split_whitespace().filter(|cell| *cell == "-").count(), 5);
    }

    #[test]
    fn more_than_the_machine_can_do_is_remarked() {
        let report = report(&[10_000, 100_000]);
        assert!(!line(&report.rows[0]).contains("too much"));
        assert!(line(&report.rows[1])
            .contains("(awake: too much for this machine, 40 % of heartbeats,"));
    }

    #[test]
    fn json_has_the_figures_by_name() {
        let json: serde_json::Value = serde_json::from_str(&report(&[10]).to_json()).unwrap();
        assert_eq!(json["rows"][0]["asleep"]["cpu_percent"], 0.4);
        assert_eq!(json["options"]["tick_s"], 0.1);
    }
}
