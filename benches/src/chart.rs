//! Line charts as SVG. Pure: points in, text out.
//!
//! They stand in pages with a light and with a dark background, so they have none of their own, and their
//! colours are told apart on either.

use anyhow::{Context, ensure};
use plotters::chart::ChartBuilder;
use plotters::coord::combinators::{BindKeyPoints, IntoLogRange};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::element::{Circle, PathElement};
use plotters::prelude::{DrawingArea, IntoDrawingArea, SVGBackend};
use plotters::series::LineSeries;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, RGBColor, ShapeStyle, TRANSPARENT, TextStyle};

const SIZE_PX: (u32, u32) = (760, 440);
const INK: RGBColor = RGBColor(0x80, 0x86, 0x8f);
/// Height of title and legend.
const HEAD_PX: u32 = 64;
/// About the width of a letter of the legend.
const LETTER_PX: i32 = 7;
/// Of series, in their order.
const PALETTE: [RGBColor; 6] = [
    RGBColor(0x2f, 0x81, 0xf7),
    RGBColor(0xe0, 0x72, 0x1c),
    RGBColor(0x2d, 0xa4, 0x4e),
    RGBColor(0xc9, 0x4b, 0xb0),
    RGBColor(0xb8, 0x8a, 0x00),
    RGBColor(0xd6, 0x40, 0x45),
];
/// Ticks of a linear axis.
const TICKS: usize = 6;

/// How an axis is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From 0 on.
    Linear,
    /// By powers; holds values above 0 only.
    Log,
}

/// One axis: what it shows, with its unit.
#[derive(Clone, Debug)]
pub struct Axis {
    pub label: String,
    pub scale: Scale,
}

/// A named line.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// A picture of some lines. On a logarithmic x axis the ticks are where points are.
#[derive(Clone, Debug)]
pub struct Chart {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

impl Chart {
    /// The chart as an SVG document.
    ///
    /// # Errors
    /// There is no point, more series than colours, or a point an axis cannot hold.
    pub fn to_svg(&self) -> anyhow::Result<String> {
        ensure!(
            self.series.len() <= PALETTE.len(),
            "{}: more than {} series",
            self.title,
            PALETTE.len()
        );
        let xs = self.values(&self.x, |point| point.0)?;
        let ys = self.values(&self.y, |point| point.1)?;
        let (x, y) = (span(&xs, self.x.scale), span(&ys, self.y.scale));
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, SIZE_PX).into_drawing_area();
        let x_linear = || x.0..x.1;
        let x_log = || (x.0..x.1).log_scale().with_key_points(xs.clone());
        let y_linear = || y.0..y.1;
        let y_log = || (y.0..y.1).log_scale().with_key_points(log_ticks(y));
        match (self.x.scale, self.y.scale) {
            (Scale::Linear, Scale::Linear) => self.draw(area, x_linear(), y_linear()),
            (Scale::Linear, Scale::Log) => self.draw(area, x_linear(), y_log()),
            (Scale::Log, Scale::Linear) => self.draw(area, x_log(), y_linear()),
            (Scale::Log, Scale::Log) => self.draw(area, x_log(), y_log()),
        }
        .with_context(|| format!("drawing {:?}", self.title))?;
        Ok(svg)
    }

    /// All values on an axis, rising, each once.
    fn values(&self, axis: &Axis, of: impl Fn(&(f64, f64)) -> f64) -> anyhow::Result<Vec<f64>> {
        let mut values: Vec<f64> = self
            .series
            .iter()
            .flat_map(|series| series.points.iter().map(&of))
            .collect();
        ensure!(!values.is_empty(), "{}: nothing to draw", self.title);
        for value in &values {
            let fits = value.is_finite() && (axis.scale == Scale::Linear || *value > 0.0);
            ensure!(
                fits,
                "{}: {value} has no place on the axis {:?}",
                self.title,
                axis.label
            );
        }
        values.sort_by(f64::total_cmp);
        values.dedup();
        Ok(values)
    }

