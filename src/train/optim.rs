//! AdamW over the model's flat buffers, in both of its variants.

use crate::backend::{AdamW as Update, Backend, Float, Pending, UpdateRule};
use crate::model::{Params, Phase, TokenDetection};
use crate::{Error, Result};

/// The optimizer's constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices and embeddings.
    pub weight_decay: f64,
    /// `torch.optim.AdamW`'s correction; the paper's optimizer has none.
    pub bias_correction: bool,
    /// Largest global gradient norm.
    pub clip: Option<f64>,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-6,
            weight_decay: 0.01,
            bias_correction: false,
            clip: Some(1.0),
        }
    }
}

/// The optimizer and its moments.
pub struct AdamW<B: Backend> {
    options: AdamWOptions,
    step: u64,
    m: B::Buf<B::F>,
    v: B::Buf<B::F>,
    norm_squared: B::Buf<B::F>,
}

/// What a trainer's state holds of the optimizer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdamWState {
    /// Updates made.
    pub step: u64,
    /// First moments, in the order of the flat weights.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
}

impl<B: Backend> AdamW<B> {
    /// Zero moments for a model.
    pub fn new(model: &mut TokenDetection<B>, options: AdamWOptions) -> Result<Self> {
        let (backend, params) = model.backend_and_params();
        let len = params.table.len();
        let (m, v, norm_squared) = (backend.alloc(len)?, backend.alloc(len)?, backend.alloc(1)?);
        Ok(Self { options, step: 0, m, v, norm_squared })
    }

    /// One update with learning rate `lr` from the accumulated gradients, which are zero afterwards. Returns the
    /// global gradient norm before clipping; where it is not finite nothing was updated.
    pub fn step(&mut self, model: &mut TokenDetection<B>, lr: f64) -> Result<f64> {
        let rule = self.next(lr);
        let (backend, params) = model.backend_and_params();
        self.update_ops(backend, params, rule)?;
        let norm = self.fetch_norm(backend)?;
        self.collect_norm(backend, norm)
    }

    /// Forward and backward pass of a step's last micro-batch, which was staged, and the update.
    pub fn step_staged(&mut self, model: &mut TokenDetection<B>, phase: Phase, lr: f64) -> Result<()> {
        let rule = self.next(lr);
        model.backend().set_update(rule)?;
        model.step_staged_then(phase, Some(&mut |backend, params| self.update_ops(backend, params, rule)))
    }

    /// The constants of the update that comes now.
    fn next(&mut self, lr: f64) -> UpdateRule {
        self.step += 1;
        let o = self.options;
        UpdateRule {
            lr,
            beta1: o.beta1,
            beta2: o.beta2,
            eps: o.eps,
            weight_decay: o.weight_decay,
            bias_correction: o.bias_correction.then_some(self.step),
            max_norm: o.clip,
        }
    }

    fn update_ops(&mut self, backend: &B, params: &mut Params<B>, rule: UpdateRule) -> Result<()> {
        let len = params.table.len();
        backend.norm_squared(B::slice(&params.grads, 0..len), B::slice_mut(&mut self.norm_squared, 0..1))?;
        backend.adamw(Update {
            rule,
            norm_squared: B::slice(&self.norm_squared, 0..1),
            decayed: &params.table.decayed(),
            grads: B::slice_mut(&mut params.grads, 0..len),
            m: B::slice_mut(&mut self.m, 0..len),
            v: B::slice_mut(&mut self.v, 0..len),
            master: B::slice_mut(&mut params.master, 0..len),
            working: B::slice_mut(&mut params.working, 0..len),
        })
    }

    /// The global gradient norm of the last update, on its way.
    pub fn fetch_norm(&self, backend: &B) -> Result<Pending<B::F>> {
        backend.fetch(B::slice(&self.norm_squared, 0..1))
    }

    /// What [`Self::fetch_norm`] promised.
    pub fn collect_norm(&self, backend: &B, pending: Pending<B::F>) -> Result<f64> {
        Ok(backend.collect(pending)?[0].to_f64().sqrt())
    }

    /// Copies the moments out.
    pub fn state(&self, model: &mut TokenDetection<B>) -> Result<AdamWState> {
        let (backend, params) = model.backend_and_params();
        let len = params.table.len();
        let host = |buf| -> Result<Vec<f32>> {
            Ok(backend
                .download(B::slice(buf, 0..len))?
                .into_iter()
                .map(|x: B::F| x.to_f64() as f32)
                .collect())
        };
        Ok(AdamWState { step: self.step, m: host(&self.m)?, v: host(&self.v)? })
    }

    /// Takes back what [`Self::state`] gave.
    pub fn load_state(&mut self, model: &mut TokenDetection<B>, state: &AdamWState) -> Result<()> {
        let (backend, params) = model.backend_and_params();
        let len = params.table.len();
        if state.m.len() != len || state.v.len() != len {
            return Err(Error::argument(format!("{} moments given, the model has {len}", state.m.len())));
        }
        let device = |x: &[f32]| -> Vec<B::F> { x.iter().map(|&x| B::F::from_f64(f64::from(x))).collect() };
        backend.upload(&device(&state.m), B::slice_mut(&mut self.m, 0..len))?;
        backend.upload(&device(&state.v), B::slice_mut(&mut self.v, 0..len))?;
        self.step = state.step;
        Ok(())
    }
}
