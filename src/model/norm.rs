//! LayerNorm with the dropout and the residual before it, on all rows of a batch or some.

use std::ops::Range;

use super::acts::Stats;
use super::linear::Linear;
use super::params::{ParamTable, Params};
use crate::Result;
use crate::backend::{AddNormBwd, AddNormFwd, Backend, Dropout};

/// Rows of a batch.
pub(super) struct Rows<'a, B: Backend> {
    pub(super) count: usize,
    /// Which ones, if not the first.
    pub(super) numbers: Option<&'a B::Buf<u32>>,
}

// Derived, they would ask the same of `B`.
impl<B: Backend> Copy for Rows<'_, B> {}
impl<B: Backend> Clone for Rows<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Rows<'_, B> {
    /// The first.
    pub(super) fn first(count: usize) -> Self {
        Self { count, numbers: None }
    }
}

/// Where a LayerNorm's parameters lie.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub(super) gamma: Range<usize>,
    pub(super) beta: Range<usize>,
    eps: f64,
}

impl Norm {
    pub(super) fn new(table: &ParamTable, name: &str, eps: f64) -> Result<Self> {
        let gamma = table.range(&format!("{name}.LayerNorm.weight"))?;
        Ok(Self { gamma, beta: table.range(&format!("{name}.LayerNorm.bias"))?, eps })
    }

    /// y = LN(residual + dropout(x)); x becomes the sum.
    #[allow(clippy::too_many_arguments)] // the operands of one op
    pub(super) fn forward<B: Backend>(
        &self,
        backend: &B,
        params: &Params<B>,
        Rows { count: rows, numbers }: Rows<'_, B>,
        x: &mut B::Buf<B::X>,
        residual: Option<&B::Buf<B::X>>,
        dropout: Dropout,
        y: &mut B::Buf<B::X>,
        stats: &mut Stats<B>,
    ) -> Result<()> {
        let width = self.gamma.len();
        backend.add_dropout_layernorm_fwd(AddNormFwd {
            width,
            x: B::slice_mut(x, 0..rows * width),
            residual: residual.map(|r| B::slice(r, 0..rows * width)),
            dropout,
            numbers: numbers.map(|numbers| B::slice(numbers, 0..rows)),
            gamma: B::slice(&params.working, self.gamma.clone()),
            beta: B::slice(&params.working, self.beta.clone()),
            eps: self.eps,
            y: B::slice_mut(y, 0..rows * width),
            mean: B::slice_mut(&mut stats.mean, 0..rows),
            rstd: B::slice_mut(&mut stats.rstd, 0..rows),
        })
    }

    /// `before`: the linear layer that made x; its bias gradient is added here.
    #[allow(clippy::too_many_arguments)] // as above
    pub(super) fn backward<B: Backend>(
        &self,
        backend: &B,
        params: &mut Params<B>,
        Rows { count: rows, numbers }: Rows<'_, B>,
        h: &B::Buf<B::X>,
        stats: &Stats<B>,
        dropout: Dropout,
        dy: &B::Buf<B::X>,
        dx: &mut B::Buf<B::X>,
        dresidual: Option<&mut B::Buf<B::X>>,
        before: Option<&Linear>,
    ) -> Result<()> {
        let width = self.gamma.len();
        let (gamma, beta) = (self.gamma.clone(), self.beta.clone());
        // Nothing is an empty stretch at the end.
        let bias = before.map_or(beta.end..beta.end, |linear| linear.bias.clone());
        let [dgamma, dbeta, dbias] = B::disjoint_mut(&mut params.grads, [gamma, beta, bias])?;
        let dbias = before.map(|_| dbias);
        backend.add_dropout_layernorm_bwd(AddNormBwd {
            width,
            h: B::slice(h, 0..rows * width),
            dropout,
            numbers: numbers.map(|numbers| B::slice(numbers, 0..rows)),
            gamma: B::slice(&params.working, self.gamma.clone()),
            mean: B::slice(&stats.mean, 0..rows),
            rstd: B::slice(&stats.rstd, 0..rows),
            dy: B::slice(dy, 0..rows * width),
            dx: B::slice_mut(dx, 0..rows * width),
            dresidual: dresidual.map(|d| B::slice_mut(d, 0..rows * width)),
            dgamma,
            dbeta,
            dbias,
        })
    }
}
