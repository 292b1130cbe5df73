//! Activations: what the forward pass leaves for the backward pass, as named fields, and the scratch that both share.
//!
//! Sizes come from one list of fields for each block, which allocates the buffers and makes the memory plan alike: a
//! plan is printed without a device.

use super::config::{Architecture, ElectraConfig};
use crate::Result;
use crate::backend::Backend;

/// The largest batch a model is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// N, packed tokens.
    pub tokens: usize,
    /// B, sequences.
    pub sequences: usize,
    /// M, masked positions.
    pub masked: usize,
}

impl BatchLimits {
    /// Whether a batch of `other`'s size fits.
    pub fn holds(self, other: Self) -> bool {
        self.tokens >= other.tokens && self.sequences >= other.sequences && self.masked >= other.masked
    }

    /// The smallest limits that hold both.
    pub fn union(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.max(other.tokens),
            sequences: self.sequences.max(other.sequences),
            masked: self.masked.max(other.masked),
        }
    }
}

/// Allocates a named field, or only counts it.
pub(super) trait Allocator<B: Backend> {
    fn working(&mut self, name: &str, len: usize) -> Result<B::Buf<B::X>>;
    fn exact(&mut self, name: &str, len: usize) -> Result<B::Buf<B::F>>;
    fn index(&mut self, name: &str, len: usize) -> Result<B::Buf<u32>>;
}

/// The allocator of a real model.
pub(super) struct OnDevice<'a, B>(pub(super) &'a B);

impl<B: Backend> Allocator<B> for OnDevice<'_, B> {
    fn working(&mut self, _: &str, len: usize) -> Result<B::Buf<B::X>> {
        self.0.alloc(len)
    }
    fn exact(&mut self, _: &str, len: usize) -> Result<B::Buf<B::F>> {
        self.0.alloc(len)
    }
    fn index(&mut self, _: &str, len: usize) -> Result<B::Buf<u32>> {
        self.0.alloc(len)
    }
}

/// Allocates nothing and adds up bytes by family.
pub(super) struct Counting<'a, B> {
    pub(super) backend: &'a B,
    pub(super) family: &'static str,
    pub(super) entries: Vec<PlanEntry>,
}

impl<B: Backend> Counting<'_, B> {
    fn count(&mut self, name: &str, bytes: usize) {
        let bytes = bytes as u64;
        match self.entries.iter_mut().find(|entry| entry.family == self.family && entry.name == name) {
            Some(entry) => entry.bytes += bytes,
            None => self.entries.push(PlanEntry { family: self.family, name: name.to_owned(), bytes }),
        }
    }
}

impl<B: Backend> Allocator<B> for Counting<'_, B> {
    fn working(&mut self, name: &str, len: usize) -> Result<B::Buf<B::X>> {
        self.count(name, len * size_of::<B::X>());
        self.backend.alloc(0)
    }
    fn exact(&mut self, name: &str, len: usize) -> Result<B::Buf<B::F>> {
        self.count(name, len * size_of::<B::F>());
        self.backend.alloc(0)
    }
    fn index(&mut self, name: &str, len: usize) -> Result<B::Buf<u32>> {
        self.count(name, len * size_of::<u32>());
        self.backend.alloc(0)
    }
}

/// A line of the memory plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanEntry {
    /// `parameters`, `generator`, `discriminator` or `model`, `scratch`.
    pub family: &'static str,
    /// The field, summed over layers.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// Mean and reciprocal standard deviation of N rows.
pub(super) struct Stats<B: Backend> {
    pub(super) mean: B::Buf<B::F>,
    pub(super) rstd: B::Buf<B::F>,
}

impl<B: Backend> Stats<B> {
    fn new(a: &mut impl Allocator<B>, rows: usize) -> Result<Self> {
        Ok(Self { mean: a.exact("mean, rstd", rows)?, rstd: a.exact("mean, rstd", rows)? })
    }
}

/// Of one encoder layer.
pub(super) struct LayerActs<B: Backend> {
    /// (N, 3C)
    pub(super) qkv: B::Buf<B::X>,
    /// (N, NH)
    pub(super) lse: B::Buf<B::F>,
    /// (N, C)
    pub(super) attention: B::Buf<B::X>,
    /// Where only the masked rows of the layer's result are wanted: N is their number from here on.
    pub(super) picked: Option<PickedActs<B>>,
    /// (N, C) sum that the first LayerNorm reads.
    pub(super) h1: B::Buf<B::X>,
    pub(super) stats1: Stats<B>,
    /// (N, C)
    pub(super) y1: B::Buf<B::X>,
    /// (N, F) argument of the activation function.
    pub(super) pre: B::Buf<B::X>,
    /// (N, C) sum that the second LayerNorm reads.
    pub(super) h2: B::Buf<B::X>,
    pub(super) stats2: Stats<B>,
    /// (N, C)
    pub(super) y2: B::Buf<B::X>,
}

