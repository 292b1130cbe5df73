//! All panels on one sheet, for slides and papers.

use super::draw::{Anchor, COLOURED, Drawing, Ink, Shape};
use super::panel::{HEIGHT, LABEL, Look, Prepared, WIDTH, panels};
use super::png::text_width;
use super::run::Run;

/// All panels on one sheet, two beside each other, under a headline and a legend.
pub(super) fn sheet(runs: &[Run], look: &Look) -> Drawing {
    let prepared: Vec<Prepared<'_>> = runs.iter().map(|run| Prepared::new(run, look)).collect();
    let panels = panels(&prepared, look);
    let (gap, title_height) = (16.0, 40.0);
    let width = 2.0 * WIDTH + 3.0 * gap;
    let mut sheet = Drawing { width, ..Drawing::default() };
    let text =
        |at, text: String, size, ink, bold| Shape::Text { at, text, anchor: Anchor::Start, size, ink, bold };
    let title = look.title.clone().unwrap_or_else(|| headline(runs));
    sheet.shapes.push(text([gap, 30.0], fitting(&title, 18.0, width - 2.0 * gap), 18.0, Ink::Text, true));
    let (mut x, mut y) = (gap, 52.0);
    for (number, run) in runs.iter().enumerate().take(COLOURED) {
        let name = fitting(&run.name, LABEL, width - 2.0 * gap - 20.0);
        let wide = text_width(&name, LABEL) + 40.0;
        if x > gap && x + wide > width - gap {
            (x, y) = (gap, y + 18.0);
        }
        let at = [x + 5.0, y - 4.0];
        sheet.shapes.push(Shape::Dot { at, radius: 5.0, ink: Ink::of_run(number), title: String::new() });
        sheet.shapes.push(text([x + 15.0, y], name, LABEL, Ink::Text, false));
        x += wide;
    }
    if runs.len() > COLOURED {
        y += 18.0;
        let more = format!("and {} more runs in grey", runs.len() - COLOURED);
        sheet.shapes.push(text([gap, y], more, LABEL, Ink::Faint, false));
    }
    let cell = HEIGHT + title_height + gap;
    let rows = panels.len().div_ceil(2) as f32;
    for (i, panel) in panels.into_iter().enumerate() {
        let (left, above) = (gap + (i % 2) as f32 * (WIDTH + gap), y + gap + (i / 2) as f32 * cell);
        sheet.shapes.push(text([left + 4.0, above + 14.0], panel.title.to_owned(), 14.0, Ink::Text, true));
        sheet.shapes.push(text([left + 4.0, above + 31.0], panel.note, 11.0, Ink::Faint, false));
        sheet.place(panel.drawing, left, above + title_height);
    }
    sheet.height = y + gap + rows * cell;
    sheet
}

/// Of a report nobody named.
pub(super) fn headline(runs: &[Run]) -> String {
    match runs {
        [run] => format!("Run {}", run.name),
        _ => format!("{} runs", runs.len()),
    }
}

/// As much of a text as fits.
fn fitting(text: &str, size: f32, width: f32) -> String {
    if text_width(text, size) <= width {
        return text.to_owned();
    }
    let mut short: String = String::new();
    for c in text.chars().take(400) {
        if text_width(&format!("{short}{c}…"), size) > width {
            break;
        }
        short.push(c);
    }
    short + "…"
}
