//! The picture of a run: region count against throughput, and against latency.

use std::ops::Range;

use plotters::coord::combinators::{LogCoord, WithKeyPoints};
use plotters::coord::types::RangedCoordf64;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::error::StressError;
use super::report::{Report, Row};
use super::table::grouped;

pub(crate) const SIZE: (u32, u32) = (1200, 700);
pub(crate) const HEADER_HEIGHT: i32 = 96;
const FONT: &str = "sans-serif";
const TITLE_SIZE: i32 = 26;
const LABEL_SIZE: i32 = 16;
pub(crate) const BLUE: RGBColor = RGBColor(31, 119, 180);
pub(crate) const ORANGE: RGBColor = RGBColor(214, 96, 19);
pub(crate) const GREY: RGBColor = RGBColor(140, 140, 140);
const INK: RGBColor = RGBColor(40, 40, 40);
/// Labels of the region axis closer together than this share of it would run into each other.
const MIN_TICK_GAP: f64 = 0.09;
/// A logarithmic axis has no zero; a latency below this is drawn as this.
pub(crate) const MIN_LATENCY_MS: f64 = 0.001;

/// Where the label of a point goes, points further down than the point itself.
pub(crate) const ABOVE: i32 = -16;
/// See [`ABOVE`].
pub(crate) const BELOW: i32 = 16;

pub(crate) type RegionAxis = WithKeyPoints<LogCoord<f64>>;
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(crate) type Panel<'a, Y> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RegionAxis, Y>>;

/// Draws the report as an SVG of 1200 by 700 points.
///
/// Errors with [`StressError::Chart`] when there is no row, or the drawing fails.
pub fn svg(report: &Report) -> Result<String, StressError> {
    let mut text = String::new();
    let rows = sorted(&report.rows);
    if rows.is_empty() {
        return Err(StressError::Chart("no row was measured".to_owned()));
    }
    let failed = |error: Box<dyn std::error::Error>| StressError::Chart(error.to_string());
    draw(&mut text, report, &rows).map_err(failed)?;
    Ok(text)
}

pub(crate) type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(text: &mut String, report: &Report, rows: &[&Row]) -> Drawn {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(HEADER_HEIGHT);
    draw_header(&head, report, "Regions against throughput and latency")?;
    let (left, right) = body.split_horizontally(SIZE.0 as i32 / 2);
    draw_throughput(&left, rows)?;
    draw_latency(&right, rows)?;
    root.present()?;
    Ok(())
}

pub(crate) fn draw_header(area: &Area<'_>, report: &Report, caption: &str) -> Drawn {
    let options = &report.options;
    let asked = format!(
        "{}; pollers each: {}, clients: {}",
        options.given.describe(),
        options.pollers_per_store,
        options.clients
    );
    header(area, caption, &report.machine.describe(), &asked)
}

/// A title, and two lines in small.
pub(crate) fn header(area: &Area<'_>, title: &str, machine: &str, asked: &str) -> Drawn {
    let large = (FONT, TITLE_SIZE).into_font().color(&INK);
    let small = (FONT, LABEL_SIZE - 1).into_font().color(&INK.mix(0.75));
    area.draw_text(title, &large, (24, 14))?;
    area.draw_text(machine, &small, (24, 48))?;
    area.draw_text(asked, &small, (24, 70))?;
    Ok(())
}

fn draw_throughput(area: &Area<'_>, rows: &[&Row]) -> Drawn {
    let fastest = rows
        .iter()
        .map(|row| row.writes_per_s.max(row.repeats.max_writes_per_s))
        .fold(1.0, f64::max);
    let axis = 0.0..nice_above(fastest);
    let mut chart = panel(area, "Throughput (linear, from zero)")
        .build_cartesian_2d(region_axis(&counts(rows)), RangedCoordf64::from(axis))?;
    mesh(&mut chart, "writes per second", &|value| short(*value))?;
    let points: Vec<_> = rows.iter().map(|row| (row.regions as f64, row.writes_per_s)).collect();
    if rows.iter().any(|row| row.repeats.count > 1) {
        chart
            .draw_series(rows.iter().map(|row| {
                let (low, high) = (row.repeats.min_writes_per_s, row.repeats.max_writes_per_s);
                let at = row.regions as f64;
                PathElement::new([(at, low), (at, high)], BLUE.mix(0.3).stroke_width(9))
            }))?
            .label("slowest to fastest repeat")
            .legend(|(x, y)| {
                PathElement::new([(x, y), (x + 22, y)], BLUE.mix(0.3).stroke_width(9))
            });
    }
    series(&mut chart, &points, BLUE, "writes/s, all regions together")?;
    value_labels(&mut chart, &points, ABOVE, short)?;
    legend(&mut chart, SeriesLabelPosition::LowerLeft)
}

