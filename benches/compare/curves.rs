//! Curves as SVG: a few points, evenly spaced along the axis, with their values written beside them.

use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Readable on white and on black, and apart for most of those who see colors otherwise.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#777777"];

/// A line with its name: a value for each place on the axis; NaN leaves a gap.
pub(crate) struct Line {
    pub name: String,
    pub values: Vec<f64>,
}

/// Draws the lines over the places named `at`.
pub(crate) fn draw(title: &str, axis: &str, at: &[String], lines: &[Line]) -> String {
    let most = lines.iter().flat_map(|line| &line.values).copied().filter(|value| value.is_finite());
    let top = round_up(most.fold(0.0, f64::max));
    let x = |nth: usize| LEFT + (WIDTH - LEFT - RIGHT) * nth as f64 / (at.len().max(2) - 1) as f64;
    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"11\" fill=\"#444\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"13\" font-weight=\"bold\">{title}</text>\n"
    );
    for step in 0..=4 {
        let value = top * f64::from(step) / 4.0;
        let (y, end) = (y(value), WIDTH - RIGHT);
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{end}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            short(value)
        );
    }
    for (nth, at) in at.iter().enumerate() {
        let (x, y) = (x(nth), HEIGHT - BOTTOM + 18.0);
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{at}</text>");
    }
    let middle = (LEFT + WIDTH - RIGHT) / 2.0;
    let _ =
        writeln!(svg, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{axis}</text>", HEIGHT - 10.0);
    for (nth, line) in lines.iter().enumerate() {
        let color = COLOURS[nth % COLOURS.len()];
        let (mut path, mut pen) = (String::new(), 'M');
        for (nth, value) in line.values.iter().enumerate() {
            if value.is_finite() {
                let (x, y) = (x(nth), y(*value));
                let _ = write!(path, "{pen}{x:.1} {y:.1}");
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"><title>{} {}: {}</title></circle>",
                    line.name,
                    at.get(nth).map_or("", String::as_str),
                    short(*value)
                );
            }
            pen = if value.is_finite() { 'L' } else { 'M' };
        }
        let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>");
        let (x, y) = (WIDTH - RIGHT + 14.0, TOP + 10.0 + 18.0 * nth as f64);
        let last = line.values.last().copied().filter(|value| value.is_finite()).map_or(String::new(), short);
        let _ = writeln!(
            svg,
            "<path d=\"M{x} {:.1}h12\" stroke=\"{color}\" stroke-width=\"2\"/><text x=\"{:.1}\" y=\"{:.1}\">{} \
             {last}</text>",
            y - 4.0,
            x + 16.0,
            y,
            line.name
        );
    }
    svg + "</svg>\n"
}

/// The next of 1, 2, 2.5, 4, 5, 8 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1e-9).log10().floor());
    [1.0, 2.0, 2.5, 4.0, 5.0, 8.0, 10.0]
        .map(|step| step * power)
        .into_iter()
        .find(|step| *step >= value)
        .unwrap_or(value)
}

fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 || value == 0.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
