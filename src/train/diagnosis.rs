//! Where a step went bad: the first thing that is not finite, in the order in which a step computes.

use crate::Result;
use crate::backend::Backend;
use crate::data::Batch;
use crate::model::{Phase, TokenDetection};

/// Looks at the weights, then makes the step again from its micro-batches, and says what is the first that is not finite.
/// Gradients are zero afterwards.
pub(super) fn diagnose<B: Backend>(
    model: &mut TokenDetection<B>,
    micro_batches: Vec<(Batch, Phase)>,
) -> Result<String> {
    if let Some(name) = weights_not_finite(model)? {
        return Ok(format!("the weights `{name}` are not finite"));
    }
    model.zero_grad()?;
    let mut loss = None;
    for (batch, phase) in micro_batches {
        model.step_forward(&batch, phase, None)?;
        let out = model.read_step()?;
        let masked_lm = if model.is_masked_lm() { "model" } else { "generator" };
        let losses = [(masked_lm, out.gen_loss), ("discriminator", out.disc_loss)];
        loss = loss.or(losses.into_iter().find(|(_, loss)| !loss.is_finite()));
        model.step_backward()?;
    }
    let gradients = model.named_gradients()?;
    model.zero_grad()?;
    let bad: Vec<&str> =
        gradients.iter().filter(|(_, g)| !all_finite(&g.data)).map(|(name, _)| name.as_str()).collect();
    let gradients = match bad[..] {
        [] => "all gradients are finite, but the sum of their squares is not".to_owned(),
        [only] => format!("the gradient of `{only}` alone is not finite"),
        [first, .., last] => format!(
            "{} of {} gradients are not finite, from `{first}` to `{last}`, which the backward pass reaches first",
            bad.len(),
            gradients.len()
        ),
    };
    Ok(match loss {
        Some((network, value)) => format!("the {network}'s loss is {value}; {gradients}"),
        None => format!("the losses are finite; {gradients}"),
    })
}

/// The first parameter whose weights hold NaN or infinite numbers.
pub fn weights_not_finite<B: Backend>(model: &TokenDetection<B>) -> Result<Option<String>> {
    let weights = model.flat_weights()?;
    let bad = model.table().specs().iter().find(|spec| !all_finite(&weights[spec.range()]));
    Ok(bad.map(|spec| spec.name.clone()))
}

fn all_finite(values: &[f32]) -> bool {
    values.iter().all(|x| x.is_finite())
}
