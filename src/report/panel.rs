//! Which curves are drawn, with what they are compared to, and how they are laid out.
//!
//! A raw line stays visible behind its smoothed one; held-out metrics are dots; spikes and skipped steps stand at the
//! upper edge. A dashed line is what a model has that knows nothing: the discriminator is measured against always
//! saying "original".

use super::axis::Scale;
use super::bands::Reference;
use super::draw::{Anchor, COLOURED, Drawing, Ink, Point, Shape, Stroke};
use super::kinds::{Baseline, KINDS, Kind};
use super::png::text_width;
use super::run::{Mark, Metric, Run};
use super::series::{pieces, smooth, usual_window};
use super::{short, thousands};

/// What runs are laid beside each other by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Axis {
    /// Updates.
    #[default]
    Step,
    /// Tokens seen: fair where batches differ.
    Tokens,
}

/// How a report shall look.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// The x axis.
    pub axis: Axis,
    /// Lines of the log in a smoothed value; none for a fortieth of the run.
    pub window: Option<usize>,
    /// A headline.
    pub title: Option<String>,
}

/// A chart that is laid out.
pub(super) struct Panel {
    pub(super) title: &'static str,
    pub(super) note: String,
    /// In words, for who cannot see it.
    pub(super) summary: String,
    pub(super) drawing: Drawing,
    pub(super) x: Scale,
    pub(super) y: Scale,
}

pub(super) const WIDTH: f32 = 440.0;
pub(super) const HEIGHT: f32 = 230.0;
/// Edges of the plot: left, top, right, bottom.
pub(super) const PLOT: [f32; 4] = [46.0, 14.0, WIDTH - 12.0, HEIGHT - 26.0];
/// Size of labels.
pub(super) const LABEL: f32 = 12.0;

/// A run's x values, and its columns smoothed as asked.
pub(super) struct Prepared<'a> {
    pub(super) run: &'a Run,
    xs: Vec<f64>,
    window: usize,
}

impl<'a> Prepared<'a> {
    pub(super) fn new(run: &'a Run, look: &Look) -> Self {
        let xs = match look.axis {
            Axis::Step => run.steps.iter().map(|&step| step as f64).collect(),
            Axis::Tokens => run.tokens.clone(),
        };
        Self { run, xs, window: look.window.unwrap_or(usual_window(run.steps.len())) }
    }

    pub(super) fn smoothed(&self, metric: Metric) -> Vec<f64> {
        let column = self.run.column(metric);
        if metric != Metric::GradNorm {
            return smooth(column, self.window);
        }
        // It is shown by its logarithm, in which one spike weighs no more than it looks.
        let logarithms: Vec<f64> = column.iter().map(|x| x.ln()).collect();
        smooth(&logarithms, self.window).into_iter().map(f64::exp).collect()
    }

    fn x_of(&self, step: u64, axis: Axis) -> Option<f64> {
        match axis {
            Axis::Step => Some(step as f64),
            // A held-out point may stand a little behind the last line.
            Axis::Tokens => self.run.tokens_at(step as f64).or_else(|| self.xs.last().copied()),
        }
        .filter(|x| x.is_finite())
    }

    fn baseline(&self, baseline: Baseline) -> Option<Vec<f64>> {
        let constant = |value: f64| Some(vec![value; self.xs.len()]);
        let of_rate = |metric: Metric, of: fn(f64) -> f64| {
            Some(self.smoothed(metric).into_iter().map(of).collect::<Vec<f64>>())
        };
        let unigram = self.run.unigram;
        match baseline {
            Baseline::None => None,
            Baseline::UnigramLoss => constant(unigram?.0),
            Baseline::UnigramAccuracy => constant(unigram?.1),
            Baseline::Half => constant(0.5),
            Baseline::Original => of_rate(Metric::FakeRate, |rate| 1.0 - rate),
            Baseline::OriginalOfAll => of_rate(Metric::AllFakeRate, |rate| 1.0 - rate),
            Baseline::Rate => of_rate(Metric::FakeRate, |rate| rate),
            Baseline::RateOfAll => of_rate(Metric::AllFakeRate, |rate| rate),
            Baseline::Entropy => {
                // Where special tokens are known to be original, the loss of the others alone
                // counts.
                let known = self.smoothed(Metric::DiscConstantLoss);
                let all = self.smoothed(Metric::AllFakeRate).into_iter().map(entropy);
                Some(known.into_iter().zip(all).map(|(a, b)| if a.is_finite() { a } else { b }).collect())
            }
        }
    }
}

/// Entropy in nats of an event of this probability: the loss of always predicting it.
fn entropy(p: f64) -> f64 {
    if p > 0.0 && p < 1.0 { -p * p.ln() - (1.0 - p) * (1.0 - p).ln() } else { 0.0 }
}

