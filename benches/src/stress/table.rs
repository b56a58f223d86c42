//! The rows as text, one at a time, while the run goes on.

use super::report::{Fairness, Report, Row};

/// Title and width of each column; values are set to the right.
const COLUMNS: [(&str, usize); 13] = [
    ("regions", 9),
    ("writes/s", 10),
    ("p50 ms", 9),
    ("p99 ms", 9),
    ("p99.9 ms", 9),
    ("CPU us/write", 13),
    ("x bare", 7),
    ("mem/region", 11),
    ("elect", 8),
    ("changes", 8),
    ("errors", 7),
    ("lost", 5),
    ("doubled", 8),
];

/// What stands above the rows: the machine, the options, the titles.
pub fn header(report: &Report) -> String {
    let options = &report.options;
    let titles: Vec<String> =
        COLUMNS.iter().map(|(title, width)| format!("{title:>width$}")).collect();
    format!(
        "{}\n{}\n{}; pollers each: {}, log writers each: {}, clients: {}\n\n{}",
        report.machine.describe(),
        options.given.describe(),
        options.layout,
        options.pollers_per_store,
        options.log_writers_per_store,
        options.clients,
        titles.concat().trim_end()
    )
}

/// One row, aligned with the titles.
pub fn line(row: &Row) -> String {
    let cells = [
        grouped(row.regions),
        grouped(row.writes_per_s.round() as u64),
        figure(row.latency.p50_ms),
        figure(row.latency.p99_ms),
        figure(row.latency.p999_ms),
        figure(row.cost.cpu_us_per_write),
        row.cost.ratio_to_bare.map_or("-".to_owned(), figure),
        bytes(row.memory.allocated_bytes_per_region),
        format!("{} s", figure(row.health.election_s)),
        grouped(row.health.leader_changes),
        grouped(row.health.errors),
        grouped(row.health.lost),
        grouped(row.health.duplicated),
    ];
    let mut line = String::new();
    for (cell, (_, width)) in cells.iter().zip(COLUMNS) {
        // A cell wider than its column still leaves a gap.
        let width = width.max(cell.len() + 1);
        line.push_str(&format!("{cell:>width$}"));
    }
    if row.repeats.count > 1 {
        line.push_str(&format!(
            "  (median of {}: {} to {})",
            row.repeats.count,
            grouped(row.repeats.min_writes_per_s.round() as u64),
            grouped(row.repeats.max_writes_per_s.round() as u64)
        ));
    }
    if row.interrupted {
        line.push_str("  (interrupted)");
    }
    line
}

/// How the coldest regions of a row fare, for below the table; `None` where keys are not skewed.
pub fn fairness_line(name: &str, regions: u64, fairness: Option<&Fairness>) -> Option<String> {
    let Fairness { coldest_p99_ms, coldest_to_all_p99 } = fairness?;
    Some(format!(
        "{} regions{name}: p99 of the coldest tenth {} ms, {} times that of all",
        grouped(regions),
        figure(*coldest_p99_ms),
        figure(*coldest_to_all_p99)
    ))
}

/// A whole number with its thousands set apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three digits that matter.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => {
            format!("{}{}", if value < 0.0 { "-" } else { "" }, grouped(v.round() as u64))
        }
        v if v >= 9.995 => format!("{value:.1}"),
        v if v >= 0.9995 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

pub(crate) fn bytes(value: f64) -> String {
    match value {
        v if v >= 1024.0 * 1024.0 => format!("{} MiB", figure(v / 1024.0 / 1024.0)),
        v if v >= 1024.0 => format!("{} KiB", figure(v / 1024.0)),
        v => format!("{:.0} B", v.max(0.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{report, row};
    use super::*;

    #[test]
    fn rows_stand_below_their_titles() {
        let header = header(&report(Vec::new()));
        let titles = header.lines().last().unwrap();
        let line = line(&row(10_000, 250_000.4, 88.0));
        let end = titles.find("writes/s").unwrap() + "writes/s".len();
        assert!(line[..end].ends_with(" 250,000"), "{titles}\n{line}");
        let end = titles.find("p99 ms").unwrap() + "p99 ms".len();
        assert!(line[..end].ends_with(" 88.0"), "{titles}\n{line}");
        assert!(line.contains("12.1 KiB"), "{line}");
        assert!(line.contains("median of 3: 225,000 to 262,500"), "{line}");
    }

    #[test]
    fn header_tells_machine_options_and_layout() {
        let header = header(&report(Vec::new()));
        for word in ["2 cores", "3 stores", "16 B", "callbacks", "poller pool per store"] {
            assert!(header.contains(word), "{word}: {header}");
        }
    }

    #[test]
    fn fairness_is_told_where_it_was_measured() {
        let fairness = Fairness::new(Some(3.0), 2.0);
        let line = fairness_line("", 1_000, fairness.as_ref()).unwrap();
        assert_eq!(line, "1,000 regions: p99 of the coldest tenth 3.00 ms, 1.50 times that of all");
        assert!(fairness_line("", 10, Fairness::new(None, 2.0).as_ref()).is_none());
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(figure(0.1234), "0.123");
        assert_eq!(figure(4.25), "4.25");
        assert_eq!(figure(99.96), "100");
        assert_eq!(bytes(300.0), "300 B");
    }
}