    fn draw<X, Y>(
        &self,
        area: DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
        x: X,
        y: Y,
    ) -> anyhow::Result<()>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: ValueFormatter<f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let (head, body) = area.split_vertically(HEAD_PX);
        self.draw_head(&head)?;
        let mut chart = ChartBuilder::on(&body)
            .margin(14)
            .x_label_area_size(46)
            .y_label_area_size(76)
            .build_cartesian_2d(x, y)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(INK.mix(0.35))
            .light_line_style(TRANSPARENT)
            .label_style(text(13))
            .axis_desc_style(text(14))
            .x_desc(&self.x.label)
            .y_desc(&self.y.label)
            .x_labels(TICKS)
            .y_labels(TICKS)
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .draw()
            .map_err(failed)?;
        for (series, color) in self.series.iter().zip(PALETTE) {
            let line = ShapeStyle::from(&color).stroke_width(2);
            chart
                .draw_series(LineSeries::new(series.points.iter().copied(), line))
                .map_err(failed)?;
            let dots = series.points.iter().map(|at| Circle::new(*at, 4, color.filled()));
            chart.draw_series(dots).map_err(failed)?;
        }
        area.present().map_err(failed)
    }

    /// Title and legend, above the lines so that they hide none.
    fn draw_head(&self, head: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>) -> anyhow::Result<()> {
        let title = text(20).pos(Pos::new(HPos::Center, VPos::Center));
        head.draw_text(&self.title, &title, (SIZE_PX.0 as i32 / 2, 24))
            .map_err(failed)?;
        let (mut x, y) = (92, 54);
        for (series, color) in self.series.iter().zip(PALETTE) {
            let line = ShapeStyle::from(&color).stroke_width(2);
            head.draw(&PathElement::new([(x, y), (x + 18, y)], line))
                .map_err(failed)?;
            let name = text(13).pos(Pos::new(HPos::Left, VPos::Center));
            head.draw_text(&series.name, &name, (x + 25, y)).map_err(failed)?;
            x += 25 + series.name.chars().count() as i32 * LETTER_PX + 26;
        }
        Ok(())
    }
}

fn text(size_px: i32) -> TextStyle<'static> {
    TextStyle::from(("sans-serif", size_px).into_font()).color(&INK)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

/// From where to where an axis goes so that rising values are inside.
fn span(values: &[f64], scale: Scale) -> (f64, f64) {
    let (first, last) = (values[0], values[values.len() - 1]);
    match scale {
        Scale::Linear => {
            let (low, high) = (first.min(0.0), last.max(0.0));
            // Something above the highest point; and an axis is never empty.
            (
                low,
                if high > low {
                    high + (high - low) * 0.1
                } else {
                    low + 1.0
                },
            )
        }
        Scale::Log => (first / 1.25, last * 1.25),
    }
}

/// 1, 2 and 5 times the powers of ten inside a span, fewer when it is a long one.
fn log_ticks((low, high): (f64, f64)) -> Vec<f64> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let steps: &[f64] = match (high / low).log10() {
        ..1.3 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
        ..3.0 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    decades
        .flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)))
        .filter(|tick| (low..=high).contains(tick))
        .collect()
}

/// A number as it stands at a tick: `0.05`, `1.5`, `64`, `4,096`, `100k`, `10M`.
pub fn short(value: f64) -> String {
    match value.abs() {
        1e9.. => format!("{}G", rounded(value / 1e9)),
        1e6.. => format!("{}M", rounded(value / 1e6)),
        1e4.. => format!("{}k", rounded(value / 1e3)),
        1e3.. => {
            let whole = value.round() as i64;
            format!("{},{:03}", whole / 1_000, (whole % 1_000).abs())
        }
        _ => rounded(value),
    }
}