/// The pieces of one curve, in values.
type Pieces = Vec<Vec<(f64, f64)>>;

struct Curve {
    run: usize,
    raw: Pieces,
    smooth: Pieces,
    baseline: Pieces,
    held_out: Vec<(u64, f64, f64)>,
}

/// The charts that have something to show.
pub(super) fn panels(runs: &[Prepared<'_>], look: &Look) -> Vec<Panel> {
    let last = runs.iter().flat_map(|run| run.xs.iter().copied().filter(|x| x.is_finite()).reduce(f64::max));
    let end = last.reduce(f64::max).unwrap_or(1.0).max(1e-9);
    let x = Scale { low: 0.0, high: end * 1.01, log: false };
    KINDS.iter().filter_map(|kind| panel(kind, runs, look, x)).collect()
}

fn panel(kind: &Kind, runs: &[Prepared<'_>], look: &Look, x: Scale) -> Option<Panel> {
    let is_earlier = |run: &&Prepared<'_>| run.run.column(Metric::DiscAuc).iter().all(|value| value.is_nan());
    if kind.earlier && !runs.iter().any(|run| is_earlier(&run)) {
        return None;
    }
    let buckets = (2400 / runs.len().max(1)).clamp(24, 360);
    let curves: Vec<Curve> =
        runs.iter().enumerate().map(|(number, run)| curve(kind, number, run, look, buckets)).collect();
    if curves.iter().all(|curve| curve.raw.is_empty() && curve.held_out.is_empty()) {
        return None;
    }
    let bands = bands(kind.metric, runs, look, x);
    // A twentieth of the x axis, if something is left behind it.
    let settled = 0.05 * x.high;
    let from = if kind.settles && curves.iter().any(|c| c.raw.iter().flatten().any(|p| p.0 > settled)) {
        settled
    } else {
        0.0
    };
    let shown = |p: &&(f64, f64)| p.0 >= from;
    let values = curves.iter().flat_map(|curve| {
        let lines = curve.smooth.iter().chain(&curve.baseline).flatten().filter(shown).map(|p| p.1);
        lines.chain(curve.held_out.iter().map(|p| p.2)).chain(ordinary(&curve.raw, from))
    });
    let of_bands = bands
        .iter()
        .flat_map(|(points, _)| points.iter().filter(|p| p.0 >= from).flat_map(|(_, ends)| *ends));
    let y = Scale::around(values.chain(of_bands), kind.from_zero, kind.log);
    let to = |(a, b): (f64, f64)| -> Point {
        let [left, top, right, bottom] = PLOT;
        [left + x.place(a) as f32 * (right - left), bottom - y.place(b) as f32 * (bottom - top)]
    };
    let mut drawing = Drawing { width: WIDTH, height: HEIGHT, shapes: Vec::new() };
    for (points, title) in &bands {
        drawing.shapes.push(area(points, title, to));
    }
    frame(&mut drawing, x, y, look.axis);
    // The first run lies on top.
    for curve in curves.iter().rev() {
        draw_curve(&mut drawing, curve, y, to);
    }
    for (number, prepared) in runs.iter().enumerate().take(COLOURED) {
        dots(&mut drawing, &curves[number], &prepared.run.name, to);
        if kind.marks {
            marks(&mut drawing, prepared, number, look.axis, (x, buckets));
        }
    }
    let note =
        if bands.is_empty() { kind.note.to_owned() } else { format!("{} · grey: recorded runs", kind.note) };
    let summary = summary(kind, runs, &curves);
    Some(Panel { title: kind.title, note, summary, drawing, x, y })
}

fn curve(kind: &Kind, number: usize, run: &Prepared<'_>, look: &Look, buckets: usize) -> Curve {
    let raw = pieces(&run.xs, run.run.column(kind.metric), buckets);
    let coloured = number < COLOURED;
    let line = |ys: Vec<f64>| pieces(&run.xs, &ys, buckets);
    let smooth = if coloured && run.window > 1 { line(run.smoothed(kind.metric)) } else { Vec::new() };
    let baseline = run.baseline(kind.baseline).filter(|_| coloured).map(line).unwrap_or_default();
    let held_out = run.run.held_out.iter().filter_map(|(step, values)| {
        let y = values[kind.metric as usize];
        Some((*step, run.x_of(*step, look.axis)?, y)).filter(|_| y.is_finite())
    });
    Curve { run: number, raw, smooth, baseline, held_out: held_out.collect() }
}

/// All but the outermost hundredths: one spike shall not flatten a whole curve.
fn ordinary(raw: &Pieces, from: f64) -> Vec<f64> {
    let mut values: Vec<f64> = raw.iter().flatten().filter(|p| p.0 >= from).map(|p| p.1).collect();
    values.sort_by(f64::total_cmp);
    let cut = values.len() / 100;
    values[cut..values.len() - cut].to_vec()
}

type Band = Vec<(f64, [f64; 2])>;

/// The record of each preset among the runs, along the x axis of the first run of that preset.
fn bands(metric: Metric, runs: &[Prepared<'_>], look: &Look, x: Scale) -> Vec<(Band, String)> {
    let mut seen: Vec<String> = Vec::new();
    let mut all = Vec::new();
    for prepared in runs {
        let Some(preset) = prepared.run.setting("preset").filter(|preset| !seen.contains(preset)) else {
            continue;
        };
        let Some(reference) = Reference::of(prepared.run) else { continue };
        let Some(band) = reference.band(metric) else { continue };
        let at = |tokens: f64| match look.axis {
            Axis::Tokens => Some(tokens),
            Axis::Step => prepared.run.step_at(tokens),
        };
        let points = reference.points.tokens.iter().zip(band);
        let points: Band = points
            .filter_map(|(tokens, band)| Some((at(*tokens)?, *band)))
            .filter(|p| p.0 <= x.high)
            .collect();
        if points.len() > 1 {
            let most = reference.points.runs.iter().max().copied().unwrap_or(0);
            all.push((points, format!("{most} recorded runs of {preset}: {}", reference.text)));
        }
        seen.push(preset);
    }
    all
}

fn area(band: &Band, title: &str, to: impl Fn((f64, f64)) -> Point) -> Shape {
    let low = band.iter().map(|(x, [low, _])| to((*x, *low)));
    let high = band.iter().rev().map(|(x, [_, high])| to((*x, *high)));
    Shape::Area { points: low.chain(high).collect(), ink: Ink::Band, opacity: 0.22, title: title.to_owned() }
}

fn frame(drawing: &mut Drawing, x: Scale, y: Scale, axis: Axis) {
    let [left, top, right, bottom] = PLOT;
    let thin = Stroke { ink: Ink::Grid, width: 1.0, opacity: 1.0, dashed: false, read: None };
    let label = |at, text: String, anchor| Shape::Text {
        at,
        text,
        anchor,
        size: LABEL,
        ink: Ink::Faint,
        bold: false,
    };
    let ticks = y.ticks(4);
    for (tick, text) in ticks.iter().zip(y.labels(&ticks)) {
        let height = bottom - y.place(*tick) as f32 * (bottom - top);
        drawing.shapes.push(Shape::Line { points: vec![[left, height], [right, height]], stroke: thin });
        drawing.shapes.push(label([left - 6.0, height + 4.0], text, Anchor::End));
    }
    let ticks = x.ticks(4);
    let unit = match axis {
        Axis::Step => " steps",
        Axis::Tokens => " tokens",
    };
    let texts = x.labels(&ticks);
    for (i, (tick, text)) in ticks.iter().zip(texts).enumerate() {
        let across = left + x.place(*tick) as f32 * (right - left);
        let last = i + 1 == ticks.len();
        let text = if last { text + unit } else { text };
        let wide = text_width(&text, LABEL);
        // The last label carries the unit and must not run off the sheet.
        let at = if across + wide / 2.0 > WIDTH - 2.0 { WIDTH - 2.0 - wide / 2.0 } else { across };
        drawing.shapes.push(label([at, bottom + 17.0], text, Anchor::Middle));
    }
    let base = Stroke { ink: Ink::Faint, ..thin };
    drawing.shapes.push(Shape::Line { points: vec![[left, bottom], [right, bottom]], stroke: base });
}

/// The parts of a line that lie within the range.
fn within(piece: &[(f64, f64)], y: Scale) -> Pieces {
    let inside = |p: &(f64, f64)| (y.low..=y.high).contains(&p.1);
    let mut parts: Pieces = vec![Vec::new()];
    let mut before: Option<(f64, f64)> = None;
    for point in piece {
        let edge = |from: (f64, f64), to: (f64, f64)| {
            let edge = if to.1 > y.high { y.high } else { y.low };
            (from.0 + (to.0 - from.0) * (edge - from.1) / (to.1 - from.1), edge)
        };
        let crossed = before.filter(|b| inside(b) != inside(point));
        match (crossed, parts.last_mut()) {
            (Some(b), Some(part)) if inside(&b) => {
                part.push(edge(b, *point));
                parts.push(Vec::new());
            }
            (Some(b), Some(part)) => part.extend([edge(*point, b), *point]),
            (None, Some(part)) if inside(point) => part.push(*point),
            _ => {}
        }
        before = Some(*point);
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn draw_curve(drawing: &mut Drawing, curve: &Curve, y: Scale, to: impl Fn((f64, f64)) -> Point) {
    let ink = Ink::of_run(curve.run);
    let smoothed = !curve.smooth.is_empty();
    let mut add = |pieces: &Pieces, width: f32, opacity: f32, dashed: bool, read: bool| {
        for piece in pieces.iter().flat_map(|piece| within(piece, y)) {
            let points: Vec<Point> = piece.iter().map(|&point| to(point)).collect();
            if let [at] = points[..] {
                let title = String::new();
                drawing.shapes.push(Shape::Dot { at, radius: 1.5, ink, title });
            }
            let read = read.then_some(curve.run);
            drawing.shapes.push(Shape::Line { points, stroke: Stroke { ink, width, opacity, dashed, read } });
        }
    };
    add(&curve.baseline, 1.2, 0.75, true, false);
    match (ink, smoothed) {
        (Ink::Other, _) => add(&curve.raw, 1.0, 0.6, false, false),
        (_, false) => add(&curve.raw, 1.8, 1.0, false, true),
        (_, true) => {
            add(&curve.raw, 1.0, 0.35, false, false);
            add(&curve.smooth, 1.8, 1.0, false, true);
        }
    }
}

fn dots(drawing: &mut Drawing, curve: &Curve, name: &str, to: impl Fn((f64, f64)) -> Point) {
    // As many as a panel can show apart.
    let every = curve.held_out.len().div_ceil(200).max(1);
    for (step, x, y) in curve.held_out.iter().rev().step_by(every) {
        let title = format!("{name}, held out at step {}: {}", thousands(*step), short(*y));
        let at = to((*x, *y));
        drawing.shapes.push(Shape::Dot { at, radius: 4.5, ink: Ink::Surface, title: String::new() });
        drawing.shapes.push(Shape::Dot { at, radius: 3.2, ink: Ink::of_run(curve.run), title });
    }
}

/// At the upper edge: a triangle for a spike, a diamond for skipped steps, a bar for a return to a checkpoint.
fn marks(
    drawing: &mut Drawing,
    prepared: &Prepared<'_>,
    number: usize,
    axis: Axis,
    (x, buckets): (Scale, usize),
) {
    let [left, top, right, _] = PLOT;
    let mut taken = Vec::new();
    for (step, mark) in &prepared.run.marks {
        let Some(share) = prepared.x_of(*step, axis).map(|at| x.place(at)) else { continue };
        let place = ((share * buckets as f64) as usize, *mark);
        if taken.contains(&place) {
            continue;
        }
        taken.push(place);
        let across = left + share as f32 * (right - left);
        let corners: &[Point] = match mark {
            Mark::Spike => &[[-4.0, -9.0], [4.0, -9.0], [0.0, -2.0]],
            Mark::Skipped => &[[0.0, -10.0], [4.0, -6.0], [0.0, -2.0], [-4.0, -6.0]],
            Mark::Rollback => &[[-1.2, -10.0], [1.2, -10.0], [1.2, -2.0], [-1.2, -2.0]],
        };
        let points = corners.iter().map(|[dx, dy]| [across + dx, top + dy]).collect();
        let title = format!("{}, step {}: {}", prepared.run.name, thousands(*step), mark.name());
        drawing.shapes.push(Shape::Area { points, ink: Ink::of_run(number), opacity: 1.0, title });
    }
}

fn summary(kind: &Kind, runs: &[Prepared<'_>], curves: &[Curve]) -> String {
    let mut text = kind.title.to_owned();
    for (prepared, curve) in runs.iter().zip(curves).take(COLOURED) {
        let line = if curve.smooth.is_empty() { &curve.raw } else { &curve.smooth };
        let ends = (line.first().and_then(|p| p.first()), line.last().and_then(|p| p.last()));
        if let (Some(first), Some(last)) = ends {
            text += &format!("; {}: {} to {}", prepared.run.name, short(first.1), short(last.1));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_at_the_edges() {
        let y = Scale { low: 0.0, high: 2.0, log: false };
        let cut = within(&[(0.0, 4.0), (1.0, 0.0), (2.0, 1.0), (3.0, -1.0), (4.0, 1.0)], y);
        assert_eq!(cut, [vec![(0.5, 2.0), (1.0, 0.0), (2.0, 1.0), (2.5, 0.0)], vec![(3.5, 0.0), (4.0, 1.0)]]);
        assert_eq!(within(&[(0.0, 3.0), (1.0, 3.0)], y), Pieces::new());
    }
}
