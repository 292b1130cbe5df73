//! A drawing is a list of shapes; here it becomes SVG. Colours are classes, so that a page can be light or dark.

use std::fmt::Write;

/// What a shape is drawn with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    /// One of the runs that have a colour.
    Run(usize),
    /// The runs beyond those.
    Other,
    Text,
    Faint,
    Grid,
    Band,
    Surface,
}

/// Runs that have a colour of their own: more cannot be told apart.
pub(super) const COLOURED: usize = 8;

/// Light and dark colours of the runs: neighbours differ for colour-blind readers too.
const RUNS: [[u32; 2]; COLOURED] = [
    [0x2a78d6, 0x3987e5],
    [0xeb6834, 0xe0703f],
    [0x1baf7a, 0x1fa97a],
    [0x8a5bd0, 0xa08be8],
    [0xb98200, 0xcf9516],
    [0xd9488b, 0xdf6a9f],
    [0x0e8f9e, 0x2aa7b5],
    [0x7a6a53, 0xa8967b],
];

impl Ink {
    /// Of a run by its place.
    pub(super) fn of_run(run: usize) -> Self {
        if run < COLOURED { Self::Run(run) } else { Self::Other }
    }

    /// Light and dark.
    pub(super) fn colours(self) -> [u32; 2] {
        match self {
            Self::Run(run) => RUNS[run % COLOURED],
            Self::Other => [0xb4b2a9, 0x5f5e59],
            Self::Text => [0x1d1d1b, 0xf2f1ec],
            Self::Faint => [0x5c5b56, 0xb3b1a8],
            Self::Grid => [0xe3e2db, 0x34332f],
            Self::Band => [0x8b8a82, 0x8b8a82],
            Self::Surface => [0xfcfcfa, 0x191918],
        }
    }

    pub(super) fn class(self) -> String {
        match self {
            Self::Run(run) => format!("r{run}"),
            Self::Other => "other".to_owned(),
            Self::Text => "text".to_owned(),
            Self::Faint => "faint".to_owned(),
            Self::Grid => "grid".to_owned(),
            Self::Band => "band".to_owned(),
            Self::Surface => "surface".to_owned(),
        }
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        let others = [Self::Other, Self::Text, Self::Faint, Self::Grid, Self::Band, Self::Surface];
        (0..COLOURED).map(Self::Run).chain(others)
    }
}

/// Where a text stands from its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A point of a drawing: to the right and down, in pixels.
pub(super) type Point = [f32; 2];

/// How a line is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stroke {
    pub(super) ink: Ink,
    pub(super) width: f32,
    pub(super) opacity: f32,
    pub(super) dashed: bool,
    /// Whether the readout under the pointer reads this line: it belongs to this run.
    pub(super) read: Option<usize>,
}

#[derive(Clone, Debug)]
pub(super) enum Shape {
    Line { points: Vec<Point>, stroke: Stroke },
    Area { points: Vec<Point>, ink: Ink, opacity: f32, title: String },
    Dot { at: Point, radius: f32, ink: Ink, title: String },
    Text { at: Point, text: String, anchor: Anchor, size: f32, ink: Ink, bold: bool },
}

/// Shapes on a sheet.
#[derive(Clone, Debug, Default)]
pub(super) struct Drawing {
    pub(super) width: f32,
    pub(super) height: f32,
    pub(super) shapes: Vec<Shape>,
}

impl Drawing {
    /// Draws another one at a place of this.
    pub(super) fn place(&mut self, other: Drawing, dx: f32, dy: f32) {
        let shift = |p: &mut Point| *p = [p[0] + dx, p[1] + dy];
        for mut shape in other.shapes {
            match &mut shape {
                Shape::Line { points, .. } | Shape::Area { points, .. } => points.iter_mut().for_each(shift),
                Shape::Dot { at, .. } | Shape::Text { at, .. } => shift(at),
            }
            self.shapes.push(shape);
        }
    }
}

