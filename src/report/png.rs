//! Shapes → pixels, by `tiny-skia`; letters are outlines of the embedded font, because a machine may have none.
//!
//! The font is DejaVu Sans, cut down to Latin (`font.ttf`, its licence beside it); what it lacks is drawn as U+FFFD.

use tiny_skia::{Color, FillRule, Paint, PathBuilder, Pixmap, Stroke as Pen, StrokeDash, Transform};
use ttf_parser::{Face, GlyphId, OutlineBuilder};

use super::draw::{Anchor, Drawing, Ink, Point, Shape};
use crate::{Error, Result};

const FONT: &[u8] = include_bytes!("font.ttf");
/// Pixels of the picture a pixel of the drawing.
const SCALE: f32 = 2.0;

/// A light picture, as for paper.
pub(super) fn encode(drawing: &Drawing) -> Result<Vec<u8>> {
    let failed =
        |what: &dyn std::fmt::Display| Error::argument(format!("the picture cannot be drawn: {what}"));
    let face = Face::parse(FONT, 0).map_err(|e| failed(&e))?;
    let (width, height) = ((drawing.width * SCALE).ceil() as u32, (drawing.height * SCALE).ceil() as u32);
    let mut pixels = Pixmap::new(width, height).ok_or_else(|| failed(&"it has no size"))?;
    let [surface, _] = Ink::Surface.colours();
    pixels.fill(Color::from_rgba8((surface >> 16) as u8, (surface >> 8) as u8, surface as u8, 255));
    for shape in &drawing.shapes {
        paint(&mut pixels, &face, shape);
    }
    pixels.encode_png().map_err(|e| failed(&e))
}

fn colour(ink: Ink, opacity: f32) -> Paint<'static> {
    let [light, _] = ink.colours();
    let mut paint = Paint::default();
    let alpha = (opacity * 255.0).round() as u8;
    paint.set_color_rgba8((light >> 16) as u8, (light >> 8) as u8, light as u8, alpha);
    paint
}

fn paint(pixels: &mut Pixmap, face: &Face<'_>, shape: &Shape) {
    let scale = Transform::from_scale(SCALE, SCALE);
    match shape {
        Shape::Line { points, stroke } => {
            let dash = if stroke.dashed { StrokeDash::new(vec![5.0, 3.0], 0.0) } else { None };
            let pen =
                Pen { width: stroke.width, dash, line_join: tiny_skia::LineJoin::Round, ..Pen::default() };
            if let Some(path) = outline(points, false) {
                pixels.stroke_path(&path, &colour(stroke.ink, stroke.opacity), &pen, scale, None);
            }
        }
        Shape::Area { points, ink, opacity, .. } => {
            if let Some(path) = outline(points, true) {
                pixels.fill_path(&path, &colour(*ink, *opacity), FillRule::Winding, scale, None);
            }
        }
        Shape::Dot { at, radius, ink, .. } => {
            if let Some(path) = PathBuilder::from_circle(at[0], at[1], *radius) {
                pixels.fill_path(&path, &colour(*ink, 1.0), FillRule::Winding, scale, None);
            }
        }
        Shape::Text { at, text, anchor, size, ink, bold } => {
            let Some(path) = letters(face, text, *at, *anchor, *size) else { return };
            pixels.fill_path(&path, &colour(*ink, 1.0), FillRule::Winding, scale, None);
            if *bold {
                let pen = Pen { width: 0.4, ..Pen::default() };
                pixels.stroke_path(&path, &colour(*ink, 1.0), &pen, scale, None);
            }
        }
    }
}

fn outline(points: &[Point], close: bool) -> Option<tiny_skia::Path> {
    let (first, rest) = points.split_first()?;
    let mut path = PathBuilder::new();
    path.move_to(first[0], first[1]);
    rest.iter().for_each(|p| path.line_to(p[0], p[1]));
    if close {
        path.close();
    }
    path.finish()
}

fn glyph(face: &Face<'_>, c: char) -> GlyphId {
    face.glyph_index(c).or_else(|| face.glyph_index('\u{fffd}')).unwrap_or(GlyphId(0))
}

/// Width of a text in pixels, as the embedded font has it.
pub(super) fn text_width(text: &str, size: f32) -> f32 {
    let Ok(face) = Face::parse(FONT, 0) else { return 0.0 };
    width(&face, text) * size / f32::from(face.units_per_em())
}

fn width(face: &Face<'_>, text: &str) -> f32 {
    text.chars().map(|c| f32::from(face.glyph_hor_advance(glyph(face, c)).unwrap_or(0))).sum()
}

fn letters(face: &Face<'_>, text: &str, at: Point, anchor: Anchor, size: f32) -> Option<tiny_skia::Path> {
    let unit = size / f32::from(face.units_per_em());
    let back = match anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => 0.5,
        Anchor::End => 1.0,
    };
    let mut pen =
        Outline { path: PathBuilder::new(), x: at[0] - back * unit * width(face, text), y: at[1], unit };
    for c in text.chars() {
        let id = glyph(face, c);
        face.outline_glyph(id, &mut pen);
        pen.x += unit * f32::from(face.glyph_hor_advance(id).unwrap_or(0));
    }
    pen.path.finish()
}

/// A font's outlines have y upward, in units of the font.
struct Outline {
    path: PathBuilder,
    x: f32,
    y: f32,
    unit: f32,
}

impl Outline {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + self.unit * x, self.y - self.unit * y)
    }
}

impl OutlineBuilder for Outline {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}
