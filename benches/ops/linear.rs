//! Linear layers: alone, after an activation, and the weight gradients of an encoder layer together.

use elektron::Result;
use elektron::backend::{Backend, Before, LinearBwd, LinearFwd, WeightGrad, Write};
use elektron::model::config::Activation;

use super::cases::{Cases, widths};

impl<B: Backend> Cases<'_, B> {
    pub(super) fn linear(
        &mut self,
        rows: usize,
        inputs: usize,
        outputs: usize,
        activation: Option<Activation>,
    ) -> Result<()> {
        let act = activation.map(|a| format!(" {a:?}").to_lowercase()).unwrap_or_default();
        let name = format!("linear {rows} × {inputs} → {outputs}{act}");
        let Some([forward, backward]) =
            self.named([&format!("{name}, forward"), &format!("{name}, backward")])
        else {
            return Ok(());
        };
        let b = self.b;
        // Only logits have padded rows.
        let pitch = if outputs == self.sizes.vocabulary { B::pitch(outputs) } else { outputs };
        let (n_in, n_out, n_weight) = (rows * inputs, rows * outputs, inputs * outputs);
        let (inp, weight, bias) = (self.x(n_in)?, self.x(n_weight)?, self.x(outputs)?);
        let (mut pre, mut out) = (self.x(n_out)?, self.x(rows * pitch)?);
        let (x, f) = widths::<B>();
        let saved = if activation.is_some() { n_out } else { 0 };
        let (flops, bytes) = (2 * rows * n_weight, x * (n_in + n_out + n_weight + saved));
        self.time(&forward, bytes, flops, &mut || {
            b.linear_fwd(LinearFwd {
                inputs,
                outputs,
                inp: B::slice(&inp, 0..n_in),
                weight: B::slice(&weight, 0..n_weight),
                bias: B::slice(&bias, 0..outputs),
                activation: activation.map(|a| (a, B::slice_mut(&mut pre, 0..n_out))),
                out: B::slice_mut(&mut out, 0..rows * pitch),
                pitch,
            })
        })?;
        let (mut dinp, mut dweight, mut dbias) = (self.x(n_in)?, self.f(n_weight)?, self.f(outputs)?);
        let bytes = x * (2 * n_in + n_out + n_weight + 2 * saved) + 2 * f * n_weight;
        self.time(&backward, bytes, 2 * flops, &mut || {
            b.linear_bwd(LinearBwd {
                inputs,
                outputs,
                rows,
                weight: B::slice(&weight, 0..n_weight),
                activation: activation.map(|a| (a, B::slice(&pre, 0..n_out))),
                dout: B::slice_mut(&mut out, 0..rows * pitch),
                pitch,
                before: None,
                dinp: (Write::Set, B::slice_mut(&mut dinp, 0..n_in)),
                dweight: Some((B::slice(&inp, 0..n_in), B::slice_mut(&mut dweight, 0..n_weight))),
                dbias: Some(B::slice_mut(&mut dbias, 0..outputs)),
            })
        })
    }

    /// The data gradient of a layer whose input came out of an activation, as between the two feed-forward layers.
    pub(super) fn linear_before(
        &mut self,
        rows: usize,
        inputs: usize,
        outputs: usize,
        activation: Activation,
    ) -> Result<()> {
        let kind = format!("{activation:?}").to_lowercase();
        let Some([name]) =
            self.named([&format!("data gradient {rows} × {outputs} → {inputs} through {kind}")])
        else {
            return Ok(());
        };
        let b = self.b;
        let (n_in, n_out, n_weight) = (rows * inputs, rows * outputs, inputs * outputs);
        let (weight, pre) = (self.x(n_weight)?, self.x(n_in)?);
        let mut act = if B::SAVES_ACTIVATIONS { None } else { Some(self.x(n_in)?) };
        let (mut dout, mut dinp, mut dbias) = (self.x(n_out)?, self.x(n_in)?, self.f(inputs)?);
        let bytes = widths::<B>().0 * (n_out + n_weight + (2 + usize::from(act.is_some())) * n_in);
        self.time(&name, bytes, 2 * rows * n_weight, &mut || {
            b.linear_bwd(LinearBwd {
                inputs,
                outputs,
                rows,
                weight: B::slice(&weight, 0..n_weight),
                activation: None,
                dout: B::slice_mut(&mut dout, 0..n_out),
                pitch: outputs,
                before: Some(Before {
                    activation,
                    pre: B::slice(&pre, 0..n_in),
                    act: act.as_mut().map(|act| B::slice_mut(act, 0..n_in)),
                    dbias: B::slice_mut(&mut dbias, 0..inputs),
                }),
                dinp: (Write::Set, B::slice_mut(&mut dinp, 0..n_in)),
                dweight: None,
                dbias: None,
            })
        })
    }

    /// Of the four linear layers of an encoder layer.
    pub(super) fn weight_grads(&mut self, rows: usize, c: usize) -> Result<()> {
        let Some([name]) = self.named([&format!("weight gradients of a layer, {rows} × {c}")]) else {
            return Ok(());
        };
        let b = self.b;
        let layers = [(4 * c, c), (c, 4 * c), (c, c), (c, 3 * c)];
        let mut buffers = Vec::new();
        for (inputs, outputs) in layers {
            buffers.push((self.x(rows * inputs)?, self.x(rows * outputs)?, self.f(outputs * inputs)?));
        }
        let (x, f) = widths::<B>();
        let bytes = layers.iter().map(|(i, o)| x * rows * (i + o) + 2 * f * i * o).sum();
        let flops = layers.iter().map(|(i, o)| 2 * rows * i * o).sum();
        self.time(&name, bytes, flops, &mut || {
            let each = layers.iter().zip(&mut buffers);
            let ops = each.map(|(&(inputs, outputs), (inp, dout, dweight))| WeightGrad {
                inputs,
                outputs,
                inp: B::slice(inp, 0..rows * inputs),
                dout: B::slice(dout, 0..rows * outputs),
                dweight: B::slice_mut(dweight, 0..outputs * inputs),
            });
            b.weight_grads(ops.collect())
        })
    }
}