/// Text for XML and HTML, in content and in quoted values. Characters that XML forbids become U+FFFD.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            '\t' | '\n' | '\r' => out.push(' '),
            '\0'..='\x1f' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

/// The rules of every ink: `.l-…` for lines, `.f-…` for fills; dark where the reader wants it so.
pub(super) fn stylesheet() -> String {
    let rules = |shade: usize| -> String {
        Ink::all()
            .map(|ink| {
                let (name, colour) = (ink.class(), ink.colours()[shade]);
                format!(".l-{name}{{fill:none;stroke:#{colour:06x}}}.f-{name}{{fill:#{colour:06x}}}")
            })
            .collect()
    };
    format!("{}@media (prefers-color-scheme:dark){{{}}}", rules(0), rules(1))
}

/// The elements of a drawing's shapes.
pub(super) fn elements(drawing: &Drawing) -> String {
    let mut out = String::new();
    for shape in &drawing.shapes {
        // Writing to a string cannot fail.
        let _ = element(&mut out, shape);
    }
    out
}

fn element(out: &mut String, shape: &Shape) -> std::fmt::Result {
    match shape {
        Shape::Line { points, stroke } => {
            write!(out, "<polyline class=\"l-{}", stroke.ink.class())?;
            if let Some(run) = stroke.read {
                write!(out, " read\" data-run=\"{run}")?;
            }
            write!(out, "\" stroke-width=\"{}\"", stroke.width)?;
            if stroke.opacity < 1.0 {
                write!(out, " opacity=\"{}\"", stroke.opacity)?;
            }
            if stroke.dashed {
                write!(out, " stroke-dasharray=\"5 3\"")?;
            }
            write!(out, " stroke-linejoin=\"round\" points=\"")?;
            coordinates(out, points)?;
            writeln!(out, "\"/>")
        }
        Shape::Area { points, ink, opacity, title } => {
            write!(out, "<polygon class=\"f-{}\" opacity=\"{opacity}\" points=\"", ink.class())?;
            coordinates(out, points)?;
            writeln!(out, "\">{}</polygon>", tip(title))
        }
        Shape::Dot { at, radius, ink, title } => writeln!(
            out,
            "<circle class=\"f-{}\" cx=\"{:.1}\" cy=\"{:.2}\" r=\"{radius}\">{}</circle>",
            ink.class(),
            at[0],
            at[1],
            tip(title)
        ),
        Shape::Text { at, text, anchor, size, ink, bold } => {
            let anchor = match anchor {
                Anchor::Start => "",
                Anchor::Middle => " text-anchor=\"middle\"",
                Anchor::End => " text-anchor=\"end\"",
            };
            let bold = if *bold { " font-weight=\"600\"" } else { "" };
            writeln!(
                out,
                "<text class=\"f-{}\" x=\"{:.1}\" y=\"{:.1}\" font-size=\"{size}\"{anchor}{bold}>{}</text>",
                ink.class(),
                at[0],
                at[1],
                escape(text)
            )
        }
    }
}

fn coordinates(out: &mut String, points: &[Point]) -> std::fmt::Result {
    for (i, [x, y]) in points.iter().enumerate() {
        let space = if i > 0 { " " } else { "" };
        write!(out, "{space}{x:.1},{y:.2}")?;
    }
    Ok(())
}

/// What a pointer that rests there shows.
fn tip(title: &str) -> String {
    if title.is_empty() { String::new() } else { format!("<title>{}</title>", escape(title)) }
}

/// A file of its own.
pub(super) fn document(drawing: &Drawing) -> String {
    let (width, height) = (drawing.width, drawing.height);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"DejaVu Sans, Verdana, sans-serif\">\n<style>{}</style>\n\
         <rect class=\"f-surface\" width=\"{width}\" height=\"{height}\"/>\n{}</svg>\n",
        stylesheet(),
        elements(drawing)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_escapes() {
        assert_eq!(
            escape("<script>\"a\" & 'b'\n\x01"),
            "&lt;script&gt;&quot;a&quot; &amp; &#39;b&#39; \u{fffd}"
        );
    }
}
