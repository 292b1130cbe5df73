//! Every op of [`Backend`] at the sizes of a preset, on any backend. How an op is timed is the business of `Measure`.

use elektron::Result;
use elektron::backend::{
    AdamW, AddNormBwd, AddNormFwd, AttentionBwd, AttentionFwd, Backend, Clock, Dropout, EmbedBwd, EmbedFwd,
    EmbedTables, Float, Sequences, UpdateRule,
};
use elektron::model::config::Activation;
use elektron::rng::{Philox, Site};

#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Of the preset.
    pub(super) name: &'static str,
    /// N.
    pub(super) tokens: usize,
    /// T, of most cases.
    pub(super) seq_len: usize,
    /// C.
    pub(super) width: usize,
    /// E.
    pub(super) embedding: usize,
    /// V.
    pub(super) vocabulary: usize,
    /// Of both networks.
    pub(super) parameters: usize,
}

impl Sizes {
    /// M.
    pub(super) fn masked(&self) -> usize {
        self.tokens * 3 / 20
    }
}

/// What an op must do at the least: each operand crosses the memory bus once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) bytes: usize,
    pub(super) flops: usize,
}

/// Times an op under a name.
pub(super) type Measure<'a> = dyn FnMut(&str, Work, &mut dyn FnMut() -> Result<()>) -> Result<()> + 'a;

pub(super) struct Cases<'a, B: Backend> {
    pub(super) b: &'a B,
    pub(super) sizes: Sizes,
    pub(super) want: &'a dyn Fn(&str) -> bool,
    pub(super) measure: &'a mut Measure<'a>,
}

pub(super) fn dropout() -> Dropout {
    let clock = Clock { step: 1, ..Clock::default() };
    Dropout::new(0.1, Philox::new(1), Site(9), clock)
}

/// Bytes of a working value and of an exact one.
pub(super) fn widths<B: Backend>() -> (usize, usize) {
    (size_of::<B::X>(), size_of::<B::F>())
}

/// Sequences of one length.
struct Geometry<B: Backend> {
    cu: B::Buf<u32>,
    keys: B::Buf<u32>,
    rows: usize,
    seq_len: usize,
    heads: usize,
    head_size: usize,
}

impl<B: Backend> Geometry<B> {
    fn borrow(&self) -> Sequences<'_, B> {
        Sequences {
            cu_seqlens: B::slice(&self.cu, 0..self.rows + 1),
            key_len: B::slice(&self.keys, 0..self.rows),
            max_seqlen: self.seq_len,
            heads: self.heads,
            head_size: self.head_size,
        }
    }
}

/// What an embedding reads.
struct Tables<B: Backend> {
    /// Elements of the word and the position table, and of a row.
    widths: [usize; 3],
    word: B::Buf<B::X>,
    position: B::Buf<B::X>,
    token_type: B::Buf<B::X>,
    gamma: B::Buf<B::X>,
    beta: B::Buf<B::X>,
}

impl<B: Backend> Tables<B> {
    fn borrow(&self) -> EmbedTables<'_, B> {
        let [words, positions, e] = self.widths;
        EmbedTables {
            word: B::slice(&self.word, 0..words),
            delta: None,
            position: B::slice(&self.position, 0..positions),
            token_type: B::slice(&self.token_type, 0..2 * e),
            gamma: B::slice(&self.gamma, 0..e),
            beta: B::slice(&self.beta, 0..e),
        }
    }
}

