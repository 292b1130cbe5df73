//! Which of the metrics a run shows: those of the networks that it has.

use serde_json::{Map, Value};

use super::metrics::Metrics;
use crate::model::Objective;

/// Metrics by name. Without a discriminator its figures are left out.
pub fn figures(objective: Objective, metrics: &Metrics) -> Map<String, Value> {
    let Ok(Value::Object(mut all)) = serde_json::to_value(metrics) else { return Map::new() };
    if objective == Objective::Mlm {
        all.retain(|name, _| !name.starts_with("disc_") && !name.ends_with("fake_rate"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_language_model_has_no_figures_of_a_discriminator() {
        let metrics = Metrics { loss: 2.0, gen_loss: 2.0, gen_acc: 0.25, ..Metrics::default() };
        let all = figures(Objective::Electra, &metrics);
        assert_eq!(Value::Object(all.clone()), serde_json::to_value(metrics).unwrap());
        assert!(all.contains_key("disc_auc") && all.contains_key("fake_rate"));
        let own = figures(Objective::Mlm, &metrics);
        for (name, value) in [("loss", 2.0), ("gen_loss", 2.0), ("gen_acc", 0.25)] {
            assert_eq!(own[name], value);
        }
        assert!(own.keys().all(|name| !name.contains("disc") && !name.contains("fake")), "{own:?}");
    }
}