fn draw_latency(area: &Area<'_>, rows: &[&Row]) -> Drawn {
    let of = |value: fn(&Row) -> f64| -> Vec<(f64, f64)> {
        rows.iter().map(|row| (row.regions as f64, value(row).max(MIN_LATENCY_MS))).collect()
    };
    let p50 = of(|row| row.latency.p50_ms);
    let p99 = of(|row| row.latency.p99_ms);
    let all = p50.iter().chain(&p99).map(|point| point.1);
    let axis = decades(all);
    let ticks = log_ticks(&axis);
    let mut chart = panel(area, "Latency, propose to answer (logarithmic)")
        .build_cartesian_2d(region_axis(&counts(rows)), axis.log_scale().with_key_points(ticks))?;
    mesh(&mut chart, "milliseconds", &|value| milliseconds(*value))?;
    series(&mut chart, &p99, ORANGE, "p99, ms")?;
    series(&mut chart, &p50, BLUE, "p50, ms")?;
    value_labels(&mut chart, &p99, ABOVE, milliseconds)?;
    value_labels(&mut chart, &p50, BELOW, milliseconds)?;
    legend(&mut chart, SeriesLabelPosition::UpperLeft)
}

pub(crate) fn panel<'a, 'b>(
    area: &'a Area<'b>,
    caption: &str,
) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(caption, (FONT, LABEL_SIZE + 3).into_font().color(&INK))
        .margin_left(14)
        .margin_right(30)
        .margin_bottom(14)
        .x_label_area_size(54)
        .y_label_area_size(76);
    builder
}

pub(crate) fn mesh<Y>(
    chart: &mut Panel<'_, Y>,
    unit: &str,
    format: &dyn Fn(&f64) -> String,
) -> Drawn
where
    Y: Ranged<ValueType = f64> + plotters::coord::ranged1d::ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc("regions (logarithmic)")
        .y_desc(unit)
        .x_label_formatter(&|regions| grouped(regions.round() as u64))
        .y_label_formatter(&format)
        .y_labels(8)
        .label_style((FONT, LABEL_SIZE - 1).into_font().color(&INK))
        .axis_desc_style((FONT, LABEL_SIZE).into_font().color(&INK))
        .axis_style(INK.mix(0.6))
        .bold_line_style(INK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .draw()?;
    Ok(())
}

pub(crate) fn series<Y>(
    chart: &mut Panel<'_, Y>,
    points: &[(f64, f64)],
    color: RGBColor,
    name: &str,
) -> Drawn
where
    Y: Ranged<ValueType = f64>,
{
    chart
        .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(3)))?
        .label(name)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], color.stroke_width(3)));
    chart.draw_series(points.iter().map(|point| Circle::new(*point, 5, color.filled())))?;
    Ok(())
}

/// Writes values beside their points, `offset` points further down; only where the region axis
/// has a label too, so that they do not run into each other.
pub(crate) fn value_labels<Y>(
    chart: &mut Panel<'_, Y>,
    points: &[(f64, f64)],
    offset: i32,
    format: fn(f64) -> String,
) -> Drawn
where
    Y: Ranged<ValueType = f64>,
{
    let ticks = chart.as_coord_spec().x_spec().bold_points().to_vec();
    let style = |color: &dyn Fn(FontDesc<'static>) -> TextStyle<'static>| {
        color((FONT, LABEL_SIZE - 2).into_font()).pos(Pos::new(HPos::Center, VPos::Center))
    };
    let halo = style(&|font| font.color(&WHITE));
    let ink = style(&|font| font.color(&INK));
    let labelled = points.iter().filter(|point| ticks.contains(&point.0));
    chart.draw_series(labelled.map(|point| {
        let text = |x, y, style: &TextStyle<'static>| {
            Text::new(format(point.1), (x, offset + y), style.clone())
        };
        // A rim of white, so that a line behind the digits does not strike them out.
        EmptyElement::at(*point)
            + text(-2, 0, &halo)
            + text(2, 0, &halo)
            + text(0, -2, &halo)
            + text(0, 2, &halo)
            + text(0, 0, &ink)
    }))?;
    Ok(())
}