/// What a layer of which only the M masked rows are wanted reads of those, once attention is done.
pub(super) struct PickedActs<B: Backend> {
    /// (M, C)
    pub(super) attention: B::Buf<B::X>,
    /// (M, C) the layer's input.
    pub(super) x: B::Buf<B::X>,
}

/// Of a network without its head.
pub(super) struct EncoderActs<B: Backend> {
    /// (N, E)
    pub(super) embedded: B::Buf<B::X>,
    pub(super) stats: Stats<B>,
    /// (N, C), where E ≠ C.
    pub(super) projected: Option<B::Buf<B::X>>,
    pub(super) layers: Vec<LayerActs<B>>,
    /// (N, F) results of the activation function: each layer's, or one for all where they are computed again
    /// ([`Backend::SAVES_ACTIVATIONS`]).
    pub(super) activations: Vec<B::Buf<B::X>>,
}

impl<B: Backend> EncoderActs<B> {
    /// `picked`: M, if only the masked rows of the result are wanted.
    pub(super) fn new(
        a: &mut impl Allocator<B>,
        config: &ElectraConfig,
        n: usize,
        picked: Option<usize>,
    ) -> Result<Self> {
        let (c, f) = (config.hidden_size, config.intermediate_size);
        let layer = |a: &mut _, picked: Option<usize>| {
            let rows = picked.unwrap_or(n);
            let working = Allocator::<B>::working;
            Ok(LayerActs {
                qkv: working(a, "queries, keys, values", 3 * n * c)?,
                lse: Allocator::<B>::exact(a, "log-sum-exp", n * config.num_attention_heads)?,
                attention: working(a, "attention", n * c)?,
                picked: match picked {
                    Some(m) => Some(PickedActs {
                        attention: working(a, "attention", m * c)?,
                        x: working(a, "layer norms", m * c)?,
                    }),
                    None => None,
                },
                h1: working(a, "residual sums", rows * c)?,
                stats1: Stats::new(a, rows)?,
                y1: working(a, "layer norms", rows * c)?,
                pre: working(a, "before activation", rows * f)?,
                h2: working(a, "residual sums", rows * c)?,
                stats2: Stats::new(a, rows)?,
                y2: working(a, "layer norms", rows * c)?,
            })
        };
        let last = config.num_hidden_layers.saturating_sub(1);
        let rows = |l: usize| picked.filter(|_| l == last).unwrap_or(n);
        let kept =
            if B::SAVES_ACTIVATIONS { config.num_hidden_layers } else { config.num_hidden_layers.min(1) };
        Ok(Self {
            embedded: a.working("embeddings", n * config.embedding_size)?,
            stats: Stats::new(a, n)?,
            projected: match config.embedding_size == c {
                true => None,
                false => Some(a.working("embeddings", n * c)?),
            },
            layers: (0..config.num_hidden_layers)
                .map(|l| layer(a, picked.filter(|_| l == last)))
                .collect::<Result<_>>()?,
            activations: (0..kept).map(|l| a.working("activation", rows(l) * f)).collect::<Result<_>>()?,
        })
    }
}

/// Of the masked language model head, M rows.
pub(super) struct MlmActs<B: Backend> {
    /// (M, E)
    pub(super) pre: B::Buf<B::X>,
    /// (M, E) what the LayerNorm reads.
    pub(super) h: B::Buf<B::X>,
    pub(super) stats: Stats<B>,
    /// (M, E)
    pub(super) y: B::Buf<B::X>,
    /// (M, V), their gradient after the loss.
    pub(super) logits: B::Buf<B::X>,
    /// (M)
    pub(super) nll: B::Buf<B::F>,
    /// (M)
    pub(super) best: B::Buf<u32>,
    /// (M)
    pub(super) sampled: B::Buf<u32>,
    /// (M, E), gradients.
    pub(super) dy: B::Buf<B::X>,
    /// (M, E)
    pub(super) dh: B::Buf<B::X>,
}

impl<B: Backend> MlmActs<B> {
    pub(super) fn new(a: &mut impl Allocator<B>, config: &ElectraConfig, m: usize) -> Result<Self> {
        let e = config.embedding_size;
        Ok(Self {
            pre: a.working("head", m * e)?,
            h: a.working("head", m * e)?,
            stats: Stats::new(a, m)?,
            y: a.working("head", m * e)?,
            logits: a.working("logits", m * B::pitch(config.vocab_size))?,
            nll: a.exact("head", m)?,
            best: a.index("head", m)?,
            sampled: a.index("head", m)?,
            dy: a.working("head", m * e)?,
            dh: a.working("head", m * e)?,
        })
    }
}

