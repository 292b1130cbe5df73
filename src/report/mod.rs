//! Reports of runs: what `metrics.jsonl` and `config.json` say, as a page, a drawing or a list.
//!
//! ```text
//! run.rs   metrics.jsonl, config.json → columns of numbers, held-out points, marks
//! status.rs  the same folder → running, finished, stopped or crashed (for `elektron runs`)
//! series.rs  columns → smoothed and down-sampled lines
//! bands.rs   what earlier runs of a preset had, and whether a run is within it
//! kinds.rs   which figures are drawn, and what each is compared with
//! panel.rs   curves with what they are compared with;  axis.rs  ranges and ticks
//! draw.rs    shapes → SVG;  png.rs  shapes → PNG;  sheet.rs  all panels on one;  page.rs  everything → one HTML page
//! ```
//!
//! Nothing here trains or needs a model, so a report can be made beside a run and on any machine.

mod axis;
pub mod bands;
mod draw;
mod kinds;
mod page;
mod panel;
mod png;
pub mod run;
mod series;
mod sheet;
pub mod status;

pub use panel::{Axis, Look};
pub use run::Run;

/// One page with everything: no other file is needed to look at it.
pub fn html(runs: &[Run], look: &Look) -> String {
    page::html(runs, look)
}

/// All panels as one drawing.
pub fn svg(runs: &[Run], look: &Look) -> String {
    draw::document(&sheet::sheet(runs, look))
}

/// The same as pixels.
pub fn png(runs: &[Run], look: &Look) -> crate::Result<Vec<u8>> {
    png::encode(&sheet::sheet(runs, look))
}

/// `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A table's cells and an alternative text: four digits are all that a log line is good for.
fn short(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "–".to_owned(),
        0.0 => "0".to_owned(),
        1000.0.. => thousands(value.abs().round() as u64),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.3}"),
        0.001.. => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_in_words() {
        assert_eq!(super::thousands(0), "0");
        assert_eq!(super::thousands(999), "999");
        assert_eq!(super::thousands(1_234_567), "1,234,567");
        assert_eq!(super::short(6.23456), "6.235");
        assert_eq!(super::short(5e-5), "5.00e-5");
        assert_eq!(super::short(f64::NAN), "–");
    }
}
