//! What a finished run says last.

use serde_json::{Map, Value, json};

use super::{Outcome, confirm};
use crate::config::RunConfig;
use crate::model::Objective;
use crate::report::thousands;
use crate::train::figures::figures;
use crate::train::log::{duration, tagged};
use crate::train::metrics::Metrics;
use crate::train::{Ending, Summary};

/// Prints a table and the next command for people, or one object for programs. The run is saved by
/// then, so a failure to print is not a failure of the run.
pub(super) fn finish(config: &RunConfig, summary: &Summary, machine: bool) -> Outcome {
    let interrupted = summary.ending == Ending::Interrupted;
    let text = match (machine, interrupted) {
        (true, _) => tagged("summary", for_programs(config, summary)).to_string(),
        (false, true) => format!(
            "stopped by a signal at step {}, which is saved; to go on:\n  elektron pretrain --resume {}",
            summary.position.step,
            config.output.display()
        ),
        (false, false) => for_people(config, summary),
    };
    confirm(&text);
    if interrupted { Outcome::Interrupted } else { Outcome::Done }
}

/// Tokens a second of this process's steps, without pauses.
fn rate(summary: &Summary) -> f64 {
    let tokens = summary.position.tokens.saturating_sub(summary.started_at.tokens);
    tokens as f64 / summary.stepping_seconds.max(1e-9)
}

fn for_programs(config: &RunConfig, summary: &Summary) -> Map<String, Value> {
    let value = json!({
        "state": if summary.ending == Ending::Interrupted { "stopped" } else { "finished" },
        "step": summary.position.step,
        "steps": summary.steps,
        "tokens": summary.position.tokens,
        "started_at_step": summary.started_at.step,
        "seconds": summary.seconds,
        "stepping_seconds": summary.stepping_seconds,
        "evaluating_seconds": summary.evaluating_seconds,
        "saving_seconds": summary.saving_seconds,
        "skipped": summary.skipped,
        "rollbacks": summary.rollbacks,
        "tok_per_s": rate(summary).round(),
        "eval": summary.held_out.map(|metrics| figures(config.objective, &metrics)),
        "baseline": summary.baseline,
        "warnings": warnings(summary),
        "output": config.output,
    });
    let mut object = value.as_object().cloned().unwrap_or_default();
    let directories = config.objective.directories().iter();
    object.extend(directories.map(|&name| (name.to_owned(), json!(config.output.join(name)))));
    object
}

/// What the run did not learn by its end.
fn warnings(summary: &Summary) -> Vec<String> {
    summary.findings.iter().flatten().map(|finding| finding.in_words()).collect()
}

fn for_people(config: &RunConfig, summary: &Summary) -> String {
    let out = config.output.display();
    let mut rows = vec![
        ("steps", thousands(summary.position.step)),
        (
            "tokens",
            format!("{}, {} a second", thousands(summary.position.tokens), thousands(rate(summary) as u64)),
        ),
        (
            "time",
            format!(
                "{}, of which {} for evaluation, {} for checkpoints",
                duration(summary.seconds),
                duration(summary.evaluating_seconds),
                duration(summary.saving_seconds)
            ),
        ),
    ];
    if summary.skipped > 0 {
        let skipped = format!(
            "{}, as their loss or a gradient was not finite; {} returns to a checkpoint",
            summary.skipped, summary.rollbacks
        );
        rows.push(("steps skipped", skipped));
    }
    let is_masked_lm = config.objective == Objective::Mlm;
    let of_generator = |m: &Metrics| match &summary.baseline {
        Some(baseline) => format!(
            "{}; accuracy there {:.3} against {:.3}",
            baseline.in_words(m),
            m.gen_mask_acc,
            baseline.unigram_acc
        ),
        None => format!("{:.2} at [MASK], accuracy there {:.3}", m.gen_mask_loss, m.gen_mask_acc),
    };
    if let Some(m) = summary.held_out.as_ref().filter(|_| is_masked_lm) {
        rows.push(("held-out", of_generator(m)));
    }
    if let Some(m) = summary.held_out.as_ref().filter(|_| !is_masked_lm) {
        rows.push(("held-out generator", of_generator(m)));
        let discriminator = format!(
            "AUC {:.3}, loss {:.4} against {:.4} for a constant output",
            m.disc_auc, m.disc_loss, m.disc_constant_loss
        );
        rows.push(("held-out discriminator", discriminator));
        let baseline = format!("{:.3}, always \"original\" {:.3}", m.disc_acc, 1.0 - m.fake_rate);
        rows.push(("its accuracy", baseline));
    }
    let directories = config.objective.directories().iter();
    let models: Vec<String> = directories.map(|name| format!("{out}/{name}")).collect();
    rows.push((if is_masked_lm { "model" } else { "models" }, models.join(", ")));
    let mut text = String::from("finished\n");
    if summary.position == summary.started_at {
        let step = thousands(summary.position.step);
        text = format!("this run has made its {step} steps; to train further, resume it with more --steps\n");
    }
    for (name, value) in rows {
        text += &format!("  {name:<24}{value}\n");
    }
    for warning in warnings(summary) {
        text += &format!("warning: {warning}\n");
    }
    if is_masked_lm {
        return text
            + &format!(
                "next, look at the curves, and at which words it expects in a text:\n  elektron report \
                 {out}\n  elektron fill --model {out} \"To Sherlock [MASK] she is always the woman.\""
            );
    }
    text += "next, look at the curves, and at which words of a text look replaced:\n";
    text += &format!("  elektron report {out}\n");
    text += &format!(
        "  elektron detect --discriminator {out}/discriminator \"To Sherlock Holmes she is always the banana.\""
    );
    text
}
