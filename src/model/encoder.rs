//! The body that generator and discriminator share in kind: embedding block, projection, post-LayerNorm encoder
//! (Vaswani et al. 2017; Devlin et al. 2019), forward and backward.

use std::ops::Range;

use super::acts::{DeviceBatch, EncoderActs, LayerActs, Scratch};
use super::config::ElectraConfig;
use super::linear::{Also, Behind, Linear};
use super::norm::{Norm, Rows};
use super::params::{DELTA, DISCRIMINATOR, ParamTable, Params};
use crate::Result;
use crate::backend::{
    AttentionBwd, AttentionFwd, Backend, Dropout, EmbedBwd, EmbedFwd, EmbedTables, Sequences, WeightGrad,
    Write,
};
use crate::rng::Site;

/// Where the embedding block's parameters lie.
#[derive(Clone, Debug)]
struct Embedding {
    word: Range<usize>,
    delta: Option<Range<usize>>,
    position: Range<usize>,
    token_type: Range<usize>,
    norm: Norm,
}

/// Where one layer's parameters lie.
#[derive(Clone, Debug)]
struct Layer {
    qkv: Linear,
    attention_out: Linear,
    norm1: Norm,
    ff1: Linear,
    ff2: Linear,
    norm2: Norm,
}

/// What a step needs to know besides the parameters: randomness and batch size.
#[derive(Clone, Copy)]
pub(super) struct StepContext {
    /// Dropout's generator, step and first row; threshold and site are each op's own.
    pub(super) noise: Dropout,
    /// Whether dropout is on.
    pub(super) training: bool,
    /// N.
    pub(super) tokens: usize,
    /// M.
    pub(super) masked: usize,
    /// B.
    pub(super) sequences: usize,
    /// Longest sequence.
    pub(super) max_seqlen: usize,
}

impl StepContext {
    /// The dropout of one op.
    pub(super) fn dropout(&self, p: f64, site: Site) -> Dropout {
        if !self.training || p == 0.0 {
            return Dropout::OFF;
        }
        Dropout::new(p, self.noise.rng, site, self.noise.clock)
    }
}

/// A network without its head: where its parameters lie, and its two passes.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    pub(super) config: ElectraConfig,
    site: Site,
    embedding: Embedding,
    project: Option<Linear>,
    layers: Vec<Layer>,
}

