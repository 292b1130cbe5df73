//! Learning rates: the schedule of google-research/electra, and those of `transformers` under their names
//! there.
//!
//! [`LrScheduler`] and [`SchedulerKwargs`] are what a user chooses (`lr_scheduler_type` and
//! `lr_scheduler_kwargs` of `TrainingArguments`), [`Schedule`] is a function from the number of an update
//! to its rate. The formulas are those of `optimization.py` of `transformers`.

use std::collections::BTreeMap;
use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// The shape of warm-up and decay. All but `Electra` are schedules of `transformers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LrScheduler {
    /// google-research/electra's: decay runs from the first step, warm-up multiplies it
    #[default]
    Electra,
    /// Linear warm-up, then linear decay to 0
    Linear,
    /// Linear warm-up, then half a cosine to 0; num_cycles
    Cosine,
    /// Linear warm-up, then cosines that restart at the highest rate; num_cycles
    #[serde(alias = "cosine_with_restarts")]
    #[value(alias = "cosine_with_restarts")]
    CosineWithRestarts,
    /// Linear warm-up, then a polynomial to lr_end; power, lr_end
    Polynomial,
    /// A constant rate, without warm-up
    Constant,
    /// Linear warm-up, then a constant rate
    #[serde(alias = "constant_with_warmup")]
    #[value(alias = "constant_with_warmup")]
    ConstantWithWarmup,
    /// Linear warm-up, then the inverse square root of the step; timescale
    #[serde(alias = "inverse_sqrt")]
    #[value(alias = "inverse_sqrt")]
    InverseSqrt,
    /// Linear warm-up, then half a cosine to min_lr or min_lr_rate (one is required); num_cycles
    #[serde(alias = "cosine_with_min_lr")]
    #[value(alias = "cosine_with_min_lr")]
    CosineWithMinLr,
    /// As cosine-with-min-lr, with a warm-up that begins at warmup_lr_rate
    #[serde(alias = "cosine_warmup_with_min_lr")]
    #[value(alias = "cosine_warmup_with_min_lr")]
    CosineWarmupWithMinLr,
    /// Warm-up, a constant rate, decay over num_decay_steps (required); num_stable_steps, warmup_type,
    /// decay_type, min_lr_ratio, num_cycles
    #[serde(alias = "warmup_stable_decay")]
    #[value(alias = "warmup_stable_decay")]
    WarmupStableDecay,
}

impl LrScheduler {
    /// Its name, as users type it.
    pub fn name(self) -> String {
        let value = serde_json::to_value(self);
        value.ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// The names of the parameters that it takes.
    fn parameters(self) -> &'static [&'static str] {
        match self {
            Self::Electra | Self::Linear | Self::Constant | Self::ConstantWithWarmup => &[],
            Self::Cosine | Self::CosineWithRestarts => &["num_cycles"],
            Self::Polynomial => &["lr_end", "power"],
            Self::InverseSqrt => &["timescale"],
            Self::CosineWithMinLr => &["num_cycles", "min_lr", "min_lr_rate"],
            Self::CosineWarmupWithMinLr => &["num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"],
            Self::WarmupStableDecay => &[
                "num_decay_steps",
                "num_stable_steps",
                "warmup_type",
                "decay_type",
                "min_lr_ratio",
                "num_cycles",
            ],
        }
    }
}

/// `lr_scheduler_kwargs`: the parameters of a schedule by name, as `power=2,lr_end=1e-6` or as a JSON
/// object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "Value", try_from = "Value")]
pub struct SchedulerKwargs(BTreeMap<String, Value>);

impl SchedulerKwargs {
    /// Whether no parameter was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        match value.as_f64().filter(|x| x.is_finite() && *x >= 0.0) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(name, value, "a number of 0 or more")),
        }
    }

    fn curve(&self, name: &str) -> Result<Option<Curve>> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        match value.as_str() {
            Some("linear") => Ok(Some(Curve::Linear)),
            Some("cosine") => Ok(Some(Curve::Cosine)),
            Some("1-sqrt") => Ok(Some(Curve::OneMinusSqrt)),
            _ => Err(wrong(name, value, "`linear`, `cosine` or `1-sqrt`")),
        }
    }
}

