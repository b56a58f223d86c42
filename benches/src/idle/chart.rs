//! The picture of `stress idle`: region count against CPU and memory, awake, asleep and cold.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::report::Report;
use super::row::Row;
use crate::stress::chart::{
    decades, header, legend, log_ticks, mesh, nice_above, panel, region_axis, series, value_labels,
    Area, Drawn, Panel, ABOVE, BELOW, BLUE, GREY, HEADER_HEIGHT, ORANGE, SIZE,
};
use crate::stress::error::StressError;
use crate::stress::table::figure;

/// Less is drawn as this.
const LEAST_CPU_PERCENT: f64 = 0.01;
const KIB: f64 = 1024.0;

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
    draw_cpu(&left, rows)?;
    draw_memory(&right, rows)?;
    root.present()?;
    Ok(())
}

fn draw_cpu(area: &Area<'_>, rows: &[&Row]) -> Drawn {
    // A logarithmic axis has no zero.
    let awake = points(rows, |row| row.awake.cpu_percent.max(LEAST_CPU_PERCENT));
    let asleep = points(rows, |row| row.asleep.cpu_percent.max(LEAST_CPU_PERCENT));
    let cold = points(rows, |row| row.slept_long.cpu_percent.max(LEAST_CPU_PERCENT));
    let axis = decades(awake.iter().chain(&asleep).chain(&cold).map(|point| point.1));
    let ticks = log_ticks(&axis);
    let mut chart = panel(area, "CPU while nothing happens (logarithmic)")
        .build_cartesian_2d(region_axis(&counts(rows)), axis.log_scale().with_key_points(ticks))?;
    mesh(&mut chart, "percent of one core", &|value| figure(*value))?;
    lines(&mut chart, [&awake, &asleep, &cold])?;
    legend(&mut chart, SeriesLabelPosition::UpperLeft)
}

fn draw_memory(area: &Area<'_>, rows: &[&Row]) -> Drawn {
    let awake = points(rows, |row| row.awake.allocated_bytes / KIB);
    let asleep = points(rows, |row| row.asleep.allocated_bytes / KIB);
    let cold = points(rows, |row| row.slept_long.allocated_bytes / KIB);
    let most = awake.iter().chain(&asleep).chain(&cold).fold(1.0, |most, point| point.1.max(most));
    let mut chart = panel(area, "Memory of a region on a store (linear, from zero)")
        .build_cartesian_2d(
            region_axis(&counts(rows)),
            RangedCoordf64::from(0.0..nice_above(most)),
        )?;
    mesh(&mut chart, "KiB allocated, log store included", &|value| figure(*value))?;
    lines(&mut chart, [&awake, &asleep, &cold])?;
    legend(&mut chart, SeriesLabelPosition::LowerLeft)
}

fn counts(rows: &[&Row]) -> Vec<f64> {
    rows.iter().map(|row| row.regions as f64).collect()
}

fn points(rows: &[&Row], of: fn(&Row) -> f64) -> Vec<(f64, f64)> {
    rows.iter().map(|row| (row.regions as f64, of(row))).collect()
}

fn lines<Y>(chart: &mut Panel<'_, Y>, [awake, asleep, cold]: [&Vec<(f64, f64)>; 3]) -> Drawn
where
    Y: Ranged<ValueType = f64>,
{
    series(chart, awake, ORANGE, "awake")?;
    series(chart, asleep, GREY, "asleep")?;
    series(chart, cold, BLUE, "cold")?;
    // What lies between the two is told by the table.
    value_labels(chart, awake, ABOVE, figure)?;
    value_labels(chart, cold, BELOW, figure)
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn picture_has_both_lines_in_both_halves() {
        let svg = svg(&report(&[1_000, 100_000, 10_000])).unwrap();
        for label in ["percent of one core", "KiB allocated", "100,000", "tick 100ms", "200"] {
            assert!(svg.contains(label), "{label}");
        }
        assert_eq!(svg.matches("\nasleep\n").count(), 2, "{svg}");
        assert_eq!(svg.matches("\ncold\n").count(), 2);
        assert_eq!(svg.matches("\nawake\n").count(), 2);
    }

    #[test]
    fn one_row_is_a_picture_and_none_is_an_error() {
        assert!(svg(&report(&[7])).unwrap().contains("</svg>"));
        assert!(svg(&report(&[])).is_err());
    }
}
