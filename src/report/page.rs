//! The HTML page: one file, nothing loaded from elsewhere, the charts as inline SVG.
//!
//! Without JavaScript everything but the readout under the pointer works; runs are hidden by CSS alone. The page's
//! policy forbids it every connection.

use std::fmt::Write;

use super::bands::Reference;
use super::draw::{COLOURED, Ink, elements, escape, stylesheet};
use super::panel::{Axis, HEIGHT, Look, PLOT, Panel, Prepared, WIDTH, panels};
use super::run::{Mark, Metric, Run, differences, plain};
use super::sheet::headline;
use super::status::{State, Status};
use super::{short, thousands};

/// Rows of a table whose columns are runs: beyond so many the runs are rows.
const BESIDE: usize = 6;

pub(super) fn html(runs: &[Run], look: &Look) -> String {
    let prepared: Vec<Prepared<'_>> = runs.iter().map(|run| Prepared::new(run, look)).collect();
    let title = escape(&look.title.clone().unwrap_or_else(|| headline(runs)));
    let names: Vec<&str> = runs.iter().take(COLOURED).map(|run| run.name.as_str()).collect();
    // `<` is the one character that could end the element.
    let names = serde_json::to_string(&names).unwrap_or_default().replace('<', "\\u003c");
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>\n{}{}\n{}</style>\n</head>\n\
         <body>\n<h1>{title}</h1>\n<p class=\"by\">Pre-training by replaced token detection, reported by elektron {}</p>\n",
        include_str!("page.css"),
        stylesheet(),
        hiding(),
        env!("ELEKTRON_VERSION"),
    );
    // Of many runs the curves say more.
    let (above, below) =
        if runs.len() <= 2 { (words(&prepared), String::new()) } else { (String::new(), words(&prepared)) };
    page += &above;
    page += &legend(runs);
    page += "<div class=\"panels\">\n";
    for panel in panels(&prepared, look) {
        page += &figure(&panel, look);
    }
    page += "</div>\n";
    if !below.is_empty() {
        page += "<h2>In words</h2>\n";
        page += &below;
    }
    page += &where_they_are(&prepared);
    page += &configurations(runs);
    page += HELP;
    let _ = write!(
        page,
        "<script type=\"application/json\" id=\"names\">{names}</script>\n<script>\n{}</script>\n</body>\n</html>\n",
        include_str!("page.js")
    );
    page
}

/// A run's box in the legend, unticked, hides its lines.
fn hiding() -> String {
    (0..COLOURED)
        .map(|i| format!(":root:has(#run{i}:not(:checked)) figure :is(.l-r{i},.f-r{i}){{display:none}}"))
        .collect()
}

fn figure(panel: &Panel, look: &Look) -> String {
    let [left, top, right, bottom] = PLOT;
    let axis = if look.axis == Axis::Step { "step" } else { "tokens" };
    format!(
        "<figure><h3>{}</h3><p class=\"note\">{}</p>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" \
         data-axis=\"{axis}\" data-plot=\"{left} {top} {right} {bottom} {} {} {:e} {:e} {}\">\n{}</svg></figure>\n",
        escape(panel.title),
        escape(&panel.note),
        escape(&panel.summary),
        panel.x.low,
        panel.x.high,
        panel.y.low,
        panel.y.high,
        u8::from(panel.y.log),
        elements(&panel.drawing)
    )
}

fn legend(runs: &[Run]) -> String {
    let mut out = String::from("<div class=\"legend\">\n");
    for (i, run) in runs.iter().enumerate().take(COLOURED) {
        let _ = writeln!(
            out,
            "<label><input type=\"checkbox\" id=\"run{i}\" checked><svg width=\"22\" height=\"10\" aria-hidden=\"true\">\
             <line x1=\"1\" x2=\"21\" y1=\"5\" y2=\"5\" stroke-width=\"3\" class=\"l-{}\"/></svg>{}</label>",
            Ink::of_run(i).class(),
            escape(&run.name)
        );
    }
    if runs.len() > COLOURED {
        let _ = write!(out, "<span class=\"key\">and {} more in grey</span>", runs.len() - COLOURED);
    }
    let mut keys = vec!["thin: as logged, thick: smoothed"];
    if runs.iter().any(|run| !run.held_out.is_empty()) {
        keys.push("● held out");
    }
    for (mark, key) in [
        (Mark::Spike, "▼ spike"),
        (Mark::Skipped, "◆ steps skipped"),
        (Mark::Rollback, "❙ back to a checkpoint"),
    ] {
        if runs.iter().any(|run| run.marks.iter().any(|(_, m)| *m == mark)) {
            keys.push(key);
        }
    }
    let _ = write!(out, "<span class=\"key\">{}</span>\n</div>\n", keys.join(" · "));
    out
}

