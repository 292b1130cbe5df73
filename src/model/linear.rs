//! Linear layers: where their parameters lie, their two passes, and what a backward pass takes along.

use std::ops::Range;

use super::config::Activation;
use super::params::{ParamTable, Params};
use crate::Result;
use crate::backend::{Backend, Before, LinearBwd, LinearFwd, Write};

/// Where a linear layer's parameters lie.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub(super) weight: Range<usize>,
    pub(super) bias: Range<usize>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Elements between rows of its result.
    pub(super) pitch: usize,
}

impl Linear {
    pub(super) fn new(table: &ParamTable, name: &str) -> Result<Self> {
        let weight = table.get(&format!("{name}.weight"))?;
        let (outputs, inputs) = (weight.shape[0], weight.shape[1]);
        let bias = table.range(&format!("{name}.bias"))?;
        Ok(Self { weight: weight.range(), bias, inputs, outputs, pitch: outputs })
    }

    /// Queries, keys and values as one layer with 3C outputs.
    pub(super) fn fused(table: &ParamTable, name: &str) -> Result<Self> {
        let query = Self::new(table, &format!("{name}.query"))?;
        let value = Self::new(table, &format!("{name}.value"))?;
        Ok(Self {
            weight: query.weight.start..value.weight.end,
            bias: query.bias.start..value.bias.end,
            inputs: query.inputs,
            outputs: 3 * query.outputs,
            pitch: 3 * query.outputs,
        })
    }

    /// On `rows` rows.
    pub(super) fn forward<B: Backend>(
        &self,
        backend: &B,
        params: &Params<B>,
        rows: usize,
        inp: &B::Buf<B::X>,
        activation: Option<(Activation, &mut B::Buf<B::X>)>,
        out: &mut B::Buf<B::X>,
    ) -> Result<()> {
        let (inputs, outputs) = (self.inputs, self.outputs);
        backend.linear_fwd(LinearFwd {
            inputs,
            outputs,
            inp: B::slice(inp, 0..rows * inputs),
            weight: B::slice(&params.working, self.weight.clone()),
            bias: B::slice(&params.working, self.bias.clone()),
            activation: activation.map(|(kind, pre)| (kind, B::slice_mut(pre, 0..rows * outputs))),
            out: B::slice_mut(out, 0..rows * self.pitch),
            pitch: self.pitch,
        })
    }

    /// `dinp` of `dout`, and what `also` asks for.
    pub(super) fn backward<B: Backend>(
        &self,
        backend: &B,
        params: &mut Params<B>,
        rows: usize,
        also: Also<'_, B>,
        dout: &mut B::Buf<B::X>,
        dinp: (Write, &mut B::Buf<B::X>),
    ) -> Result<()> {
        let (inputs, outputs) = (self.inputs, self.outputs);
        // Nothing is an empty stretch at the end.
        let end = self.bias.end;
        let behind = also.before.as_ref().map_or(end..end, |behind| behind.linear.bias.clone());
        let ranges = [self.weight.clone(), self.bias.clone(), behind];
        let [dweight, dbias, dbefore] = B::disjoint_mut(&mut params.grads, ranges)?;
        let before = also.before.map(|behind| Before {
            activation: behind.activation,
            pre: B::slice(behind.pre, 0..rows * inputs),
            act: behind.act.map(|act| B::slice_mut(act, 0..rows * inputs)),
            dbias: dbefore,
        });
        backend.linear_bwd(LinearBwd {
            inputs,
            outputs,
            rows,
            weight: B::slice(&params.working, self.weight.clone()),
            activation: also.activation.map(|(kind, pre)| (kind, B::slice(pre, 0..rows * outputs))),
            dout: B::slice_mut(dout, 0..rows * self.pitch),
            pitch: self.pitch,
            before,
            dinp: (dinp.0, B::slice_mut(dinp.1, 0..rows * inputs)),
            dweight: also.inp.map(|inp| (B::slice(inp, 0..rows * inputs), dweight)),
            dbias: also.bias.then_some(dbias),
        })
    }
}

/// What a linear layer's backward pass does besides the gradient of its input.
pub(super) struct Also<'a, B: Backend> {
    /// First the derivative of its activation, with the saved argument.
    pub(super) activation: Option<(Activation, &'a B::Buf<B::X>)>,
    /// Its weight's gradient, from its input, unless that comes later.
    pub(super) inp: Option<&'a B::Buf<B::X>>,
    /// Its bias's gradient, unless the op behind has added it.
    pub(super) bias: bool,
    /// Last the derivative of the activation that made its input, and the bias gradient of the layer before.
    pub(super) before: Option<Behind<'a, B>>,
}

/// A linear layer with an activation, seen from the layer that follows.
pub(super) struct Behind<'a, B: Backend> {
    pub(super) linear: &'a Linear,
    pub(super) activation: Activation,
    /// The activation's saved argument.
    pub(super) pre: &'a B::Buf<B::X>,
    /// Its result, if that is to be computed again.
    pub(super) act: Option<&'a mut B::Buf<B::X>>,
}

impl<'a, B: Backend> Also<'a, B> {
    /// Gradients of weight and bias.
    pub(super) fn parameters(inp: &'a B::Buf<B::X>) -> Self {
        Self { activation: None, inp: Some(inp), bias: true, before: None }
    }

    /// Neither.
    pub(super) const NOTHING: Self = Self { activation: None, inp: None, bias: false, before: None };
}
