//! **What**: plots as SVG and PNG: percentile curve, latency over time, throughput against latency.
//!
//! **Invariants**: latency axes are logarithmic and shared by all lines of a plot. Both formats come from one drawing.
//!
//! **Never**: a line without its name; a font that is not on the machine guessed at.
//!
//! **See**: `results.rs`.

use crate::Error;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use std::path::Path;

/// One line of a plot.
pub struct Line {
    /// What it shows.
    pub name: String,
    /// Points, by x.
    pub points: Vec<(f64, f64)>,
}

/// One plot.
pub struct Plot {
    /// Above it.
    pub title: String,
    /// What x is, and how its values are written.
    pub x: Axis,
    /// The lines. y is microseconds.
    pub lines: Vec<Line>,
}

/// What x is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Quantiles, drawn by their nines.
    Nines,
    /// Seconds since the start.
    Seconds,
    /// Deliveries per second.
    Rate,
}

const SIZE: (u32, u32) = (960, 540);
/// Readable beside each other, also for most who do not see all colours.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
    RGBColor(160, 120, 40),
];
/// Where Debian, Fedora and Arch keep a font that everybody has.
const FONTS: [&str; 3] = [
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf",
    "/usr/share/fonts/TTF/DejaVuSans.ttf",
];

/// Loads the font of all plots; once per process.
pub fn load_font() -> Result<(), Error> {
    let bytes = FONTS.iter().find_map(|path| std::fs::read(path).ok());
    let bytes = bytes.ok_or("plots need the font DejaVu Sans; scripts/setup.sh bench installs it")?;
    // The library keeps fonts for the life of the process and asks for them by reference.
    plotters::style::register_font("sans-serif", FontStyle::Normal, Box::leak(bytes.into_boxed_slice()))
        .map_err(|_| "the font cannot be read".into())
}

impl Plot {
    /// Draws `NAME.svg` and `NAME.png` into a folder.
    pub fn draw(&self, folder: &Path, name: &str) -> Result<(), Error> {
        let path = |end: &str| folder.join(format!("{name}.{end}"));
        self.draw_on(SVGBackend::new(&path("svg"), SIZE).into_drawing_area())?;
        self.draw_on(BitMapBackend::new(&path("png"), SIZE).into_drawing_area())
    }

    fn draw_on<B: DrawingBackend>(&self, area: DrawingArea<B, Shift>) -> Result<(), Error>
    where
        B::ErrorType: 'static,
    {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x = bounds(points().map(|point| self.place(point.0))).ok_or("a plot without points")?;
        let y = bounds(points().map(|point| point.1.max(0.1))).ok_or("a plot without points")?;
        let y = (y.0 * 0.8)..(y.1 * 1.25).max(y.0 * 2.0);
        match self.x {
            Axis::Rate => self.lines_on(area, ((x.0 * 0.8).max(1.0)..(x.1 * 1.25).max(2.0)).log_scale(), y),
            Axis::Nines | Axis::Seconds => self.lines_on(area, x.0.min(0.0)..x.1.max(1.0), y),
        }
    }

    fn lines_on<B, X>(&self, area: DrawingArea<B, Shift>, x: X, y: std::ops::Range<f64>) -> Result<(), Error>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
        X: AsRangedCoord<Value = f64>,
        X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let say = |error: DrawingAreaErrorKind<B::ErrorType>| format!("cannot draw: {error}");
        area.fill(&WHITE).map_err(say)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(72)
            .build_cartesian_2d(x, y.log_scale())
            .map_err(say)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(self.x.name())
            .y_desc("latency, us")
            .x_label_formatter(&|value| self.x.label(*value))
            .y_label_formatter(&|value| number(*value))
            .draw()
            .map_err(say)?;
        for (index, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let points = line.points.iter().map(|(x, y)| (self.place(*x), y.max(0.1)));
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(say)?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 13))
            .draw()
            .map_err(say)?;
        area.present().map_err(say)?;
        Ok(())
    }

    /// Where a value of x is drawn.
    fn place(&self, x: f64) -> f64 {
        match self.x {
            Axis::Nines => -(1.0 - x).max(1e-9).log10(),
            Axis::Seconds | Axis::Rate => x,
        }
    }
}

impl Axis {
    fn name(self) -> &'static str {
        match self {
            Axis::Nines => "percentile",
            Axis::Seconds => "seconds",
            Axis::Rate => "deliveries per second",
        }
    }

    fn label(self, value: f64) -> String {
        match self {
            Axis::Nines if (value - value.round()).abs() > 0.01 => String::new(),
            Axis::Nines => format!("{}", (1.0 - 10f64.powf(-value.round())) * 100.0),
            Axis::Seconds => format!("{value:.1}"),
            Axis::Rate => number(value),
        }
    }
}

/// `1.5k`, `20`, `3M`.
fn number(value: f64) -> String {
    match value {
        _ if value >= 1e6 => format!("{}M", value / 1e6),
        _ if value >= 1e3 => format!("{}k", value / 1e3),
        _ => format!("{value}"),
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |bounds, value| {
        let (low, high) = bounds.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}