fn wrong(name: &str, value: &Value, expected: &str) -> Error {
    Error::config(format!("--lr-scheduler-kwargs: `{name}` is {value}, expected {expected}"))
}

impl FromStr for SchedulerKwargs {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim_start().starts_with('{') {
            let value: Value = serde_json::from_str(text).map_err(|e| format!("this is not JSON: {e}"))?;
            return Self::try_from(value);
        }
        let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
        let pair = |pair: &str| {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("`{}` is not NAME=VALUE, such as num_cycles=2", pair.trim()))?;
            let (name, value) = (name.trim().replace('-', "_"), value.trim());
            let value = match value.parse::<f64>() {
                Ok(number) => Value::from(number),
                Err(_) => Value::from(value),
            };
            Ok((name, value))
        };
        pairs.map(pair).collect::<Result<_, String>>().map(Self)
    }
}

impl fmt::Display for SchedulerKwargs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Value::from(self.clone()).fmt(f)
    }
}

impl From<SchedulerKwargs> for Value {
    fn from(kwargs: SchedulerKwargs) -> Self {
        Self::Object(kwargs.0.into_iter().collect())
    }
}

impl TryFrom<Value> for SchedulerKwargs {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::String(text) => text.parse(),
            Value::Object(all) => {
                // 2 and 2.0 are the same number here.
                let number = |value: Value| value.as_f64().map_or(value, Value::from);
                Ok(Self(
                    all.into_iter().map(|(name, value)| (name.replace('-', "_"), number(value))).collect(),
                ))
            }
            other => Err(format!("{other} is neither NAME=VALUE,… nor an object of names and values")),
        }
    }
}

/// The shape of the warm-up or of the decay of `warmup_stable_decay`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Curve {
    Linear,
    Cosine,
    OneMinusSqrt,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Electra,
    Linear,
    /// Down to the share `floor` of the peak, in `cycles` whole waves.
    Cosine {
        cycles: f64,
        floor: f64,
    },
    Restarts {
        cycles: f64,
    },
    Polynomial {
        end: f64,
        power: f64,
    },
    Constant,
    ConstantWithWarmup,
    InverseSqrt {
        timescale: Option<f64>,
    },
    CosineWarmup {
        cycles: f64,
        floor: f64,
        start: Option<f64>,
    },
    WarmupStableDecay {
        stable: Option<f64>,
        decay: f64,
        warmup_type: Curve,
        decay_type: Curve,
        floor: f64,
        cycles: f64,
    },
}

/// The learning rate of every update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    form: Form,
    peak: f64,
}

impl Schedule {
    /// With `peak` as the highest rate. An error for parameters that the schedule does not take, and for
    /// values that they cannot have.
    pub fn new(scheduler: LrScheduler, kwargs: &SchedulerKwargs, peak: f64) -> Result<Self> {
        let known = scheduler.parameters();
        if let Some(name) = kwargs.0.keys().find(|name| !known.contains(&name.as_str())) {
            let takes = match known {
                [] => "it takes none".to_owned(),
                known => format!("it takes {}", known.join(", ")),
            };
            return Err(Error::config(format!(
                "--lr-scheduler-kwargs: `{name}` is not a parameter of --lr-scheduler {}; {takes}",
                scheduler.name()
            )));
        }
        let number = |name: &str, default: f64| Ok::<_, Error>(kwargs.number(name)?.unwrap_or(default));
        let form = match scheduler {
            LrScheduler::Electra => Form::Electra,
            LrScheduler::Linear => Form::Linear,
            LrScheduler::Cosine => Form::Cosine { cycles: number("num_cycles", 0.5)?, floor: 0.0 },
            LrScheduler::CosineWithRestarts => Form::Restarts { cycles: number("num_cycles", 1.0)? },
            LrScheduler::Polynomial => {
                let end = number("lr_end", 1e-7)?;
                if end >= peak {
                    return Err(Error::config(format!(
                        "--lr-scheduler polynomial ends at `lr_end` {end}, which must be below --learning-rate \
                         {peak}: give --lr-scheduler-kwargs lr_end=…"
                    )));
                }
                Form::Polynomial { end, power: number("power", 1.0)? }
            }
            LrScheduler::Constant => Form::Constant,
            LrScheduler::ConstantWithWarmup => Form::ConstantWithWarmup,
            LrScheduler::InverseSqrt => {
                let timescale = kwargs.number("timescale")?;
                if timescale == Some(0.0) {
                    return Err(wrong("timescale", &Value::from(0), "a number above 0"));
                }
                Form::InverseSqrt { timescale }
            }
            LrScheduler::CosineWithMinLr => {
                Form::Cosine { cycles: number("num_cycles", 0.5)?, floor: floor(scheduler, kwargs, peak)? }
            }
            LrScheduler::CosineWarmupWithMinLr => Form::CosineWarmup {
                cycles: number("num_cycles", 0.5)?,
                floor: floor(scheduler, kwargs, peak)?,
                start: kwargs.number("warmup_lr_rate")?,
            },
            LrScheduler::WarmupStableDecay => Form::WarmupStableDecay {
                decay: kwargs.number("num_decay_steps")?.ok_or_else(|| {
                    Error::config(
                        "--lr-scheduler warmup-stable-decay needs --lr-scheduler-kwargs num_decay_steps=N",
                    )
                })?,
                stable: kwargs.number("num_stable_steps")?,
                warmup_type: kwargs.curve("warmup_type")?.unwrap_or(Curve::Linear),
                decay_type: kwargs.curve("decay_type")?.unwrap_or(Curve::Cosine),
                floor: number("min_lr_ratio", 0.0)?,
                cycles: number("num_cycles", 0.5)?,
            },
        };
        Ok(Self { form, peak })
    }