/// The last finite value of a column.
fn last(values: &[f64]) -> f64 {
    values.iter().rev().copied().find(|value| value.is_finite()).unwrap_or(f64::NAN)
}

/// What the curves say, in sentences.
fn words(runs: &[Prepared<'_>]) -> String {
    let mut out = String::from("<ul class=\"words\">\n");
    for prepared in runs.iter().take(COLOURED) {
        let run = prepared.run;
        let _ = write!(out, "<li><strong>{}</strong>: ", escape(&run.name));
        let Some(step) = run.steps.last() else {
            out += "its log has no line yet.</li>\n";
            continue;
        };
        let of_all = run.total_steps.map_or(String::new(), |all| format!(" of {}", thousands(all)));
        let _ = write!(out, "step {}{of_all}", thousands(*step));
        if let Some(tokens) = run.tokens.last().filter(|tokens| tokens.is_finite()) {
            let _ = write!(out, ", {} tokens", thousands(*tokens as u64));
        }
        out += ". ";
        let value = |metric| last(&prepared.smoothed(metric));
        let loss = value(Metric::GenMaskLoss);
        if let Some((unigram, _)) = run.unigram.filter(|_| loss.is_finite()) {
            let _ = write!(
                out,
                "The generator's loss at [MASK] is {}, that of word frequencies {}. ",
                short(loss),
                short(unigram)
            );
        }
        let is_earlier = value(Metric::DiscAuc).is_nan();
        let [accuracy, rate, auc_metric] = match is_earlier {
            true => [Metric::DiscAllAcc, Metric::AllFakeRate, Metric::DiscAllAuc],
            false => [Metric::DiscAcc, Metric::FakeRate, Metric::DiscAuc],
        };
        let (accuracy, rate) = (value(accuracy), value(rate));
        let tokens = if is_earlier { "all tokens" } else { "the tokens that can be masked" };
        if accuracy.is_finite() && rate.is_finite() {
            let gain = 100.0 * (accuracy - (1.0 - rate));
            let above = if gain < 0.0 { "below" } else { "above" };
            let _ = write!(
                out,
                "The discriminator judges {:.1} % of {tokens} rightly, {:.2} points {above} always saying “original”; its AUC is {}. ",
                100.0 * accuracy,
                gain.abs(),
                short(value(auc_metric))
            );
        }
        if let Some((step, values)) = run.held_out.last() {
            let value = |metric: Metric| short(values[metric as usize]);
            let at = thousands(*step);
            let _ = write!(out, "Held out at step {at}: generator loss {}", value(Metric::GenLoss));
            // Earlier versions did not log the one, a masked language model alone has not the other.
            for (name, metric) in [("at [MASK]", Metric::GenMaskLoss), ("AUC", auc_metric)] {
                if values[metric as usize].is_finite() {
                    let _ = write!(out, ", {name} {}", value(metric));
                }
            }
            out += ". ";
        }
        if let Some(reference) = Reference::of(run)
            && let Some(verdict) = reference.verdict(run, |metric| prepared.smoothed(metric))
        {
            out += &escape(&verdict);
        }
        out += "</li>\n";
    }
    out + "</ul>\n"
}

fn table(head: &[String], rows: &[Vec<String>], set: bool) -> String {
    let class = if set { " class=\"set\"" } else { "" };
    let mut out = String::from("<div class=\"wide\"><table>\n<thead><tr>");
    for cell in head {
        let _ = write!(out, "<th{class}>{}</th>", escape(cell));
    }
    out += "</tr></thead>\n<tbody>\n";
    for row in rows {
        out += "<tr>";
        for (i, cell) in row.iter().enumerate() {
            let cell = escape(cell);
            let _ = if i == 0 {
                write!(out, "<th scope=\"row\">{cell}</th>")
            } else {
                write!(out, "<td{class}>{cell}</td>")
            };
        }
        out += "</tr>\n";
    }
    out + "</tbody>\n</table></div>\n"
}

fn where_they_are(runs: &[Prepared<'_>]) -> String {
    let head = [
        "run",
        "state",
        "step",
        "tokens",
        "generator loss",
        "its accuracy",
        "discriminator loss",
        "AUC",
        "accuracy",
        "always “original”",
        "tok/s",
        "log",
    ];
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|prepared| {
            let run = prepared.run;
            let value = |metric| last(&prepared.smoothed(metric));
            let show = |metric| short(value(metric));
            let number = |n: Option<u64>| n.map_or("–".to_owned(), thousands);
            let state = Status::of(&run.path).map_or("–", |status| status.state.name());
            let damage = match run.damaged {
                0 => String::new(),
                n => format!("{n} unreadable line{}", if n == 1 { "" } else { "s" }),
            };
            vec![
                run.name.clone(),
                state.to_owned(),
                number(run.steps.last().copied()),
                number(run.tokens.last().filter(|t| t.is_finite()).map(|&t| t as u64)),
                show(Metric::GenLoss),
                show(Metric::GenAcc),
                show(Metric::DiscLoss),
                show(Metric::DiscAuc),
                show(Metric::DiscAcc),
                short(1.0 - value(Metric::FakeRate)),
                show(Metric::TokPerS),
                damage,
            ]
        })
        .collect();
    let clean = rows.iter().all(|row| row[11].is_empty());
    let columns = if clean { 11 } else { 12 };
    let head: Vec<String> = head[..columns].iter().map(|&text| text.to_owned()).collect();
    let rows: Vec<Vec<String>> = rows.into_iter().map(|row| row[..columns].to_vec()).collect();
    format!(
        "<h2>Where the runs are</h2>\n<p class=\"by\">Smoothed values at the last line of the log.</p>\n{}",
        table(&head, &rows, false)
    )
}

fn configurations(runs: &[Run]) -> String {
    let mut out = String::new();
    let known: Vec<&Run> = runs.iter().filter(|run| !run.config.is_empty()).collect();
    if runs.len() > 1 && !known.is_empty() {
        out += "<h2>What they were set to</h2>\n";
        out += &match differences(runs) {
            differences if differences.is_empty() => "<p>All settings are equal.</p>\n".to_owned(),
            differences => table_of(runs, &differences),
        };
    }
    if let [run, ..] = known[..] {
        let rows: Vec<Vec<String>> =
            run.config.iter().map(|(key, value)| vec![key.clone(), plain(value)]).collect();
        let _ = write!(
            out,
            "<details><summary>All settings of {}</summary>\n{}</details>\n",
            escape(&run.name),
            table(&["setting".to_owned(), "value".to_owned()], &rows, true)
        );
    }
    out
}

/// Settings that differ: the runs beside each other, or below each other where they are many.
fn table_of(runs: &[Run], differences: &[(String, Vec<String>)]) -> String {
    let names = runs.iter().map(|run| run.name.clone());
    if runs.len() <= BESIDE {
        let head: Vec<String> = std::iter::once("setting".to_owned()).chain(names).collect();
        let rows: Vec<Vec<String>> = differences
            .iter()
            .map(|(key, values)| std::iter::once(key.clone()).chain(values.iter().cloned()).collect())
            .collect();
        return table(&head, &rows, true);
    }
    let head: Vec<String> =
        std::iter::once("run".to_owned()).chain(differences.iter().map(|d| d.0.clone())).collect();
    let rows: Vec<Vec<String>> = names
        .enumerate()
        .map(|(i, name)| std::iter::once(name).chain(differences.iter().map(|d| d.1[i].clone())).collect())
        .collect();
    table(&head, &rows, true)
}

impl State {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
        }
    }
}