impl Encoder {
    /// `prefix` is what the names of its parameters begin with.
    pub(super) fn new(table: &ParamTable, config: &ElectraConfig, prefix: &str, site: Site) -> Result<Self> {
        let electra = format!("{prefix}electra");
        let block = format!("{electra}.embeddings");
        let delta = (prefix == DISCRIMINATOR).then(|| table.range(DELTA).ok()).flatten();
        let embedding = Embedding {
            word: table.range(&format!("{block}.word_embeddings.weight"))?,
            delta,
            position: table.range(&format!("{block}.position_embeddings.weight"))?,
            token_type: table.range(&format!("{block}.token_type_embeddings.weight"))?,
            norm: Norm::new(table, &block, config.layer_norm_eps)?,
        };
        let layer = |l: usize| {
            let layer = format!("{electra}.encoder.layer.{l}");
            Ok(Layer {
                qkv: Linear::fused(table, &format!("{layer}.attention.self"))?,
                attention_out: Linear::new(table, &format!("{layer}.attention.output.dense"))?,
                norm1: Norm::new(table, &format!("{layer}.attention.output"), config.layer_norm_eps)?,
                ff1: Linear::new(table, &format!("{layer}.intermediate.dense"))?,
                ff2: Linear::new(table, &format!("{layer}.output.dense"))?,
                norm2: Norm::new(table, &format!("{layer}.output"), config.layer_norm_eps)?,
            })
        };
        let project = match config.embedding_size == config.hidden_size {
            true => None,
            false => Some(Linear::new(table, &format!("{electra}.embeddings_project"))?),
        };
        Ok(Self {
            config: config.clone(),
            site,
            embedding,
            project,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// Where the word embeddings lie: the generator's decoder is tied to them.
    pub(super) fn word(&self) -> Range<usize> {
        self.embedding.word.clone()
    }

    /// Site of the head's dropout: that of a layer after the last.
    pub(super) fn head_site(&self) -> Site {
        self.site.layer(self.layers.len() + 1, 0)
    }

    fn sequences<'a, B: Backend>(&self, step: &StepContext, batch: &'a DeviceBatch<B>) -> Sequences<'a, B> {
        Sequences {
            cu_seqlens: B::slice(&batch.cu_seqlens, 0..step.sequences + 1),
            key_len: B::slice(&batch.key_len, 0..step.sequences),
            max_seqlen: step.max_seqlen,
            heads: self.config.num_attention_heads,
            head_size: self.config.head_size(),
        }
    }

    fn tables<'a, B: Backend>(&self, working: &'a B::Buf<B::X>) -> EmbedTables<'a, B> {
        let e = &self.embedding;
        EmbedTables {
            word: B::slice(working, e.word.clone()),
            delta: e.delta.clone().map(|delta| B::slice(working, delta)),
            position: B::slice(working, e.position.clone()),
            token_type: B::slice(working, e.token_type.clone()),
            gamma: B::slice(working, e.norm.gamma.clone()),
            beta: B::slice(working, e.norm.beta.clone()),
        }
    }

    /// Leaves the result in [`EncoderActs::output`].
    pub(super) fn forward<B: Backend>(
        &self,
        backend: &B,
        params: &Params<B>,
        step: &StepContext,
        batch: &DeviceBatch<B>,
        ids: &B::Buf<u32>,
        acts: &mut EncoderActs<B>,
    ) -> Result<()> {
        let (n, e) = (step.tokens, self.config.embedding_size);
        backend.embed_fwd(EmbedFwd {
            width: e,
            ids: B::slice(ids, 0..n),
            positions: B::slice(&batch.positions, 0..n),
            types: B::slice(&batch.types, 0..n),
            tables: self.tables(&params.working),
            eps: self.config.layer_norm_eps,
            dropout: step.dropout(self.config.hidden_dropout_prob, self.site),
            out: B::slice_mut(&mut acts.embedded, 0..n * e),
            mean: B::slice_mut(&mut acts.stats.mean, 0..n),
            rstd: B::slice_mut(&mut acts.stats.rstd, 0..n),
        })?;
        let mut x = &acts.embedded;
        if let (Some(project), Some(projected)) = (&self.project, &mut acts.projected) {
            project.forward(backend, params, n, &acts.embedded, None, projected)?;
            x = projected;
        }
        for (l, (layer, a)) in self.layers.iter().zip(&mut acts.layers).enumerate() {
            let act = activation_of(&mut acts.activations, l);
            self.layer_forward(backend, params, step, batch, (l, layer), x, a, act)?;
            x = &a.y2;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // context, parameters and data of one layer
    fn layer_forward<B: Backend>(
        &self,
        backend: &B,
        params: &Params<B>,
        step: &StepContext,
        batch: &DeviceBatch<B>,
        (l, layer): (usize, &Layer),
        x: &B::Buf<B::X>,
        a: &mut LayerActs<B>,
        act: &mut B::Buf<B::X>,
    ) -> Result<()> {
        let (n, c) = (step.tokens, self.config.hidden_size);
        let site = |which| self.site.layer(l + 1, which);
        let hidden = |which| step.dropout(self.config.hidden_dropout_prob, site(which));
        layer.qkv.forward(backend, params, n, x, None, &mut a.qkv)?;
        backend.attention_fwd(AttentionFwd {
            sequences: self.sequences(step, batch),
            dropout: step.dropout(self.config.attention_probs_dropout_prob, site(0)),
            qkv: B::slice(&a.qkv, 0..3 * n * c),
            out: B::slice_mut(&mut a.attention, 0..n * c),
            lse: B::slice_mut(&mut a.lse, 0..n * self.config.num_attention_heads),
        })?;
        let rows = a.rows(step, batch);
        let (mut attention, mut residual) = (&a.attention, x);
        if let (Some(picked), Some(numbers)) = (&mut a.picked, rows.numbers) {
            for (from, to) in [(attention, &mut picked.attention), (residual, &mut picked.x)] {
                let (from, to) = (B::slice(from, 0..n * c), B::slice_mut(to, 0..rows.count * c));
                backend.gather_rows_fwd(c, B::slice(numbers, 0..rows.count), from, to)?;
            }
            (attention, residual) = (&picked.attention, &picked.x);
        }
        let m = rows.count;
        layer.attention_out.forward(backend, params, m, attention, None, &mut a.h1)?;
        layer.norm1.forward(
            backend,
            params,
            rows,
            &mut a.h1,
            Some(residual),
            hidden(1),
            &mut a.y1,
            &mut a.stats1,
        )?;
        let activation = Some((self.config.hidden_act, &mut a.pre));
        layer.ff1.forward(backend, params, m, &a.y1, activation, act)?;
        layer.ff2.forward(backend, params, m, act, None, &mut a.h2)?;
        layer.norm2.forward(
            backend,
            params,
            rows,
            &mut a.h2,
            Some(&a.y1),
            hidden(2),
            &mut a.y2,
            &mut a.stats2,
        )
    }

    /// `scratch.dy` holds the gradient of the encoder's output on entry.
    #[allow(clippy::too_many_arguments)] // context, parameters and data of the pass
    pub(super) fn backward<B: Backend>(
        &self,
        backend: &B,
        params: &mut Params<B>,
        step: &StepContext,
        batch: &DeviceBatch<B>,
        ids: &B::Buf<u32>,
        acts: &mut EncoderActs<B>,
        scratch: &mut Scratch<B>,
    ) -> Result<()> {
        let (n, e) = (step.tokens, self.config.embedding_size);
        let EncoderActs { embedded, projected, layers, activations, .. } = &mut *acts;
        for (l, (layer, a)) in self.layers.iter().zip(&*layers).enumerate().rev() {
            let first = || projected.as_ref().unwrap_or(embedded);
            let x = l.checked_sub(1).map_or_else(first, |l| &layers[l].y2);
            let act = activation_of(activations, l);
            self.layer_backward(backend, params, step, batch, (l, layer), x, a, act, scratch)?;
        }
        let dembedded = match &self.project {
            None => &mut scratch.dy,
            Some(project) => {
                let dinp = (Write::Set, &mut scratch.dembedded);
                project.backward(
                    backend,
                    params,
                    n,
                    Also::parameters(&acts.embedded),
                    &mut scratch.dy,
                    dinp,
                )?;
                &mut scratch.dembedded
            }
        };
        let t = &self.embedding;
        let word = t.delta.clone().unwrap_or(t.word.clone());
        let ranges =
            [word, t.position.clone(), t.token_type.clone(), t.norm.gamma.clone(), t.norm.beta.clone()];
        let [dword, dposition, dtoken_type, dgamma, dbeta] = B::disjoint_mut(&mut params.grads, ranges)?;
        backend.embed_bwd(EmbedBwd {
            width: e,
            ids: B::slice(ids, 0..n),
            positions: B::slice(&batch.positions, 0..n),
            types: B::slice(&batch.types, 0..n),
            tables: self.tables(&params.working),
            padding: self.config.pad_token_id,
            dropout: step.dropout(self.config.hidden_dropout_prob, self.site),
            mean: B::slice(&acts.stats.mean, 0..n),
            rstd: B::slice(&acts.stats.rstd, 0..n),
            dout: B::slice_mut(dembedded, 0..n * e),
            dword,
            dposition,
            dtoken_type,
            dgamma,
            dbeta,
        })
    }

    /// `scratch.dy`: gradient of the layer's result on entry, of its input on return.
    #[allow(clippy::too_many_arguments)] // context, parameters and data of one layer
    fn layer_backward<B: Backend>(
        &self,
        backend: &B,
        params: &mut Params<B>,
        step: &StepContext,
        batch: &DeviceBatch<B>,
        (l, layer): (usize, &Layer),
        x: &B::Buf<B::X>,
        a: &LayerActs<B>,
        act: &mut B::Buf<B::X>,
        s: &mut Scratch<B>,
    ) -> Result<()> {
        let (n, c) = (step.tokens, self.config.hidden_size);
        let site = |which| self.site.layer(l + 1, which);
        let hidden = |which| step.dropout(self.config.hidden_dropout_prob, site(which));
        let rows = a.rows(step, batch);
        let m = rows.count;
        let (norm, dresidual) = (&layer.norm2, Some(&mut s.dy1));
        let before = Some(&layer.ff2);
        norm.backward(
            backend,
            params,
            rows,
            &a.h2,
            &a.stats2,
            hidden(2),
            &s.dy,
            &mut s.dff,
            dresidual,
            before,
        )?;
        let again = if B::SAVES_ACTIVATIONS { None } else { Some(&mut *act) };
        let (linear, activation) = (&layer.ff1, self.config.hidden_act);
        let before = Some(Behind { linear, activation, pre: &a.pre, act: again });
        let dinp = (Write::Set, &mut s.dact);
        let also = Also { before, ..Also::NOTHING };
        layer.ff2.backward(backend, params, m, also, &mut s.dff, dinp)?;
        let dinp = (Write::Add, &mut s.dy1);
        layer.ff1.backward(backend, params, m, Also::NOTHING, &mut s.dact, dinp)?;

        // Gradients of picked rows wait in buffers that are free, until they lie among all rows again.
        let among_all = |from: &B::Buf<B::X>, to: &mut B::Buf<B::X>| match rows.numbers {
            Some(numbers) => {
                let (from, to) = (B::slice(from, 0..m * c), B::slice_mut(to, 0..n * c));
                backend.gather_rows_bwd(c, B::slice(numbers, 0..m), from, to)
            }
            None => Ok(()),
        };
        let picked = rows.numbers.is_some();
        let dresidual = if picked { &mut s.dattention } else { &mut s.dy };
        let (norm, before) = (&layer.norm1, Some(&layer.attention_out));
        let (dy, dresidual) = (&s.dy1, Some(dresidual));
        norm.backward(backend, params, rows, &a.h1, &a.stats1, hidden(1), dy, &mut s.dx, dresidual, before)?;
        among_all(&s.dattention, &mut s.dy)?;
        let dattention = if picked { &mut s.dqkv } else { &mut s.dattention };
        let dinp = (Write::Set, dattention);
        layer.attention_out.backward(backend, params, m, Also::NOTHING, &mut s.dx, dinp)?;
        among_all(&s.dqkv, &mut s.dattention)?;
        backend.attention_bwd(AttentionBwd {
            sequences: self.sequences(step, batch),
            dropout: step.dropout(self.config.attention_probs_dropout_prob, site(0)),
            qkv: B::slice(&a.qkv, 0..3 * n * c),
            out: B::slice(&a.attention, 0..n * c),
            lse: B::slice(&a.lse, 0..n * self.config.num_attention_heads),
            dout: B::slice(&s.dattention, 0..n * c),
            dqkv: B::slice_mut(&mut s.dqkv, 0..3 * n * c),
            dbias: B::slice_mut(&mut params.grads, layer.qkv.bias.clone()),
        })?;
        layer.qkv.backward(backend, params, n, Also::NOTHING, &mut s.dqkv, (Write::Add, &mut s.dy))?;
        layer.weight_grads(backend, params, (n, m), [x, act], a, s)
    }
}

/// Of layer `l`.
fn activation_of<T>(activations: &mut [T], l: usize) -> &mut T {
    let last = activations.len() - 1;
    &mut activations[l.min(last)]
}

impl<B: Backend> LayerActs<B> {
    /// What the layer computes once its attention is done.
    fn rows<'a>(&self, step: &StepContext, batch: &'a DeviceBatch<B>) -> Rows<'a, B> {
        match self.picked {
            Some(_) => Rows { count: step.masked, numbers: Some(&batch.masked_index) },
            None => Rows::first(step.tokens),
        }
    }

    /// What the linear layer after attention has read.
    fn attention_read(&self) -> &B::Buf<B::X> {
        self.picked.as_ref().map_or(&self.attention, |picked| &picked.attention)
    }
}