    /// The rate of update `step` (counted from 0) of `steps`, the first `warmup` of which are the warm-up.
    pub fn rate(&self, step: u64, warmup: u64, steps: u64) -> f64 {
        let (t, w, n) = (step as f64, warmup as f64, steps as f64);
        // The share of the decay that is over.
        let progress = (t - w) / (n - w).max(1.0);
        let half_wave = |cycles: f64, at: f64| 0.5 * (1.0 + libm::cos(PI * cycles * 2.0 * at));
        let factor = match self.form {
            Form::Electra => {
                let rise = if warmup == 0 { 1.0 } else { (t / w).min(1.0) };
                rise * (1.0 - t / n)
            }
            Form::Constant => 1.0,
            Form::CosineWarmup { cycles, floor, start } => match start {
                None if t < w => (t + 1.0) / w.max(1.0),
                Some(start) if t < w => start + (1.0 - start) * t / (w - 1.0).max(1.0),
                _ => {
                    let progress = (t - w + 1.0) / (n - w).max(1.0);
                    half_wave(cycles, progress) * (1.0 - floor) + floor
                }
            },
            Form::WarmupStableDecay { stable, decay, warmup_type, decay_type, floor, cycles } => {
                let stable = stable.unwrap_or(n - w - decay);
                let above_floor = |factor: f64| factor * (1.0 - floor) + floor;
                if t < w {
                    let progress = t / w.max(1.0);
                    above_floor(match warmup_type {
                        Curve::Linear => progress,
                        Curve::Cosine => 0.5 * (1.0 - libm::cos(PI * progress)),
                        Curve::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
                    })
                } else if t < w + stable {
                    1.0
                } else if t < w + stable + decay {
                    let progress = (t - w - stable) / decay.max(1.0);
                    above_floor(match decay_type {
                        Curve::Linear => 1.0 - progress,
                        Curve::Cosine => half_wave(cycles, progress),
                        Curve::OneMinusSqrt => 1.0 - progress.sqrt(),
                    })
                } else {
                    floor
                }
            }
            // All others have the same linear warm-up.
            _ if t < w => t / w.max(1.0),
            Form::Linear => (n - t) / (n - w).max(1.0),
            Form::Cosine { cycles, floor } => half_wave(cycles, progress) * (1.0 - floor) + floor,
            Form::Restarts { .. } if progress >= 1.0 => 0.0,
            Form::Restarts { cycles } => 0.5 * (1.0 + libm::cos(PI * ((cycles * progress) % 1.0))),
            Form::Polynomial { end, .. } if t > n => end / self.peak,
            Form::Polynomial { end, power } => {
                let left = 1.0 - (t - w) / (n - w).max(1.0);
                ((self.peak - end) * libm::pow(left, power) + end) / self.peak
            }
            Form::ConstantWithWarmup => 1.0,
            Form::InverseSqrt { timescale } => {
                let timescale = timescale.unwrap_or(if warmup == 0 { 10_000.0 } else { w });
                1.0 / ((t + (timescale - w)) / timescale).sqrt()
            }
        };
        self.peak * factor.max(0.0)
    }
}

