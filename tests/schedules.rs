//! Learning rates and warm-ups as `transformers` computes them (values stored by
//! `scripts/make_convention_cases.py`).

use elektron::config::{RunConfig, Settings};
use elektron::model::Flavour;
use elektron::train::schedule::{LrScheduler, Schedule, SchedulerKwargs};

use crate::convention::{cases, settings};

#[test]
fn learning_rates_are_those_of_transformers() {
    for case in cases("schedules") {
        let scheduler: LrScheduler = serde_json::from_value(case["name"].clone()).unwrap();
        let kwargs: SchedulerKwargs = serde_json::from_value(case["kwargs"].clone()).unwrap();
        let number = |key: &str| case[key].as_u64().unwrap();
        let peak = case["peak"].as_f64().unwrap();
        let schedule = Schedule::new(scheduler, &kwargs, peak).unwrap();
        let want = case["rates"].as_array().unwrap();
        assert_eq!(want.len() as u64, number("steps"));
        for (step, want) in want.iter().enumerate() {
            let got = schedule.rate(step as u64, number("warmup"), number("steps"));
            let want = want.as_f64().unwrap();
            assert!((got - want).abs() <= 1e-15 * peak, "{case}: step {step}, {got} instead of {want}");
        }
    }
}

#[test]
fn a_warmup_ratio_is_rounded_as_transformers_rounds_it() {
    for case in cases("warmups") {
        let warmup_ratio = case["ratio"].as_f64();
        for flavour in [Flavour::Electra, Flavour::Txtai] {
            let settings = Settings { warmup_ratio, flavour: Some(flavour), ..settings() };
            let config = RunConfig::resolve(settings).unwrap();
            assert_eq!(config.warmup(case["steps"].as_u64().unwrap()), case["warmup"], "{case}");
        }
    }
}