pub(crate) fn legend<Y>(chart: &mut Panel<'_, Y>, position: SeriesLabelPosition) -> Drawn
where
    Y: Ranged<ValueType = f64>,
{
    chart
        .configure_series_labels()
        .position(position)
        .margin(12)
        .legend_area_size(30)
        .label_font((FONT, LABEL_SIZE - 1).into_font().color(&INK))
        .background_style(WHITE.mix(0.85))
        .border_style(INK.mix(0.3))
        .draw()?;
    Ok(())
}

/// By region count, so that a line goes from left to right.
fn sorted(rows: &[Row]) -> Vec<&Row> {
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort_by_key(|row| row.regions);
    rows
}

fn counts(rows: &[&Row]) -> Vec<f64> {
    rows.iter().map(|row| row.regions as f64).collect()
}

/// Logarithmic, a little wider than what was measured, with labels at the measured counts, which are sorted.
pub(crate) fn region_axis(counts: &[f64]) -> RegionAxis {
    let (first, last) = (counts[0], counts[counts.len() - 1]);
    // A tenth of the axis at either side, and something to see around a single row.
    let room = (last / first).powf(0.1).max(1.6);
    let range = first / room..last * room;
    let ticks = apart(counts, (range.end / range.start).ln());
    range.log_scale().with_key_points(ticks)
}

/// The counts whose labels have space, the smallest and the largest first of all.
fn apart(counts: &[f64], span: f64) -> Vec<f64> {
    let last = counts[counts.len() - 1];
    let far = |a: f64, b: f64| (a / b).ln().abs() / span >= MIN_TICK_GAP;
    let mut ticks: Vec<f64> = Vec::new();
    for count in counts {
        let clear_before = ticks.last().is_none_or(|tick| far(*count, *tick));
        if clear_before && (*count == last || far(*count, last)) {
            ticks.push(*count);
        }
    }
    ticks
}

/// Whole decades around all values.
pub(crate) fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) =
        values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    let bottom = (low * 0.8).log10().floor();
    let top = (high * 1.25).log10().ceil().max(bottom + 1.0);
    10_f64.powf(bottom)..10_f64.powf(top)
}

pub(crate) fn log_ticks(range: &Range<f64>) -> Vec<f64> {
    let decades = range.start.log10().round() as i32..=range.end.log10().round() as i32;
    decades.map(|exponent| 10_f64.powi(exponent)).collect()
}

/// The end of a linear axis: a round number with some room above `value`.
pub(crate) fn nice_above(value: f64) -> f64 {
    let room = value * 1.12;
    let unit = 10_f64.powf(room.log10().floor());
    let steps = [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    let step = steps.iter().find(|step| **step * unit >= room);
    step.unwrap_or(&10.0) * unit
}

/// `1.2M`, `511k`, `64`.
pub(crate) fn short(value: f64) -> String {
    match value {
        v if v >= 999_500.0 => format!("{:.2}M", v / 1e6),
        v if v >= 1_000.0 => format!("{:.0}k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

pub(crate) fn milliseconds(value: f64) -> String {
    match value {
        v if v >= 9.995 => grouped(v.round() as u64),
        v if v >= 0.995 => trimmed(format!("{v:.1}")),
        v if v >= 0.0995 => trimmed(format!("{v:.2}")),
        v => trimmed(format!("{v:.3}")),
    }
}

/// Without zeros that say nothing.
fn trimmed(number: String) -> String {
    number.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{report, row};
    use super::*;

    #[test]
    fn chart_is_labelled_and_names_machine_and_options() {
        let rows = [(1, 7e5), (10, 9e5), (100, 5e5), (1_000, 4e5), (10_000, 2.5e5)];
        let rows = rows.map(|(n, rate)| row(n, rate, n as f64 / 100.0 + 0.3)).into();
        let svg = svg(&report(rows)).unwrap();
        let labels = [
            "regions (logarithmic)",
            "writes per second",
            "milliseconds",
            "p50, ms",
            "p99, ms",
            "writes/s, all regions together",
            "2 cores (Example CPU",
            "3 stores, log: memory",
            "10,000",
        ];
        for label in labels {
            assert!(svg.contains(label), "{label}");
        }
        assert!(svg.contains(r#"width="1200" height="700""#));
    }

    #[test]
    fn one_row_is_a_chart_and_none_is_an_error() {
        assert!(svg(&report(vec![row(1, 0.0, 0.0)])).unwrap().contains("</svg>"));
        let twice = vec![row(7, 10.0, 1.0), row(7, 12.0, 1.0)];
        assert!(svg(&report(twice)).unwrap().contains("</svg>"));
        assert!(svg(&report(Vec::new())).is_err());
    }

    #[test]
    fn crowded_region_counts_keep_first_and_last_label() {
        let counts = [1_000.0, 1_010.0, 1_500.0, 9_900.0, 10_000.0];
        assert_eq!(apart(&counts, 10_f64.ln()), [1_000.0, 1_500.0, 10_000.0]);
        assert_eq!(apart(&[5.0], 1.0), [5.0]);
    }

    #[test]
    fn axes_end_at_round_numbers() {
        assert_eq!(nice_above(511_000.0), 600_000.0);
        assert_eq!(nice_above(950_000.0), 1_200_000.0);
        assert_eq!(nice_above(1.0), 1.2);
        let range = decades([0.4, 88.0].into_iter());
        assert!((range.start - 0.1).abs() < 1e-9 && (range.end - 1_000.0).abs() < 1e-6);
    }
}