/// The lowest rate as a share of the highest.
fn floor(scheduler: LrScheduler, kwargs: &SchedulerKwargs, peak: f64) -> Result<f64> {
    match (kwargs.number("min_lr")?, kwargs.number("min_lr_rate")?) {
        (Some(rate), None) if peak > 0.0 => Ok(rate / peak),
        (None, Some(share)) => Ok(share),
        _ => Err(Error::config(format!(
            "--lr-scheduler {} needs one of `min_lr` and `min_lr_rate`: give --lr-scheduler-kwargs min_lr=…",
            scheduler.name()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(scheduler: LrScheduler, kwargs: &str) -> Result<Schedule> {
        Schedule::new(scheduler, &kwargs.parse().unwrap(), 1.0)
    }

    #[test]
    fn rates_by_hand() {
        let near = |a: f64, b: f64| approx::assert_abs_diff_eq!(a, b, epsilon = 1e-15);
        let electra = schedule(LrScheduler::Electra, "").unwrap();
        near(electra.rate(0, 10, 100), 0.0);
        near(electra.rate(5, 10, 100), 0.5 * 0.95);
        near(electra.rate(10, 10, 100), 0.9);
        near(2.0 * electra.rate(99, 10, 100), 0.02);
        let linear = schedule(LrScheduler::Linear, "").unwrap();
        near(linear.rate(0, 10, 100), 0.0);
        near(linear.rate(9, 10, 100), 0.9);
        near(linear.rate(10, 10, 100), 1.0);
        near(linear.rate(55, 10, 100), 0.5);
        near(linear.rate(0, 0, 4), 1.0);
        near(linear.rate(3, 0, 4), 0.25);
        near(linear.rate(200, 10, 100), 0.0);
    }

    #[test]
    fn parameters_are_read_and_the_wrong_ones_are_refused() {
        let kwargs: SchedulerKwargs = "num_cycles=2, decay-type = cosine".parse().unwrap();
        let json: SchedulerKwargs = r#"{"num_cycles": 2, "decay_type": "cosine"}"#.parse().unwrap();
        assert_eq!(kwargs, json);
        assert_eq!(serde_json::to_value(&kwargs).unwrap(), serde_json::to_value(&json).unwrap());
        assert!("num_cycles".parse::<SchedulerKwargs>().is_err());
        assert!(serde_json::from_str::<SchedulerKwargs>("3").is_err());
        let refuse = |scheduler, kwargs: &str, words: &[&str]| {
            let error = schedule(scheduler, kwargs).unwrap_err().to_string();
            words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is not in: {error}"));
        };
        refuse(LrScheduler::Linear, "num_cycles=2", &["num_cycles", "linear", "takes none"]);
        refuse(LrScheduler::CosineWithRestarts, "cycles=2", &["cosine-with-restarts", "num_cycles"]);
        refuse(LrScheduler::Cosine, "num_cycles=-1", &["num_cycles", "0 or more"]);
        refuse(LrScheduler::Cosine, "num_cycles=many", &["num_cycles", "many"]);
        refuse(LrScheduler::Polynomial, "lr_end=1", &["lr_end", "--learning-rate"]);
        refuse(LrScheduler::InverseSqrt, "timescale=0", &["timescale"]);
        refuse(LrScheduler::CosineWithMinLr, "", &["min_lr", "min_lr_rate"]);
        refuse(LrScheduler::CosineWithMinLr, "min_lr=0.1,min_lr_rate=0.1", &["one of"]);
        refuse(LrScheduler::WarmupStableDecay, "", &["num_decay_steps"]);
        refuse(
            LrScheduler::WarmupStableDecay,
            "num_decay_steps=2,decay_type=flat",
            &["decay_type", "1-sqrt"],
        );
    }
}