const HELP: &str = "<details><summary>How to read this</summary>\n<dl>\n\
<dt>Generator loss at [MASK]</dt><dd>begins at the logarithm of the vocabulary's size (9.0 for 8,192 entries, 10.3 for 30,522), falls fast to about 7 while the \
generator learns which tokens are frequent: down to the dashed line. It stays there until the generator learns from context, and what lies below the \
line is what it has learnt from it. The loss at all masked tokens, which is trained, also counts those that keep their token and need only be copied.</dd>\n\
<dt>Discriminator loss</dt><dd>first falls to the dashed line: it knows special tokens and how often others are replaced, not yet which. What lies below that line is \
what it has learnt; with the paper's batches that begins after some thousand steps.</dd>\n\
<dt>AUC</dt><dd>the chance that a replaced token looks more suspicious than an original one; 0.5 is chance. Special tokens are never replaced and so left out; with them the AUC lies above 0.5 \
even where nothing else is known, and that is what versions before this figure reported. Early on it can be high, because an untrained \
generator's tokens are easy to spot, and falls as the generator learns.</dd>\n\
<dt>Accuracy</dt><dd>means little by itself: most tokens are original, so always saying “original” is right at the dashed line.</dd>\n\
<dt>Precision, recall</dt><dd>both are 0 as long as no token is ever called replaced, which is usual in the beginning.</dd>\n\
<dt>Gradient norm</dt><dd>before clipping. Single spikes do no harm; a norm that grows for long, with the loss, says that the learning rate is too high.</dd>\n\
<dt>Grey bands</dt><dd>lowest to highest of earlier runs with the same preset, by tokens seen. They hold for the settings and the text named \
above; another text or vocabulary shifts them.</dd>\n</dl></details>\n";
