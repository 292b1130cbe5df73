//! What a bench leaves behind, and how two such records compare.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// One case: what its rounds came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Case {
    /// By which it is found again.
    pub(crate) name: String,
    /// Of what the numbers are; those with `/s` are better the higher they are, all others the lower.
    pub(crate) unit: String,
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) rounds: usize,
}

impl Case {
    /// From the results of all rounds, one at least.
    pub(crate) fn new(name: impl Into<String>, unit: &str, mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let (median, rounds) = (samples[samples.len() / 2], samples.len());
        let (least, most) = (samples[0], samples[rounds - 1]);
        Self { name: name.into(), unit: unit.to_owned(), median, least, most, rounds }
    }
}

/// Where it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) threads: usize,
    pub(crate) gpu: Option<String>,
}

/// One run of a bench on one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) bench: String,
    pub(crate) device: String,
    pub(crate) machine: Machine,
    /// Of the project, with its commit.
    pub(crate) version: String,
    pub(crate) date: String,
    pub(crate) cases: Vec<Case>,
}

/// What became of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Each median lies outside the other's spread.
    Better,
    /// The same.
    Worse,
    /// It may be chance.
    Within,
}

/// New over old.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) verdict: Verdict,
}

impl Ratio {
    pub(crate) fn of(old: &Case, new: &Case) -> Self {
        let outside = |x: f64, of: &Case| x < of.least || x > of.most;
        let verdict = match (outside(new.median, old) && outside(old.median, new), old.unit.ends_with("/s")) {
            (false, _) => Verdict::Within,
            (true, higher_is_better) if (new.median > old.median) == higher_is_better => Verdict::Better,
            (true, _) => Verdict::Worse,
        };
        let (least, most) = (new.least / old.most, new.most / old.least);
        Self { median: new.median / old.median, least, most, verdict }
    }
}

/// Why two records may not be comparable.
pub(crate) fn warnings(old: &Record, new: &Record) -> Vec<String> {
    let gpu = |record: &Record| record.machine.gpu.clone().unwrap_or_else(|| "none".to_owned());
    let pairs = [
        ("processor", old.machine.cpu.clone(), new.machine.cpu.clone()),
        ("threads", old.machine.threads.to_string(), new.machine.threads.to_string()),
        ("GPU", gpu(old), gpu(new)),
    ];
    let differ = pairs.into_iter().filter(|(_, old, new)| old != new);
    differ.map(|(what, old, new)| format!("{what}: {old} then, {new} now")).collect()
}

/// Two records case by case, for people.
pub(crate) fn comparison(old: &Record, new: &Record) -> String {
    let mut text = format!("new / old, against {} of {}\n", old.version, old.date);
    for warning in warnings(old, new) {
        writeln!(text, "warning: another machine, so the ratios say little: {warning}").expect("text");
    }
    for case in &new.cases {
        let found = old.cases.iter().find(|of| of.name == case.name && of.unit == case.unit);
        let Some(before) = found else {
            writeln!(text, "{:<52} is not in that record", case.name).expect("text");
            continue;
        };
        let ratio = Ratio::of(before, case);
        let mark = match ratio.verdict {
            Verdict::Better => "  better",
            Verdict::Worse => "  WORSE",
            Verdict::Within => "",
        };
        let Ratio { median, least, most, .. } = ratio;
        writeln!(text, "{:<52} {median:>6.3} ({least:.3} to {most:.3}){mark}", case.name).expect("text");
    }
    text
}