impl Layer {
    /// Of its four linear layers, which have read `x`, what attention left, LayerNorm's result and `act`; those of as many rows together: N before
    /// attention, M behind it.
    fn weight_grads<B: Backend>(
        &self,
        backend: &B,
        params: &mut Params<B>,
        (n, m): (usize, usize),
        [x, act]: [&B::Buf<B::X>; 2],
        a: &LayerActs<B>,
        s: &Scratch<B>,
    ) -> Result<()> {
        let linears = [&self.ff2, &self.ff1, &self.attention_out, &self.qkv];
        let operands =
            [(m, act, &s.dff), (m, &a.y1, &s.dact), (m, a.attention_read(), &s.dx), (n, x, &s.dqkv)];
        let dweights = B::disjoint_mut(&mut params.grads, linears.map(|linear| linear.weight.clone()))?;
        let each = linears.into_iter().zip(operands).zip(dweights);
        let ops = each.map(|((&Linear { inputs, outputs, .. }, (rows, inp, dout)), dweight)| WeightGrad {
            inputs,
            outputs,
            inp: B::slice(inp, 0..rows * inputs),
            dout: B::slice(dout, 0..rows * outputs),
            dweight,
        });
        let mut behind: Vec<_> = ops.collect();
        let before = behind.split_off(if n == m { behind.len() } else { 3 });
        [behind, before]
            .into_iter()
            .filter(|ops| !ops.is_empty())
            .try_for_each(|ops| backend.weight_grads(ops))
    }
}

impl<B: Backend> EncoderActs<B> {
    /// (N, C) what the first layer reads.
    fn input(&self) -> &B::Buf<B::X> {
        self.projected.as_ref().unwrap_or(&self.embedded)
    }

    /// (N, C) what the head reads; of the generator (M, C), the masked rows.
    pub(super) fn output(&self) -> &B::Buf<B::X> {
        self.layers.last().map_or_else(|| self.input(), |layer| &layer.y2)
    }
}
