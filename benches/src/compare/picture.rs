//! The picture of a comparison: region count against throughput and against latency, a line a system.

use plotters::prelude::*;

use super::report::{Compared, OURS};

use crate::stress::chart::{
    decades, draw_header, legend, log_ticks, mesh, milliseconds, panel, region_axis, series, short,
    Area, Drawn, BLUE, HEADER_HEIGHT, MIN_LATENCY_MS, ORANGE, SIZE,
};
use crate::stress::error::StressError;
use crate::stress::report::Report;

/// Every system that may be drawn, and its colour.
const LINES: [(&str, RGBColor); 5] = [
    (OURS, BLUE),
    ("openraft", ORANGE),
    ("openraft-fair", RGBColor(240, 170, 60)),
    ("thread-per-region", RGBColor(44, 140, 60)),
    ("bare", RGBColor(130, 130, 130)),
];

/// Draws a comparison as an SVG of 1200 by 700 points, both axes of both panels logarithmic.
///
/// # Errors
/// [`StressError::Chart`] when nothing was compared, or the drawing fails.
pub fn svg(report: &Report) -> Result<String, StressError> {
    let mut text = String::new();
    if report.comparison.iter().all(|row| row.writes_per_s.is_none()) {
        return Err(StressError::Chart("nothing was compared".to_owned()));
    }
    let failed = |error: Box<dyn std::error::Error>| StressError::Chart(error.to_string());
    draw(&mut text, report).map_err(failed)?;
    Ok(text)
}

fn draw(text: &mut String, report: &Report) -> Drawn {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(HEADER_HEIGHT);
    draw_header(&head, report, "What else one could use, under the same load")?;
    let (left, right) = body.split_horizontally(SIZE.0 as i32 / 2);
    let rows = &report.comparison;
    draw_panel(
        &left,
        rows,
        &Panel {
            caption: "Throughput (logarithmic)",
            unit: "writes per second",
            value: |row| row.writes_per_s,
            least: 1.0,
            format: short,
            legend: SeriesLabelPosition::LowerLeft,
        },
    )?;
    draw_panel(
        &right,
        rows,
        &Panel {
            caption: "99th percentile, propose to answer (logarithmic)",
            unit: "milliseconds",
            value: |row| row.p99_ms,
            least: MIN_LATENCY_MS,
            format: milliseconds,
            legend: SeriesLabelPosition::UpperLeft,
        },
    )?;
    root.present()?;
    Ok(())
}

/// What one half of the picture shows.
struct Panel {
    caption: &'static str,
    unit: &'static str,
    value: fn(&Compared) -> Option<f64>,
    /// A logarithmic axis has no zero; what is below this is drawn as this.
    least: f64,
    format: fn(f64) -> String,
    legend: SeriesLabelPosition,
}

fn draw_panel(area: &Area<'_>, rows: &[Compared], shown: &Panel) -> Drawn {
    let points = |system: &str| -> Vec<(f64, f64)> {
        let of_system = rows.iter().filter(|row| row.system == system);
        let mut points: Vec<(f64, f64)> = of_system
            .filter_map(|row| Some((row.regions as f64, (shown.value)(row)?.max(shown.least))))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let mut counts: Vec<f64> = rows.iter().map(|row| row.regions as f64).collect();
    counts.sort_by(f64::total_cmp);
    let values = rows.iter().filter_map(shown.value).map(|value| value.max(shown.least));
    let axis = decades(values);
    let ticks = log_ticks(&axis);
    let mut chart = panel(area, shown.caption)
        .build_cartesian_2d(region_axis(&counts), axis.log_scale().with_key_points(ticks))?;
    mesh(&mut chart, shown.unit, &|value| (shown.format)(*value))?;
    for (system, color) in LINES.iter().rev() {
        let points = points(system);
        if !points.is_empty() {
            series(&mut chart, &points, *color, system)?;
        }
    }
    legend(&mut chart, shown.legend.clone())
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::compared;
    use super::super::System;
    use super::*;
    use crate::stress::report::tests::{report, row};

    #[test]
    fn picture_has_a_line_for_each_system_measured() {
        let mut report = report(vec![row(10, 3e5, 2.0)]);
        report.comparison = [1, 10, 100].into_iter().flat_map(compared).collect();
        let svg = svg(&report).unwrap();
        for label in ["ours", "openraft", "bare", "writes per second", "milliseconds", "2 cores"] {
            assert!(svg.contains(label), "{label}");
        }
        assert!(!svg.contains("thread-per-region"), "it was not measured");
    }

    #[test]
    fn every_system_has_a_colour() {
        let systems =
            [System::Openraft, System::OpenraftFair, System::ThreadPerRegion, System::Bare];
        for system in systems {
            assert!(LINES.iter().any(|(name, _)| *name == system.name()), "{system:?}");
        }
    }

    #[test]
    fn nothing_compared_is_an_error() {
        assert!(svg(&report(Vec::new())).is_err());
    }
}
