//! The picture of `stress idle`: region count against CPU and memory, awake and asleep.

use plotters::prelude::*;

use super::report::Report;
use super::row::Row;
use crate::stress::chart::{
    builder, decades, header, legend, log_ticks, mesh, region_axis, series, value_labels, Area,
    Drawn, ABOVE, BELOW, BLUE, HEADER_HEIGHT, ORANGE, SIZE,
};
use crate::stress::error::StressError;
use crate::stress::table::{bytes, figure};

/// A logarithmic axis has no zero; what is below this is drawn as this.
const LEAST: f64 = 0.01;

/// Draws the report as an SVG of 1200 by 700 points.
///
/// # Errors
/// When there is no row, or the drawing fails.
pub fn svg(report: &Report) -> Result<String, StressError> {
    let mut rows: Vec<&Row> = report.rows.iter().collect();
    if rows.is_empty() {
        return Err(StressError::Chart("no row was measured".to_owned()));
    }
    rows.sort_by_key(|row| row.regions);
    let mut text = String::new();
    let failed = |error: Box<dyn std::error::Error>| StressError::Chart(error.to_string());
    draw(&mut text, report, &rows).map_err(failed)?;
    Ok(text)
}

fn draw(text: &mut String, report: &Report, rows: &[&Row]) -> Drawn {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(HEADER_HEIGHT);
    header(
        &head,
        "What idle regions cost",
        &report.machine.describe(),
        &report.options.describe(),
    )?;
    let (left, right) = body.split_horizontally(SIZE.0 as i32 / 2);
    let cpu = Pane {
        caption: "CPU while nothing happens (logarithmic)",
        unit: "percent of one core",
        format: figure,
    };
    let awake = ("awake", points(rows, |row| row.awake.cpu_percent));
    cpu.draw(&left, awake, ("asleep", points(rows, |row| row.asleep.cpu_percent)))?;
    let memory = Pane {
        caption: "Memory of a region on a store (logarithmic)",
        unit: "bytes allocated, log store included",
        format: bytes,
    };
    let awake = ("awake", points(rows, |row| row.awake.allocated_bytes));
    memory.draw(&right, awake, ("asleep", points(rows, |row| row.asleep.allocated_bytes)))?;
    root.present()?;
    Ok(())
}

type Points = Vec<(f64, f64)>;

fn points(rows: &[&Row], of: fn(&Row) -> f64) -> Points {
    rows.iter().map(|row| (row.regions as f64, of(row).max(LEAST))).collect()
}

/// Half of the picture.
struct Pane {
    caption: &'static str,
    unit: &'static str,
    format: fn(f64) -> String,
}

impl Pane {
    /// Two lines.
    fn draw(&self, area: &Area<'_>, awake: (&str, Points), asleep: (&str, Points)) -> Drawn {
        let counts: Vec<f64> = awake.1.iter().map(|point| point.0).collect();
        let axis = decades(awake.1.iter().chain(&asleep.1).map(|point| point.1));
        let ticks = log_ticks(&axis);
        let mut chart = builder(area, self.caption)
            .build_cartesian_2d(region_axis(&counts), axis.log_scale().with_key_points(ticks))?;
        mesh(&mut chart, self.unit, &|value| (self.format)(*value))?;
        series(&mut chart, &awake.1, ORANGE, awake.0)?;
        series(&mut chart, &asleep.1, BLUE, asleep.0)?;
        value_labels(&mut chart, &awake.1, ABOVE, self.format)?;
        value_labels(&mut chart, &asleep.1, BELOW, self.format)?;
        legend(&mut chart, SeriesLabelPosition::UpperLeft)
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn picture_has_both_lines_in_both_halves() {
        let svg = svg(&report(&[1_000, 100_000, 10_000])).unwrap();
        for label in ["percent of one core", "bytes allocated", "100,000", "tick 100ms", "200"] {
            assert!(svg.contains(label), "{label}");
        }
        assert_eq!(svg.matches("\nasleep\n").count(), 2, "{svg}");
        assert_eq!(svg.matches("\nawake\n").count(), 2);
    }

    #[test]
    fn one_row_is_a_picture_and_none_is_an_error() {
        assert!(svg(&report(&[7])).unwrap().contains("</svg>"));
        assert!(svg(&report(&[])).is_err());
    }
}