/// Of the discriminator's head.
pub(super) struct RtdActs<B: Backend> {
    /// (N) what the discriminator reads.
    pub(super) corrupted: B::Buf<u32>,
    /// (N)
    pub(super) is_fake: B::Buf<u32>,
    /// (N, C) argument of the activation function (pre-training head).
    pub(super) pre: B::Buf<B::X>,
    /// (N, C) what the last linear layer reads: activation, or the encoder's output after dropout.
    pub(super) inp: B::Buf<B::X>,
    /// (N, labels)
    pub(super) logits: B::Buf<B::X>,
    /// (N, labels)
    pub(super) dlogits: B::Buf<B::X>,
    /// (N)
    pub(super) nll: B::Buf<B::F>,
}

impl<B: Backend> RtdActs<B> {
    pub(super) fn new(
        a: &mut impl Allocator<B>,
        config: &ElectraConfig,
        head: Architecture,
        n: usize,
    ) -> Result<Self> {
        let c = config.hidden_size;
        let (labels, pre) = if head == Architecture::TokenClassification { (2, 0) } else { (1, n * c) };
        Ok(Self {
            corrupted: a.index("head", n)?,
            is_fake: a.index("head", n)?,
            pre: a.working("head", pre)?,
            inp: a.working("head", n * c)?,
            logits: a.working("head", n * labels)?,
            dlogits: a.working("head", n * labels)?,
            nll: a.exact("head", n)?,
        })
    }
}

/// Gradients of activations: dead as soon as the next op has read them, so one set serves both networks.
pub(super) struct Scratch<B: Backend> {
    /// (N, C) gradient of a layer's result, then of its input.
    pub(super) dy: B::Buf<B::X>,
    /// (N, C) gradient of the first LayerNorm's result.
    pub(super) dy1: B::Buf<B::X>,
    /// (N, C) gradient of the result of the linear layer after attention.
    pub(super) dx: B::Buf<B::X>,
    /// (N, C) gradient of the second feed-forward layer's result: kept until the layer's weight gradients are computed together.
    pub(super) dff: B::Buf<B::X>,
    /// (N, C) gradient of attention's result.
    pub(super) dattention: B::Buf<B::X>,
    /// (N, 3C)
    pub(super) dqkv: B::Buf<B::X>,
    /// (N, F)
    pub(super) dact: B::Buf<B::X>,
    /// (N, E)
    pub(super) dembedded: B::Buf<B::X>,
}

impl<B: Backend> Scratch<B> {
    pub(super) fn new(a: &mut impl Allocator<B>, configs: [&ElectraConfig; 2], n: usize) -> Result<Self> {
        let widest = |size: fn(&ElectraConfig) -> usize| n * size(configs[0]).max(size(configs[1]));
        let (c, f) = (widest(|c| c.hidden_size), widest(|c| c.intermediate_size));
        Ok(Self {
            dy: a.working("gradients", c)?,
            dy1: a.working("gradients", c)?,
            dx: a.working("gradients", c)?,
            dff: a.working("gradients", c)?,
            dattention: a.working("gradients", c)?,
            dqkv: a.working("gradients", 3 * c)?,
            dact: a.working("gradients", f)?,
            dembedded: a.working("gradients", widest(|c| c.embedding_size))?,
        })
    }
}

/// A batch on the device.
pub(super) struct DeviceBatch<B: Backend> {
    pub(super) ids: B::Buf<u32>,
    pub(super) masked_ids: B::Buf<u32>,
    pub(super) positions: B::Buf<u32>,
    pub(super) types: B::Buf<u32>,
    pub(super) cu_seqlens: B::Buf<u32>,
    pub(super) key_len: B::Buf<u32>,
    pub(super) masked_index: B::Buf<u32>,
    pub(super) targets: B::Buf<u32>,
    pub(super) mlm_weight: B::Buf<B::F>,
    pub(super) rtd_weight: B::Buf<B::F>,
}

impl<B: Backend> DeviceBatch<B> {
    /// `judged`: whether a discriminator judges the tokens.
    pub(super) fn new(a: &mut impl Allocator<B>, limits: BatchLimits, judged: bool) -> Result<Self> {
        let (n, b, m) = (limits.tokens, limits.sequences, limits.masked);
        Ok(Self {
            ids: a.index("batch", n)?,
            masked_ids: a.index("batch", n)?,
            positions: a.index("batch", n)?,
            types: a.index("batch", n)?,
            cu_seqlens: a.index("batch", b + 1)?,
            key_len: a.index("batch", b)?,
            masked_index: a.index("batch", m)?,
            targets: a.index("batch", m)?,
            mlm_weight: a.exact("batch", m)?,
            rtd_weight: a.exact("batch", if judged { n } else { 0 })?,
        })
    }
}
