//! The comparison as text: a table with a line for each region count and system.

use super::report::Compared;
use super::Systems;
use crate::stress::table::{fairness_line, figure, grouped};

/// Title and width of each column; values are set to the right, names to the left.
const COLUMNS: [(&str, usize); 8] = [
    ("regions", 9),
    ("writes/s", 11),
    ("p50 ms", 9),
    ("p99 ms", 9),
    ("CPU us/write", 13),
    ("changes", 8),
    ("ours: writes", 13),
    ("CPU", 7),
];
/// Width of the column of names, which is the second.
const NAME_WIDTH: usize = 19;

/// The whole table, and below it how each system is set up. Without a line break at its end.
pub fn text(rows: &[Compared], systems: &Systems) -> String {
    let mut text = line("system", &COLUMNS.map(|(title, _)| title.to_owned()));
    for row in rows {
        text.push('\n');
        text.push_str(&cells(row));
    }
    let fairness = rows.iter().filter_map(|row| {
        fairness_line(&format!(", {}", row.system), row.regions, row.fairness.as_ref())
    });
    for (number, line) in fairness.enumerate() {
        text.push_str(if number == 0 { "\n\n" } else { "\n" });
        text.push_str(&line);
    }
    text.push_str(
        "\n\nours: our figure divided by the system's, so more writes/s and less CPU are better\n",
    );
    let described: Vec<String> =
        systems.0.iter().map(|s| format!("{}: {}", s.name(), s.describe())).collect();
    text.push_str(&described.join("\n"));
    text
}

fn cells(row: &Compared) -> String {
    let some = |value: Option<f64>| value.map_or("-".to_owned(), figure);
    let rate = |value: Option<f64>| value.map_or("-".to_owned(), |v| grouped(v.round() as u64));
    let values = [
        grouped(row.regions),
        rate(row.writes_per_s),
        some(row.p50_ms),
        some(row.p99_ms),
        some(row.cpu_us_per_write),
        row.leader_changes.map_or("-".to_owned(), grouped),
        some(row.ours_to_this_writes),
        some(row.ours_to_this_cpu),
    ];
    let mut text = line(row.system, &values);
    if row.lost + row.duplicated > 0 {
        text.push_str(&format!("  {} lost, {} doubled", row.lost, row.duplicated));
    }
    if let Some(note) = &row.note {
        text.push_str(&format!("  ({note})"));
    }
    text
}

fn line(name: &str, values: &[String; 8]) -> String {
    let mut line = String::new();
    for (number, (value, (_, width))) in values.iter().zip(COLUMNS).enumerate() {
        let width = width.max(value.len() + 1);
        line.push_str(&format!("{value:>width$}"));
        if number == 0 {
            line.push_str(&format!("  {name:<NAME_WIDTH$}"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::compared;
    use super::*;

    #[test]
    fn every_system_has_a_line_below_the_titles() {
        let text = text(&compared(10_000), &"openraft,thread-per-region".parse().unwrap());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[2].contains("openraft") && lines[2].contains(" 60,000"), "{text}");
        let end = lines[0].find("p99 ms").unwrap() + "p99 ms".len();
        assert!(lines[2][..end].ends_with(" 100"), "{text}");
        assert!(lines[2].ends_with("5.00  0.200"), "{text}");
        assert!(lines[4].ends_with("(not tried: 30,000 threads)"), "{text}");
        assert!(text.contains("openraft-fair: "), "{text}");
    }
}
