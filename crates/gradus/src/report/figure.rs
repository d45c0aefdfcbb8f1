//! A figure: curves over steps, drawn by plotters into SVG.
//!
//! Plotters places things on whole pixels. Figures are therefore drawn ten times as large and scaled down by the SVG's
//! view box, which makes tenths of pixels of them.

use super::axis::Axis;
use super::ink::{self, Ink};
use super::series::{Point, finite_runs, thinned};
use crate::wording::escaped;
use gradus_error::{Error, Result};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::fmt::Display;
use std::ops::Range;

/// Pixels of the drawing for one of the figure.
const SCALE: u32 = 10;

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stroke {
    /// A thin line, for what stands behind.
    Thin,
    /// A line.
    Line,
    /// A thin line with a dot at each value.
    Dots,
}

/// One curve.
#[derive(Debug, Clone)]
pub struct Curve {
    /// Its name in the legend; empty for none.
    pub label: String,
    /// Its colour.
    pub ink: Ink,
    /// How it is drawn.
    pub stroke: Stroke,
    /// Its points, by growing x; values that are not finite part it.
    pub points: Vec<Point>,
}

/// A figure.
#[derive(Debug, Clone)]
pub struct Figure {
    /// What it shows.
    pub title: String,
    /// Under the horizontal axis; empty for none.
    pub x_label: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Steps.
    pub x: Axis,
    /// Values.
    pub y: Axis,
    /// From back to front.
    pub curves: Vec<Curve>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl Figure {
    /// The figure as an SVG element without a style sheet of its own, for a page that has one.
    ///
    /// # Errors
    /// `Internal` if plotters cannot draw it.
    pub fn draw(&self) -> Result<String> {
        let mut drawing = String::new();
        {
            let size = (self.width * SCALE, self.height * SCALE);
            let area = SVGBackend::with_string(&mut drawing, size).into_drawing_area();
            self.curves_and_axes(&area)?;
            self.heading(&area)?;
            area.present().map_err(cannot_draw)?;
        }
        let rounded = "<polyline stroke-linejoin=\"round\" stroke-linecap=\"round\" ";
        let body = drawing.split_once(">\n").map_or("", |(_, body)| body).replace("<polyline ", rounded);
        let (width, height) = (self.width * SCALE, self.height * SCALE);
        let label = escaped(&self.title);
        Ok(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
             aria-label=\"{label}\">\n{}",
            ink::with_classes(&body)
        ))
    }

    /// The figure as a file of its own, with its size, its paper and its colours.
    ///
    /// # Errors
    /// As [`Figure::draw`].
    pub fn draw_alone(&self) -> Result<String> {
        let (width, height) = (self.width, self.height);
        let size = format!("<svg width=\"{width}\" height=\"{height}\" ");
        let paper = "<rect class=\"paper\" width=\"100%\" height=\"100%\" fill=\"#FFFFFF\"/>";
        let opened = format!(">\n<style>{}</style>\n{paper}\n", ink::figure_style());
        Ok(self.draw()?.replacen("<svg ", &size, 1).replacen(">\n", &opened, 1))
    }

    fn curves_and_axes(&self, area: &Area<'_>) -> Result<()> {
        let bottom = if self.x_label.is_empty() { 26 } else { 44 };
        let mut chart = ChartBuilder::on(area)
            .margin_top(40 * SCALE)
            .margin_right(20 * SCALE)
            .set_label_area_size(LabelAreaPosition::Left, 52 * SCALE)
            .set_label_area_size(LabelAreaPosition::Bottom, bottom * SCALE)
            .build_cartesian_2d(self.x.clone(), self.y.clone())
            .map_err(cannot_draw)?;
        let line = |ink: Ink, tenths: u32| ink.light().stroke_width(tenths * SCALE / 10);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(line(Ink::Grid, 10))
            .light_line_style(TRANSPARENT)
            .axis_style(line(Ink::Grid, 10))
            .set_all_tick_mark_size(4 * SCALE)
            .label_style(text(Ink::Muted, 11.0))
            .x_desc(self.x_label.clone())
            .draw()
            .map_err(cannot_draw)?;
        for curve in &self.curves {
            let style = match curve.stroke {
                Stroke::Thin => line(curve.ink, 10),
                Stroke::Line => line(curve.ink, 20),
                Stroke::Dots => line(curve.ink, 12),
            };
            let radius = if curve.stroke == Stroke::Dots { 30 } else { 20 } * SCALE / 10;
            for run in finite_runs(&curve.points) {
                let run = thinned(&run);
                // A curve of one point would be invisible.
                if curve.stroke == Stroke::Dots || run.len() == 1 {
                    let dots =
                        run.iter().map(|point| Circle::new(*point, radius, curve.ink.light().filled()));
                    chart.draw_series(dots).map_err(cannot_draw)?;
                }
                chart.draw_series(LineSeries::new(run, style)).map_err(cannot_draw)?;
            }
        }
        Ok(())
    }