impl<B: Backend> Cases<'_, B> {
    pub(super) fn x(&self, n: usize) -> Result<B::Buf<B::X>> {
        let values: Vec<B::X> =
            (0..n).map(|i| B::X::from_f64(((i * 7919) % 1013) as f64 / 506.5 - 1.0)).collect();
        let mut buf = self.b.alloc(n)?;
        self.b.upload(&values, B::slice_mut(&mut buf, 0..n))?;
        Ok(buf)
    }

    pub(super) fn f(&self, n: usize) -> Result<B::Buf<B::F>> {
        let values: Vec<B::F> = (0..n).map(|i| B::F::from_f64(((i * 7919) % 1013) as f64 / 1013.0)).collect();
        let mut buf = self.b.alloc(n)?;
        self.b.upload(&values, B::slice_mut(&mut buf, 0..n))?;
        Ok(buf)
    }

    pub(super) fn u(&self, values: &[u32]) -> Result<B::Buf<u32>> {
        let mut buf = self.b.alloc(values.len())?;
        self.b.upload(values, B::slice_mut(&mut buf, 0..values.len()))?;
        Ok(buf)
    }

    /// The whole names of a group's cases; nothing if none is asked for, so that nothing is allocated.
    pub(super) fn named<const K: usize>(&self, names: [&str; K]) -> Option<[String; K]> {
        let names = names.map(|name| format!("{}: {name}", self.sizes.name));
        names.iter().any(|name| (self.want)(name)).then_some(names)
    }

    pub(super) fn time(
        &mut self,
        name: &str,
        bytes: usize,
        flops: usize,
        op: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        if (self.want)(name) { (self.measure)(name, Work { bytes, flops }, op) } else { Ok(()) }
    }

    fn attention(&mut self, seq_len: usize) -> Result<()> {
        let name = format!("attention T {seq_len}");
        let Some([forward, backward]) =
            self.named([&format!("{name}, forward"), &format!("{name}, backward")])
        else {
            return Ok(());
        };
        let (b, c, head_size) = (self.b, self.sizes.width, 64);
        let (heads, rows) = (c / head_size, (self.sizes.tokens / seq_len).max(1));
        let n = rows * seq_len;
        let cu: Vec<u32> = (0..=rows).map(|i| (i * seq_len) as u32).collect();
        let (cu, keys) = (self.u(&cu)?, self.u(&vec![seq_len as u32; rows])?);
        let geometry = Geometry::<B> { cu, keys, rows, seq_len, heads, head_size };
        let (qkv, mut out, mut lse) = (self.x(3 * n * c)?, self.x(n * c)?, self.f(n * heads)?);
        let (x, flops) = (widths::<B>().0, 4 * n * seq_len * c);
        self.time(&forward, 4 * x * n * c, flops, &mut || {
            b.attention_fwd(AttentionFwd {
                sequences: geometry.borrow(),
                dropout: dropout(),
                qkv: B::slice(&qkv, 0..3 * n * c),
                out: B::slice_mut(&mut out, 0..n * c),
                lse: B::slice_mut(&mut lse, 0..n * heads),
            })
        })?;
        let (dout, mut dqkv, mut dbias) = (self.x(n * c)?, self.x(3 * n * c)?, self.f(3 * c)?);
        self.time(&backward, 8 * x * n * c, flops * 5 / 2, &mut || {
            b.attention_bwd(AttentionBwd {
                sequences: geometry.borrow(),
                dropout: dropout(),
                qkv: B::slice(&qkv, 0..3 * n * c),
                out: B::slice(&out, 0..n * c),
                lse: B::slice(&lse, 0..n * heads),
                dout: B::slice(&dout, 0..n * c),
                dqkv: B::slice_mut(&mut dqkv, 0..3 * n * c),
                dbias: B::slice_mut(&mut dbias, 0..3 * c),
            })
        })
    }

    fn norm(&mut self, what: &str, dropout: Dropout) -> Result<()> {
        let Some([forward, backward]) =
            self.named([&format!("{what}, forward"), &format!("{what}, backward")])
        else {
            return Ok(());
        };
        let (b, rows, width) = (self.b, self.sizes.tokens, self.sizes.width);
        let n = rows * width;
        let (mut h, residual, gamma, beta) = (self.x(n)?, self.x(n)?, self.x(width)?, self.x(width)?);
        let (mut y, mut mean, mut rstd) = (self.x(n)?, self.f(rows)?, self.f(rows)?);
        let bytes = 4 * widths::<B>().0 * n;
        self.time(&forward, bytes, 0, &mut || {
            b.add_dropout_layernorm_fwd(AddNormFwd {
                width,
                x: B::slice_mut(&mut h, 0..n),
                residual: Some(B::slice(&residual, 0..n)),
                dropout,
                numbers: None,
                gamma: B::slice(&gamma, 0..width),
                beta: B::slice(&beta, 0..width),
                eps: 1e-12,
                y: B::slice_mut(&mut y, 0..n),
                mean: B::slice_mut(&mut mean, 0..rows),
                rstd: B::slice_mut(&mut rstd, 0..rows),
            })
        })?;
        let (mut dx, mut dresidual) = (self.x(n)?, self.x(n)?);
        let (mut dgamma, mut dbeta, mut dbias) = (self.f(width)?, self.f(width)?, self.f(width)?);
        self.time(&backward, bytes, 0, &mut || {
            b.add_dropout_layernorm_bwd(AddNormBwd {
                width,
                h: B::slice(&h, 0..n),
                dropout,
                numbers: None,
                gamma: B::slice(&gamma, 0..width),
                mean: B::slice(&mean, 0..rows),
                rstd: B::slice(&rstd, 0..rows),
                dy: B::slice(&y, 0..n),
                dx: B::slice_mut(&mut dx, 0..n),
                dresidual: Some(B::slice_mut(&mut dresidual, 0..n)),
                dgamma: B::slice_mut(&mut dgamma, 0..width),
                dbeta: B::slice_mut(&mut dbeta, 0..width),
                dbias: Some(B::slice_mut(&mut dbias, 0..width)),
            })
        })
    }

    fn embedding(&mut self) -> Result<()> {
        let Some([forward, backward]) = self.named(["embedding, forward", "embedding, backward"]) else {
            return Ok(());
        };
        let Sizes { tokens, seq_len, embedding: e, vocabulary, .. } = self.sizes;
        let (b, n, positions) = (self.b, tokens * e, seq_len.max(512));
        let ids: Vec<u32> = (0..tokens as u32).map(|i| i.wrapping_mul(7919) % vocabulary as u32).collect();
        let places: Vec<u32> = (0..tokens).map(|i| (i % seq_len) as u32).collect();
        let (ids, places, types) = (self.u(&ids)?, self.u(&places)?, self.u(&vec![0; tokens])?);
        let tables = Tables::<B> {
            widths: [vocabulary * e, positions * e, e],
            word: self.x(vocabulary * e)?,
            position: self.x(positions * e)?,
            token_type: self.x(2 * e)?,
            gamma: self.x(e)?,
            beta: self.x(e)?,
        };
        let (mut out, mut mean, mut rstd) = (self.x(n)?, self.f(tokens)?, self.f(tokens)?);
        let (x, f) = widths::<B>();
        self.time(&forward, 4 * x * n, 0, &mut || {
            b.embed_fwd(EmbedFwd {
                width: e,
                ids: B::slice(&ids, 0..tokens),
                positions: B::slice(&places, 0..tokens),
                types: B::slice(&types, 0..tokens),
                tables: tables.borrow(),
                eps: 1e-12,
                dropout: dropout(),
                out: B::slice_mut(&mut out, 0..n),
                mean: B::slice_mut(&mut mean, 0..tokens),
                rstd: B::slice_mut(&mut rstd, 0..tokens),
            })
        })?;
        let (mut dword, mut dposition, mut dtype) =
            (self.f(vocabulary * e)?, self.f(positions * e)?, self.f(2 * e)?);
        let (mut dgamma, mut dbeta) = (self.f(e)?, self.f(e)?);
        // The sum anew and its gradient, then that added to three tables, two of them by scattered rows.
        self.time(&backward, (8 * x + 4 * f) * n, 0, &mut || {
            b.embed_bwd(EmbedBwd {
                width: e,
                ids: B::slice(&ids, 0..tokens),
                positions: B::slice(&places, 0..tokens),
                types: B::slice(&types, 0..tokens),
                tables: tables.borrow(),
                padding: Some(0),
                dropout: dropout(),
                mean: B::slice(&mean, 0..tokens),
                rstd: B::slice(&rstd, 0..tokens),
                dout: B::slice_mut(&mut out, 0..n),
                dword: B::slice_mut(&mut dword, 0..vocabulary * e),
                dposition: B::slice_mut(&mut dposition, 0..positions * e),
                dtoken_type: B::slice_mut(&mut dtype, 0..2 * e),
                dgamma: B::slice_mut(&mut dgamma, 0..e),
                dbeta: B::slice_mut(&mut dbeta, 0..e),
            })
        })
    }

    fn rows(&mut self) -> Result<()> {
        let Some(names) = self.named(["dropout", "gathered rows, forward", "gathered rows, backward"]) else {
            return Ok(());
        };
        let (b, width, m) = (self.b, self.sizes.width, self.sizes.masked());
        let n = self.sizes.tokens * width;
        let (inp, mut out) = (self.x(n)?, self.x(n)?);
        let x = widths::<B>().0;
        self.time(&names[0], 2 * x * n, 0, &mut || {
            b.dropout(width, dropout(), B::slice(&inp, 0..n), B::slice_mut(&mut out, 0..n))
        })?;
        let index: Vec<u32> = (0..m as u32).map(|i| i * 20 / 3).collect();
        let (index, mut few) = (self.u(&index)?, self.x(m * width)?);
        self.time(&names[1], 2 * x * m * width, 0, &mut || {
            let few = B::slice_mut(&mut few, 0..m * width);
            b.gather_rows_fwd(width, B::slice(&index, 0..m), B::slice(&inp, 0..n), few)
        })?;
        self.time(&names[2], x * (2 * m * width + n), 0, &mut || {
            let few = B::slice(&few, 0..m * width);
            b.gather_rows_bwd(width, B::slice(&index, 0..m), few, B::slice_mut(&mut out, 0..n))
        })
    }

    fn optimizer(&mut self) -> Result<()> {
        let Some(names) = self.named(["gradient norm", "AdamW", "cast"]) else { return Ok(()) };
        let (b, n) = (self.b, self.sizes.parameters);
        let (mut grads, mut m, mut v) = (self.f(n)?, self.f(n)?, self.f(n)?);
        let (mut master, mut working, mut norm) = (self.f(n)?, self.x(n)?, self.f(1)?);
        let (x, f) = widths::<B>();
        self.time(&names[0], f * n, 0, &mut || {
            b.norm_squared(B::slice(&grads, 0..n), B::slice_mut(&mut norm, 0..1))
        })?;
        let rule = UpdateRule {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-6,
            weight_decay: 0.01,
            bias_correction: None,
            max_norm: Some(1.0),
        };
        self.time(&names[1], (8 * f + x) * n, 0, &mut || {
            b.adamw(AdamW {
                rule,
                norm_squared: B::slice(&norm, 0..1),
                decayed: std::slice::from_ref(&(0..n)),
                grads: B::slice_mut(&mut grads, 0..n),
                m: B::slice_mut(&mut m, 0..n),
                v: B::slice_mut(&mut v, 0..n),
                master: B::slice_mut(&mut master, 0..n),
                working: B::slice_mut(&mut working, 0..n),
            })
        })?;
        self.time(&names[2], (f + x) * n, 0, &mut || {
            b.cast(B::slice(&master, 0..n), B::slice_mut(&mut working, 0..n))
        })
    }

    /// Every op.
    pub(super) fn run(mut self) -> Result<()> {
        let Sizes { tokens, seq_len, width, embedding, vocabulary, .. } = self.sizes;
        for (rows, inputs, outputs, activation) in [
            (tokens, width, 3 * width, None),
            (tokens, width, width, None),
            (tokens, width, 4 * width, Some(Activation::Gelu)),
            (tokens, 4 * width, width, None),
            (self.sizes.masked(), embedding, vocabulary, None),
        ] {
            self.linear(rows, inputs, outputs, activation)?;
        }
        self.linear_before(tokens, 4 * width, width, Activation::Gelu)?;
        self.weight_grads(tokens, width)?;
        self.attention(seq_len)?;
        if seq_len != 512 {
            self.attention(512)?;
        }
        self.norm("dropout + residual + LayerNorm", dropout())?;
        self.norm("residual + LayerNorm", Dropout::OFF)?;
        self.embedding()?;
        self.rows()?;
        self.mask()?;
        self.mlm_loss()?;
        self.discriminator_head()?;
        self.metrics()?;
        self.optimizer()
    }
}