/// At most three digits that count.
fn rounded(value: f64) -> String {
    let digits = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(x: Scale, y: Scale) -> Chart {
        let axis = |label: &str, scale| Axis {
            label: label.to_owned(),
            scale,
        };
        let series = |name: &str, factor: f64| Series {
            name: name.to_owned(),
            points: [1.0, 8.0, 64.0, 512.0]
                .map(|x: f64| (x, factor * x.sqrt()))
                .to_vec(),
        };
        Chart {
            title: "Puts < gets & \"more\"".to_owned(),
            x: axis("shards", x),
            y: axis("operations per second", y),
            series: vec![series("put", 1_000.0), series("get", 4_000.0)],
        }
    }

    fn texts(svg: &str) -> Vec<String> {
        let document = roxmltree::Document::parse(svg).unwrap_or_else(|error| panic!("{error}:\n{svg}"));
        let texts = document.descendants().filter(|node| node.has_tag_name("text"));
        texts
            .map(|node| node.text().unwrap_or_default().trim().to_owned())
            .collect()
    }

    /// Middles of the circles, in pixels.
    fn dots(svg: &str) -> Vec<(f64, f64)> {
        let document = roxmltree::Document::parse(svg).expect("well-formed");
        let number =
            |node: roxmltree::Node<'_, '_>, name| node.attribute(name).unwrap().parse::<f64>().unwrap();
        let circles = document.descendants().filter(|node| node.has_tag_name("circle"));
        circles
            .map(|node| (number(node, "cx"), number(node, "cy")))
            .collect()
    }

    #[test]
    fn every_scale_gives_a_document_with_all_points_and_words() {
        for x in [Scale::Linear, Scale::Log] {
            for y in [Scale::Linear, Scale::Log] {
                let svg = chart(x, y).to_svg().unwrap();
                assert_eq!(dots(&svg).len(), 8, "{svg}");
                let texts = texts(&svg);
                for word in [
                    "Puts < gets & \"more\"",
                    "shards",
                    "operations per second",
                    "put",
                    "get",
                ] {
                    assert!(
                        texts.iter().any(|text| text == word),
                        "{word} is not among {texts:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn points_stand_where_the_scale_says() {
        let log = dots(&chart(Scale::Log, Scale::Log).to_svg().unwrap());
        let steps: Vec<_> = log[..4].windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        assert!(
            steps.iter().all(|step| (step - steps[0]).abs() <= 1.0),
            "equal factors, equal steps: {steps:?}"
        );
        assert!(
            log[..4].is_sorted_by(|a, b| a.1 > b.1),
            "more is higher up: {log:?}"
        );
        let linear = dots(&chart(Scale::Linear, Scale::Linear).to_svg().unwrap());
        let ratio = (linear[3].0 - linear[0].0) / (linear[2].0 - linear[0].0);
        assert!((7.5..8.8).contains(&ratio), "511 to 63: {ratio}");
    }

    #[test]
    fn a_measured_value_has_its_tick() {
        let texts = texts(&chart(Scale::Log, Scale::Linear).to_svg().unwrap());
        for tick in ["1", "8", "64", "512"] {
            assert!(
                texts.iter().any(|text| text == tick),
                "{tick} is not among {texts:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_an_error() {
        let mut zero = chart(Scale::Log, Scale::Log);
        zero.series[0].points[0].1 = 0.0;
        let error = zero.to_svg().unwrap_err().to_string();
        assert!(
            error.contains("0 has no place on the axis \"operations per second\""),
            "{error}"
        );
        let mut empty = chart(Scale::Linear, Scale::Linear);
        empty.series.clear();
        assert!(empty.to_svg().is_err());
        let mut nan = chart(Scale::Linear, Scale::Linear);
        nan.series[0].points[0].1 = f64::NAN;
        assert!(nan.to_svg().is_err());
    }

    #[test]
    fn one_point_and_nothing_but_zero_are_charts_too() {
        for scale in [Scale::Linear, Scale::Log] {
            let mut one = chart(scale, Scale::Linear);
            one.series.truncate(1);
            one.series[0].points = vec![(3.0, 0.0)];
            assert_eq!(dots(&one.to_svg().unwrap()).len(), 1);
        }
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (0.05, "0.05"),
            (1.5, "1.5"),
            (64.0, "64"),
            (150.0, "150"),
            (4_096.0, "4,096"),
            (1_000.0, "1,000"),
            (100_000.0, "100k"),
            (12_500.0, "12.5k"),
            (1e7, "10M"),
            (-2.0, "-2"),
        ];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
    }
}