    /// Title on the left, legend on the right.
    fn heading(&self, area: &Area<'_>) -> Result<()> {
        let scale = SCALE as i32;
        let plain = text(Ink::Text, 13.0);
        let font = plain.font.style(FontStyle::Bold);
        let title = TextStyle { font, pos: Pos::new(HPos::Left, VPos::Center), ..plain };
        area.draw(&Text::new(self.title.clone(), (10 * scale, 18 * scale), title)).map_err(cannot_draw)?;
        let mut right = (self.width as i32 - 20) * scale;
        for curve in self.curves.iter().rev().filter(|curve| !curve.label.is_empty()) {
            let style = TextStyle { pos: Pos::new(HPos::Right, VPos::Center), ..text(Ink::Muted, 11.0) };
            area.draw(&Text::new(curve.label.clone(), (right, 18 * scale), style)).map_err(cannot_draw)?;
            // A letter of this size is six to seven pixels wide; the writer of SVG cannot know better.
            let middle = right - (curve.label.chars().count() as i32 * 7 + 14) * scale;
            let y = 18 * scale;
            let mark = PathElement::new(
                vec![(middle - 9 * scale, y), (middle + 9 * scale, y)],
                curve.ink.light().stroke_width(if curve.stroke == Stroke::Line { 2 } else { 1 } * SCALE),
            );
            area.draw(&mark).map_err(cannot_draw)?;
            if curve.stroke == Stroke::Dots {
                area.draw(&Circle::new((middle, y), 3 * scale, curve.ink.light().filled()))
                    .map_err(cannot_draw)?;
            }
            right = middle - 28 * scale;
        }
        Ok(())
    }
}

/// An axis is its own coordinate: plotters asks it where values lie, where ticks are and how they are written.
impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        from + (self.place(*value) * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.0..self.range.1
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        value.to_string()
    }

    fn format_ext(&self, value: &f64) -> String {
        self.label(*value)
    }
}

/// Letters of `pixels`; plotters writes a font's size divided by 1.24.
fn text(ink: Ink, pixels: f64) -> TextStyle<'static> {
    ("sans-serif", pixels * 1.24 * f64::from(SCALE)).into_font().color(&ink.light())
}

fn cannot_draw(error: impl Display) -> Error {
    Error::internal(format!("cannot draw a figure: {error}"))
}

#[cfg(test)]
mod tests {
    use super::super::axis::{Spread, Unit};
    use super::*;

    fn figure(points: Vec<Point>) -> Figure {
        let xs = points.iter().map(|point| point.0);
        let ys = points.iter().map(|point| point.1);
        Figure {
            title: "Loss of <a & b>".into(),
            x_label: "step".into(),
            width: 600,
            height: 300,
            x: Axis::over(xs, Spread::Linear, Unit::Plain, 5),
            y: Axis::over(ys, Spread::Logarithmic, Unit::Plain, 5),
            curves: vec![Curve {
                label: "each step".into(),
                ink: Ink::First,
                stroke: Stroke::Line,
                points: points.clone(),
            }],
        }
    }

    #[test]
    fn a_figure_is_text_and_lines() {
        let svg =
            figure((1..100).map(|x| (f64::from(x), 9.0 / f64::from(x))).collect()).draw_alone().unwrap();
        assert!(svg.starts_with("<svg width=\"600\" height=\"300\" ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<svg").count(), 1);
        assert!(
            svg.contains("<polyline") && svg.contains(">\neach step\n</text>") && svg.contains(">\nstep\n")
        );
        assert!(svg.contains("Loss of &lt;a &amp; b&gt;") && !svg.contains("<a &"));
        assert!(svg.contains("class=\"s-first\"") && svg.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn one_point_is_a_dot_and_none_is_an_empty_figure() {
        assert!(figure(vec![(1.0, 5.0)]).draw().unwrap().contains("<circle"));
        assert!(figure(vec![(1.0, f64::NAN)]).draw().unwrap().ends_with("</svg>\n"));
        assert!(figure(Vec::new()).draw().unwrap().ends_with("</svg>\n"));
    }
}
