//! Every op of the GPU backend against the CPU's in double precision, on the emulated device, and on a real one where there is one.
//!
//! The error of a bf16 result may be twice that of the naive computation, which works in single precision and rounds what it stores; of
//! an fp32 result, twice that of the CPU's single precision. Integers are equal. Buffers have guard bands, outputs start as NaN.

use elektron::backend::gpu::Working;
use elektron::backend::gpu::driver::Driver;
use elektron::backend::{
    AdamW, AddNormBwd, AddNormFwd, AttentionBwd, AttentionFwd, Backend, Corrupt, Cpu, Dropout, EmbedBwd,
    EmbedFwd, EmbedTables, Float, Gpu, LinearBwd, LinearFwd, MlmLoss, RtdLoss, Sequences, Write,
};
use elektron::model::config::Activation;
use elektron::rng::{Philox, Site, threshold};
use half::bf16;

use crate::ops::noise;
use crate::support::relative_l2;

/// Gradients start at this, so that `+=` shows.
const BEFORE: f64 = 0.25;

/// What a result is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Stored as a working value.
    Working,
    /// fp32 throughout, but computed from working values.
    Exact,
    /// Integers.
    Index,
}

struct Output {
    name: &'static str,
    kind: Kind,
    values: Vec<f64>,
}

/// Puts values on a backend and takes them back.
struct Bench<'b, B: Backend> {
    backend: &'b B,
    /// Whether what an op stores between its steps is rounded to bf16: the naive computation.
    naive: bool,
    outputs: Vec<Output>,
}

impl<B: Backend> Bench<'_, B> {
    fn x(&self, values: &[f64]) -> B::Buf<B::X> {
        let mut buf = self.backend.alloc(values.len()).unwrap();
        let values: Vec<B::X> = values.iter().map(|&v| B::X::from_f64(v)).collect();
        self.backend.upload(&values, B::slice_mut(&mut buf, 0..values.len())).unwrap();
        buf
    }
    fn f(&self, values: &[f64]) -> B::Buf<B::F> {
        let mut buf = self.backend.alloc(values.len()).unwrap();
        let values: Vec<B::F> = values.iter().map(|&v| B::F::from_f64(v)).collect();
        self.backend.upload(&values, B::slice_mut(&mut buf, 0..values.len())).unwrap();
        buf
    }
    fn u(&self, values: &[u32]) -> B::Buf<u32> {
        let mut buf = self.backend.alloc(values.len()).unwrap();
        self.backend.upload(values, B::slice_mut(&mut buf, 0..values.len())).unwrap();
        buf
    }
    /// The same values as bf16 would hold them.
    fn round(&self, buf: &mut B::Buf<B::X>, n: usize) {
        let values = self.backend.download(B::slice(buf, 0..n)).unwrap();
        let values: Vec<B::X> = values.into_iter().map(|v| B::X::from_f64(rounded(v.to_f64()))).collect();
        self.backend.upload(&values, B::slice_mut(buf, 0..n)).unwrap();
    }
    fn push(&mut self, name: &'static str, kind: Kind, values: Vec<f64>) {
        self.outputs.push(Output { name, kind, values });
    }
    fn take_x(&mut self, name: &'static str, buf: &B::Buf<B::X>, n: usize) {
        let values = self.backend.download(B::slice(buf, 0..n)).unwrap();
        self.push(name, Kind::Working, values.into_iter().map(Float::to_f64).collect());
    }
    fn take_f(&mut self, name: &'static str, buf: &B::Buf<B::F>, n: usize) {
        let values = self.backend.download(B::slice(buf, 0..n)).unwrap();
        self.push(name, Kind::Exact, values.into_iter().map(Float::to_f64).collect());
    }
    fn take_u(&mut self, name: &'static str, buf: &B::Buf<u32>, n: usize) {
        let values = self.backend.download(B::slice(buf, 0..n)).unwrap();
        self.push(name, Kind::Index, values.into_iter().map(f64::from).collect());
    }
}

fn rounded(x: f64) -> f64 {
    bf16::from_f32(x as f32).to_f64()
}

/// Numbers in (-1, 1) that bf16 represents.
fn input(seed: u64, n: usize) -> Vec<f64> {
    noise(seed, n).into_iter().map(rounded).collect()
}

fn nan(n: usize) -> Vec<f64> {
    vec![f64::NAN; n]
}

fn dropout(p: f64) -> Dropout {
    if p == 0.0 {
        return Dropout::OFF;
    }
    let (threshold, scale) = (threshold(p), 1.0 / (1.0 - p));
    Dropout { threshold, scale, rng: Philox::new(5), site: Site(17), step: 3, row0: 40 }
}

#[derive(Clone, Debug)]
enum Case {
    Linear { rows: usize, inputs: usize, outputs: usize, activation: Option<Activation>, write: Write },
    Norm { rows: usize, width: usize, p: f64, residual: bool },
    Attention { lengths: Vec<(usize, usize)>, heads: usize, head_size: usize, p: f64 },
    Embed { tokens: usize, width: usize, p: f64, delta: bool, padding: Option<u32> },
    Mlm { rows: usize, vocabulary: usize, disallow_correct: bool },
    Rtd { tokens: usize, labels: usize },
    Rows { rows: usize, width: usize },
    Optim { n: usize, bias_correction: Option<u64>, max_norm: Option<f64> },
}

impl Case {
    fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for activation in [None, Some(Activation::Gelu), Some(Activation::GeluTanh), Some(Activation::Relu)] {
            for (rows, inputs, outputs, write) in [
                (1, 1, 1, Write::Set),
                (7, 5, 3, Write::Add),
                (131, 17, 65, Write::Set),
                (65, 32, 264, Write::Add),
            ] {
                cases.push(Self::Linear { rows, inputs, outputs, activation, write });
            }
        }
        for p in [0.0, 0.1] {
            for (rows, width) in [(1, 2), (33, 31), (5, 128), (4, 256), (9, 264), (3, 768), (2, 1024)] {
                for residual in [false, true] {
                    cases.push(Self::Norm { rows, width, p, residual });
                }
            }
            for (lengths, heads, head_size) in [
                (vec![(1, 1)], 1, 4),
                (vec![(5, 5), (3, 2), (7, 4)], 2, 3),
                (vec![(63, 63), (0, 0), (65, 64)], 2, 16),
                (vec![(70, 65), (64, 64)], 1, 32),
                (vec![(130, 129)], 1, 64),
                (vec![(66, 66)], 1, 80),
                (vec![(33, 33), (67, 1)], 1, 128),
            ] {
                cases.push(Self::Attention { lengths, heads, head_size, p });
            }
            cases.push(Self::Embed { tokens: 1, width: 8, p, delta: false, padding: None });
            cases.push(Self::Embed { tokens: 300, width: 33, p, delta: true, padding: Some(0) });
            cases.push(Self::Embed { tokens: 77, width: 264, p, delta: false, padding: Some(2) });
            cases.push(Self::Embed { tokens: 20, width: 1024, p, delta: false, padding: Some(0) });
        }
        for (rows, vocabulary) in [(1, 1), (3, 131), (2, 2048), (4, 5000)] {
            for disallow_correct in [false, true] {
                if vocabulary > 1 || !disallow_correct {
                    cases.push(Self::Mlm { rows, vocabulary, disallow_correct });
                }
            }
        }
        for (tokens, labels) in [(1, 1), (257, 1), (300, 2)] {
            cases.push(Self::Rtd { tokens, labels });
        }
        for (rows, width) in [(1, 1), (13, 24), (5, 300)] {
            cases.push(Self::Rows { rows, width });
        }
        for (n, bias_correction, max_norm) in
            [(64, None, None), (1000, Some(3), Some(1.0)), (300_000, None, Some(1e9))]
        {
            cases.push(Self::Optim { n, bias_correction, max_norm });
        }
        cases
    }

    fn run<B: Backend>(&self, backend: &B, naive: bool) -> Vec<Output> {
        let mut b = Bench { backend, naive, outputs: Vec::new() };
        match self.clone() {
            Self::Linear { rows, inputs, outputs, activation, write } => {
                linear(&mut b, (rows, inputs, outputs), activation, write);
            }
            Self::Norm { rows, width, p, residual } => norm(&mut b, rows, width, p, residual),
            Self::Attention { lengths, heads, head_size, p } => {
                attention(&mut b, &lengths, (heads, head_size), p)
            }
            Self::Embed { tokens, width, p, delta, padding } => {
                embed(&mut b, tokens, width, p, delta, padding)
            }
            Self::Mlm { rows, vocabulary, disallow_correct } => {
                mlm(&mut b, rows, vocabulary, disallow_correct)
            }
            Self::Rtd { tokens, labels } => rtd(&mut b, tokens, labels),
            Self::Rows { rows, width } => move_rows(&mut b, rows, width),
            Self::Optim { n, bias_correction, max_norm } => optim(&mut b, n, bias_correction, max_norm),
        }
        b.outputs
    }

    /// The results of the naive bf16 computation.
    fn naive(&self) -> Vec<Output> {
        if let Self::Attention { lengths, heads, head_size, p } = self {
            return naive_attention(lengths, (*heads, *head_size), *p);
        }
        let mut outputs = self.run(&Cpu::<f32>::new(), true);
        for output in outputs.iter_mut().filter(|o| o.kind == Kind::Working) {
            output.values.iter_mut().for_each(|x| *x = rounded(*x));
        }
        outputs
    }
}

fn linear<B: Backend>(
    b: &mut Bench<'_, B>,
    (rows, inputs, outputs): (usize, usize, usize),
    activation: Option<Activation>,
    write: Write,
) {
    let inp = b.x(&input(1, rows * inputs));
    let weight = b.x(&input(2, outputs * inputs));
    let bias = b.x(&input(3, outputs));
    let (mut pre, mut out) = (b.x(&nan(rows * outputs)), b.x(&nan(rows * outputs)));
    let n = rows * outputs;
    b.backend
        .linear_fwd(LinearFwd {
            inputs,
            outputs,
            inp: B::slice(&inp, 0..rows * inputs),
            weight: B::slice(&weight, 0..outputs * inputs),
            bias: B::slice(&bias, 0..outputs),
            activation: activation.map(|a| (a, B::slice_mut(&mut pre, 0..n))),
            out: B::slice_mut(&mut out, 0..n),
        })
        .unwrap();
    b.take_x("out", &out, n);
    if activation.is_some() {
        b.take_x("pre", &pre, n);
    }
    // The backward pass alone: from the same saved argument on every backend.
    let pre = b.x(&input(5, n));
    let mut dout = b.x(&input(4, n));
    let backward = |activation: Option<Activation>, dout: &mut B::Buf<B::X>| {
        let mut dinp = b.x(&vec![BEFORE; rows * inputs]);
        let (mut dweight, mut dbias) = (b.f(&vec![BEFORE; outputs * inputs]), b.f(&vec![BEFORE; outputs]));
        b.backend
            .linear_bwd(LinearBwd {
                inputs,
                outputs,
                inp: B::slice(&inp, 0..rows * inputs),
                weight: B::slice(&weight, 0..outputs * inputs),
                activation: activation.map(|a| (a, B::slice(&pre, 0..n))),
                dout: B::slice_mut(dout, 0..n),
                dinp: (write, B::slice_mut(&mut dinp, 0..rows * inputs)),
                dweight: B::slice_mut(&mut dweight, 0..outputs * inputs),
                dbias: B::slice_mut(&mut dbias, 0..outputs),
            })
            .unwrap();
        (dinp, dweight, dbias)
    };
    let mut results = backward(activation, &mut dout);
    if b.naive && activation.is_some() {
        // The activation's gradient is stored before the products read it.
        b.round(&mut dout, n);
        results = backward(None, &mut dout);
    }
    let (dinp, dweight, dbias) = results;
    b.take_x("dinp", &dinp, rows * inputs);
    b.take_f("dweight", &dweight, outputs * inputs);
    b.take_f("dbias", &dbias, outputs);
}

fn norm<B: Backend>(b: &mut Bench<'_, B>, rows: usize, width: usize, p: f64, with_residual: bool) {
    let n = rows * width;
    let (mut x, residual) = (b.x(&input(1, n)), b.x(&input(2, n)));
    let (gamma, beta) = (b.x(&input(3, width)), b.x(&input(4, width)));
    let mut y = b.x(&nan(n));
    let (mut mean, mut rstd) = (b.f(&nan(rows)), b.f(&nan(rows)));
    let mut forward = |x: &mut B::Buf<B::X>, residual: Option<&B::Buf<B::X>>, dropout: Dropout| {
        b.backend
            .add_dropout_layernorm_fwd(AddNormFwd {
                width,
                x: B::slice_mut(x, 0..n),
                residual: residual.map(|r| B::slice(r, 0..n)),
                dropout,
                gamma: B::slice(&gamma, 0..width),
                beta: B::slice(&beta, 0..width),
                eps: 1e-3,
                y: B::slice_mut(&mut y, 0..n),
                mean: B::slice_mut(&mut mean, 0..rows),
                rstd: B::slice_mut(&mut rstd, 0..rows),
            })
            .unwrap();
    };
    forward(&mut x, with_residual.then_some(&residual), dropout(p));
    if b.naive {
        // The sum is stored before the statistics read it.
        b.round(&mut x, n);
        forward(&mut x, None, Dropout::OFF);
    }
    b.take_x("h", &x, n);
    b.take_x("y", &y, n);
    b.take_f("mean", &mean, rows);
    b.take_f("rstd", &rstd, rows);
    let h: Vec<f64> = input(6, n);
    let (means, rstds): (Vec<f64>, Vec<f64>) = h
        .chunks(width)
        .map(|row| {
            let mean = row.iter().sum::<f64>() / width as f64;
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / width as f64;
            (mean, 1.0 / (variance + 1e-3).sqrt())
        })
        .unzip();
    let (h, mean, rstd, dy) = (b.x(&h), b.f(&means), b.f(&rstds), b.x(&input(5, n)));
    let (mut dx, mut dresidual) = (b.x(&nan(n)), b.x(&nan(n)));
    let (mut dgamma, mut dbeta) = (b.f(&vec![BEFORE; width]), b.f(&vec![BEFORE; width]));
    b.backend
        .add_dropout_layernorm_bwd(AddNormBwd {
            width,
            h: B::slice(&h, 0..n),
            dropout: dropout(p),
            gamma: B::slice(&gamma, 0..width),
            mean: B::slice(&mean, 0..rows),
            rstd: B::slice(&rstd, 0..rows),
            dy: B::slice(&dy, 0..n),
            dx: B::slice_mut(&mut dx, 0..n),
            dresidual: with_residual.then(|| B::slice_mut(&mut dresidual, 0..n)),
            dgamma: B::slice_mut(&mut dgamma, 0..width),
            dbeta: B::slice_mut(&mut dbeta, 0..width),
        })
        .unwrap();
    b.take_x("dx", &dx, n);
    if with_residual {
        b.take_x("dresidual", &dresidual, n);
    }
    b.take_f("dgamma", &dgamma, width);
    b.take_f("dbeta", &dbeta, width);
}

fn geometry(lengths: &[(usize, usize)]) -> (Vec<u32>, Vec<u32>) {
    let mut cu = vec![0u32];
    lengths.iter().for_each(|l| cu.push(cu[cu.len() - 1] + l.0 as u32));
    (cu, lengths.iter().map(|l| l.1 as u32).collect())
}

fn attention<B: Backend>(
    b: &mut Bench<'_, B>,
    lengths: &[(usize, usize)],
    (heads, head_size): (usize, usize),
    p: f64,
) {
    let (cu, keys) = geometry(lengths);
    let (n, c) = (*cu.last().unwrap() as usize, heads * head_size);
    let qkv = b.x(&input(1, 3 * n * c));
    let (cu_buf, keys_buf) = (b.u(&cu), b.u(&keys));
    let max_seqlen = lengths.iter().map(|l| l.0).max().unwrap();
    fn sequences<'a, B: Backend>(
        (cu, keys): (&'a B::Buf<u32>, &'a B::Buf<u32>),
        count: usize,
        max_seqlen: usize,
        (heads, head_size): (usize, usize),
    ) -> Sequences<'a, B> {
        let (cu_seqlens, key_len) = (B::slice(cu, 0..count + 1), B::slice(keys, 0..count));
        Sequences { cu_seqlens, key_len, max_seqlen, heads, head_size }
    }
    let (mut out, mut lse) = (b.x(&nan(n * c)), b.f(&nan(n * heads)));
    b.backend
        .attention_fwd(AttentionFwd {
            sequences: sequences((&cu_buf, &keys_buf), keys.len(), max_seqlen, (heads, head_size)),
            dropout: dropout(p),
            qkv: B::slice(&qkv, 0..3 * n * c),
            out: B::slice_mut(&mut out, 0..n * c),
            lse: B::slice_mut(&mut lse, 0..n * heads),
        })
        .unwrap();
    b.take_x("out", &out, n * c);
    b.take_f("lse", &lse, n * heads);
    let dout = b.x(&input(2, n * c));
    let mut dqkv = b.x(&nan(3 * n * c));
    b.backend
        .attention_bwd(AttentionBwd {
            sequences: sequences((&cu_buf, &keys_buf), keys.len(), max_seqlen, (heads, head_size)),
            dropout: dropout(p),
            qkv: B::slice(&qkv, 0..3 * n * c),
            out: B::slice(&out, 0..n * c),
            lse: B::slice(&lse, 0..n * heads),
            dout: B::slice(&dout, 0..n * c),
            dqkv: B::slice_mut(&mut dqkv, 0..3 * n * c),
        })
        .unwrap();
    b.take_x("dqkv", &dqkv, 3 * n * c);
}

/// Textbook attention in fp32 whose probabilities, their gradients and results are stored as bf16.
fn naive_attention(lengths: &[(usize, usize)], (heads, size): (usize, usize), p: f64) -> Vec<Output> {
    let (cu, _) = geometry(lengths);
    let (n, c) = (*cu.last().unwrap() as usize, heads * size);
    let (qkv, dout) = (input(1, 3 * n * c), input(2, n * c));
    let (mut out, mut lse, mut dqkv) = (vec![0.0; n * c], vec![0.0; n * heads], vec![0.0; 3 * n * c]);
    let scale = 1.0 / (size as f64).sqrt();
    let drop = dropout(p);
    for (&first, &(rows, keys)) in cu.iter().zip(lengths) {
        for head in 0..heads {
            let at = |row: usize, which: usize, i: usize| {
                (first as usize + row) * 3 * c + which * c + head * size + i
            };
            let place = |row: usize, i: usize| (first as usize + row) * c + head * size + i;
            for q in 0..rows {
                let dot = |k: usize, a: &dyn Fn(usize) -> f64, which: usize| -> f64 {
                    (0..size).map(|i| a(i) * qkv[at(k, which, i)]).sum()
                };
                let scores: Vec<f64> = (0..keys).map(|k| scale * dot(k, &|i| qkv[at(q, 0, i)], 1)).collect();
                let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
                lse[(first as usize + q) * heads + head] = highest + total.ln();
                let keep: Vec<f64> = (0..keys)
                    .map(|k| {
                        let word = drop.rng.word(
                            ((head as u32) << 20) + k as u32,
                            drop.row0 + first + q as u32,
                            drop.site,
                            drop.step,
                        );
                        if word < drop.threshold { 0.0 } else { drop.scale }
                    })
                    .collect();
                let probability: Vec<f64> =
                    scores.iter().map(|s| rounded((s - highest).exp() / total)).collect();
                let dropped: Vec<f64> = probability.iter().zip(&keep).map(|(p, k)| rounded(p * k)).collect();
                for i in 0..size {
                    out[place(q, i)] = rounded((0..keys).map(|k| dropped[k] * qkv[at(k, 2, i)]).sum());
                }
                let delta: f64 = (0..size).map(|i| out[place(q, i)] * dout[place(q, i)]).sum();
                for k in 0..keys {
                    let dp = dot(k, &|i| dout[place(q, i)], 2) * keep[k];
                    let ds = rounded(probability[k] * (dp - delta));
                    for i in 0..size {
                        dqkv[at(q, 0, i)] += ds * qkv[at(k, 1, i)] * scale;
                        dqkv[at(k, 1, i)] += ds * qkv[at(q, 0, i)] * scale;
                        dqkv[at(k, 2, i)] += dropped[k] * dout[place(q, i)];
                    }
                }
            }
        }
    }
    dqkv.iter_mut().for_each(|x| *x = rounded(*x));
    vec![
        Output { name: "out", kind: Kind::Working, values: out },
        Output {
            name: "lse",
            kind: Kind::Exact,
            values: lse.into_iter().map(|x| f64::from(x as f32)).collect(),
        },
        Output { name: "dqkv", kind: Kind::Working, values: dqkv },
    ]
}

fn embed<B: Backend>(
    b: &mut Bench<'_, B>,
    n: usize,
    width: usize,
    p: f64,
    with_delta: bool,
    padding: Option<u32>,
) {
    const ROWS: [usize; 6] = [40, 40, 64, 2, 1, 1];
    let philox = Philox::new(77);
    let draw = |site: u32, limit: u32| -> Vec<u32> {
        (0..n as u32).map(|i| philox.word(i, 0, Site(site), 0) % limit).collect()
    };
    // Half of the tokens are one of two words, as in real text.
    let ids: Vec<u32> = draw(1, 80).into_iter().map(|id| if id < 40 { id } else { id % 2 * 7 }).collect();
    let (positions, types) = ((0..n as u32).map(|i| i % 64).collect::<Vec<_>>(), draw(3, 2));
    let (ids, positions, types) = (b.u(&ids), b.u(&positions), b.u(&types));
    let tables: Vec<B::Buf<B::X>> =
        ROWS.iter().zip(1..).map(|(&rows, s)| b.x(&input(s, rows * width))).collect();
    fn borrow<'a, B: Backend>(t: &'a [B::Buf<B::X>], width: usize, delta: bool) -> EmbedTables<'a, B> {
        let whole = |i: usize| B::slice(&t[i], 0..ROWS[i] * width);
        EmbedTables {
            word: whole(0),
            delta: delta.then(|| whole(1)),
            position: whole(2),
            token_type: whole(3),
            gamma: whole(4),
            beta: whole(5),
        }
    }
    let mut out = b.x(&nan(n * width));
    let (mut mean, mut rstd) = (b.f(&nan(n)), b.f(&nan(n)));
    b.backend
        .embed_fwd(EmbedFwd {
            width,
            ids: B::slice(&ids, 0..n),
            positions: B::slice(&positions, 0..n),
            types: B::slice(&types, 0..n),
            tables: borrow::<B>(&tables, width, with_delta),
            eps: 1e-3,
            dropout: dropout(p),
            out: B::slice_mut(&mut out, 0..n * width),
            mean: B::slice_mut(&mut mean, 0..n),
            rstd: B::slice_mut(&mut rstd, 0..n),
        })
        .unwrap();
    b.take_x("out", &out, n * width);
    b.take_f("mean", &mean, n);
    b.take_f("rstd", &rstd, n);
    let mut grads: Vec<B::Buf<B::F>> = ROWS.iter().map(|&rows| b.f(&vec![BEFORE; rows * width])).collect();
    let mut dout = b.x(&input(9, n * width));
    let [dword, _, dposition, dtoken_type, dgamma, dbeta] = &mut grads[..] else { unreachable!() };
    b.backend
        .embed_bwd(EmbedBwd {
            width,
            ids: B::slice(&ids, 0..n),
            positions: B::slice(&positions, 0..n),
            types: B::slice(&types, 0..n),
            tables: borrow::<B>(&tables, width, with_delta),
            padding,
            dropout: dropout(p),
            mean: B::slice(&mean, 0..n),
            rstd: B::slice(&rstd, 0..n),
            dout: B::slice_mut(&mut dout, 0..n * width),
            dword: B::slice_mut(dword, 0..ROWS[0] * width),
            dposition: B::slice_mut(dposition, 0..ROWS[2] * width),
            dtoken_type: B::slice_mut(dtoken_type, 0..ROWS[3] * width),
            dgamma: B::slice_mut(dgamma, 0..width),
            dbeta: B::slice_mut(dbeta, 0..width),
        })
        .unwrap();
    if b.naive {
        // The sum's gradient is stored before the tables read it.
        b.round(&mut dout, n * width);
        let rows = b.backend.download(B::slice(&dout, 0..n * width)).unwrap();
        for (table, index) in [(0, &ids), (2, &positions), (3, &types)] {
            let index = b.backend.download(B::slice(index, 0..n)).unwrap();
            let mut sums = vec![BEFORE; ROWS[table] * width];
            for (&id, row) in
                index.iter().zip(rows.chunks(width)).filter(|(id, _)| table > 0 || Some(**id) != padding)
            {
                for (sum, x) in sums[id as usize * width..].iter_mut().zip(row) {
                    *sum += x.to_f64();
                }
            }
            grads[table] = b.f(&sums);
        }
    }
    b.take_x("dsum", &dout, n * width);
    for (name, table) in [("dword", 0), ("dposition", 2), ("dtoken_type", 3), ("dgamma", 4), ("dbeta", 5)] {
        b.take_f(name, &grads[table], ROWS[table] * width);
    }
}

fn mlm<B: Backend>(b: &mut Bench<'_, B>, m: usize, v: usize, disallow_correct: bool) {
    let logits: Vec<f64> = input(1, m * v).iter().map(|x| 4.0 * x).collect();
    let targets: Vec<u32> = (0..m as u32).map(|i| i * 7919 % v as u32).collect();
    let rows: Vec<u32> = (0..m as u32).map(|i| 3 + 2 * i).collect();
    let weight: Vec<f64> = (0..m).map(|i| i as f64 / 8.0).collect();
    let (targets, rows, weight) = (b.u(&targets), b.u(&rows), b.f(&weight));
    for gradient in [true, false] {
        let (mut x, mut nll) = (b.x(&logits), b.f(&nan(m)));
        let (mut best, mut sampled) = (b.u(&vec![u32::MAX; m]), b.u(&vec![u32::MAX; m]));
        b.backend
            .mlm_loss(MlmLoss {
                vocabulary: v,
                targets: B::slice(&targets, 0..m),
                masked_index: B::slice(&rows, 0..m),
                weight: B::slice(&weight, 0..m),
                scale: 3.0,
                temperature: 0.7,
                disallow_correct,
                noise: Dropout { site: Site::GUMBEL, ..dropout(0.1) },
                gradient,
                logits: B::slice_mut(&mut x, 0..m * v),
                nll: B::slice_mut(&mut nll, 0..m),
                best: B::slice_mut(&mut best, 0..m),
                sampled: gradient.then(|| B::slice_mut(&mut sampled, 0..m)),
            })
            .unwrap();
        b.take_x("logits", &x, m * v);
        b.take_f("nll", &nll, m);
        b.take_u("best", &best, m);
        b.take_u("sampled", &sampled, m);
    }
}

fn rtd<B: Backend>(b: &mut Bench<'_, B>, n: usize, labels: usize) {
    let ids: Vec<u32> = (0..n as u32).map(|i| i * 31 % 50).collect();
    let masked: Vec<u32> = (0..n as u32).step_by(3).collect();
    let sampled: Vec<u32> = masked.iter().map(|&i| if i % 2 == 0 { ids[i as usize] } else { 49 }).collect();
    let m = masked.len();
    let (ids, masked, sampled) = (b.u(&ids), b.u(&masked), b.u(&sampled));
    let (mut corrupted, mut is_fake) = (b.u(&vec![u32::MAX; n]), b.u(&vec![u32::MAX; n]));
    b.backend
        .corrupt(Corrupt {
            ids: B::slice(&ids, 0..n),
            masked_index: B::slice(&masked, 0..m),
            sampled: B::slice(&sampled, 0..m),
            corrupted: B::slice_mut(&mut corrupted, 0..n),
            is_fake: B::slice_mut(&mut is_fake, 0..n),
        })
        .unwrap();
    b.take_u("corrupted", &corrupted, n);
    b.take_u("is_fake", &is_fake, n);
    let logits: Vec<f64> = input(1, n * labels).iter().map(|x| rounded(30.0 * x * x * x)).collect();
    let weight: Vec<f64> = (0..n).map(|i| (i % 8) as f64 / 8.0).collect();
    let (logits, weight) = (b.x(&logits), b.f(&weight));
    let (mut nll, mut dlogits) = (b.f(&nan(n)), b.x(&nan(n * labels)));
    b.backend
        .rtd_loss(RtdLoss {
            labels,
            is_fake: B::slice(&is_fake, 0..n),
            weight: B::slice(&weight, 0..n),
            scale: 2.0,
            logits: B::slice(&logits, 0..n * labels),
            nll: B::slice_mut(&mut nll, 0..n),
            dlogits: B::slice_mut(&mut dlogits, 0..n * labels),
        })
        .unwrap();
    b.take_f("nll", &nll, n);
    b.take_x("dlogits", &dlogits, n * labels);
}

fn move_rows<B: Backend>(b: &mut Bench<'_, B>, rows: usize, width: usize) {
    let n = rows * width;
    let (x, mut out) = (b.x(&input(1, n)), b.x(&nan(n)));
    b.backend.dropout(width, dropout(0.3), B::slice(&x, 0..n), B::slice_mut(&mut out, 0..n)).unwrap();
    b.take_x("dropout", &out, n);
    let index: Vec<u32> = (0..rows as u32).rev().step_by(2).collect();
    let m = index.len();
    let index = b.u(&index);
    let (mut few, mut back) = (b.x(&nan(m * width)), b.x(&nan(n)));
    b.backend
        .gather_rows_fwd(
            width,
            B::slice(&index, 0..m),
            B::slice(&x, 0..n),
            B::slice_mut(&mut few, 0..m * width),
        )
        .unwrap();
    b.backend
        .gather_rows_bwd(
            width,
            B::slice(&index, 0..m),
            B::slice(&few, 0..m * width),
            B::slice_mut(&mut back, 0..n),
        )
        .unwrap();
    b.take_x("gathered", &few, m * width);
    b.take_x("scattered", &back, n);
    let (exact, mut cast) = (b.f(&noise(3, n)), b.x(&nan(n)));
    b.backend.cast(B::slice(&exact, 0..n), B::slice_mut(&mut cast, 0..n)).unwrap();
    b.take_x("cast", &cast, n);
}

fn optim<B: Backend>(b: &mut Bench<'_, B>, n: usize, bias_correction: Option<u64>, max_norm: Option<f64>) {
    let mut grads = b.f(&input(1, n));
    let (mut m, mut v) = (b.f(&input(2, n)), b.f(&input(3, n).iter().map(|x| x * x).collect::<Vec<_>>()));
    let (mut master, mut working) = (b.f(&input(4, n)), b.x(&nan(n)));
    let mut norm_squared = b.f(&nan(1));
    b.backend.norm_squared(B::slice(&grads, 0..n), B::slice_mut(&mut norm_squared, 0..1)).unwrap();
    b.take_f("norm_squared", &norm_squared, 1);
    let decayed = [5..17, 40..n - 3];
    b.backend
        .adamw(AdamW {
            lr: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-6,
            weight_decay: 0.1,
            bias_correction,
            max_norm,
            norm_squared: B::slice(&norm_squared, 0..1),
            decayed: &decayed,
            grads: B::slice_mut(&mut grads, 0..n),
            m: B::slice_mut(&mut m, 0..n),
            v: B::slice_mut(&mut v, 0..n),
            master: B::slice_mut(&mut master, 0..n),
            working: B::slice_mut(&mut working, 0..n),
        })
        .unwrap();
    b.take_f("grads", &grads, n);
    b.take_f("m", &m, n);
    b.take_f("v", &v, n);
    b.take_f("master", &master, n);
    b.take_x("working", &working, n);
}

/// Compares a case on `gpu` with the oracle; returns its results as bits.
fn check<D: Driver, W: Working>(case: &Case, gpu: &Gpu<D, W>) -> Vec<u64> {
    let want = case.run(&Cpu::<f64>::new(), false);
    let naive = if size_of::<W>() == 2 { case.naive() } else { case.run(&Cpu::<f32>::new(), false) };
    let got = case.run(gpu, false);
    for ((got, want), naive) in got.iter().zip(&want).zip(&naive) {
        let name = format!("{case:?} {}", got.name);
        assert_eq!((got.name, got.kind), (want.name, want.kind), "{name}");
        if got.kind == Kind::Index {
            assert_eq!(got.values, want.values, "{name}");
            continue;
        }
        // A gradient may be exactly zero: then the naive one tells how near is near.
        let size = want.values.iter().map(|x| x * x).sum::<f64>().sqrt();
        if size < 1e-12 {
            let far = |values: &[f64]| values.iter().map(|x| x.abs()).fold(0.0, f64::max);
            assert!(
                far(&got.values) <= 2.0 * far(&naive.values) + 1e-3 * f64::from(f32::EPSILON),
                "{name}: not 0"
            );
            continue;
        }
        let (error, allowed) =
            (relative_l2(&name, &got.values, &want.values), relative_l2(&name, &naive.values, &want.values));
        // Sums of a different order differ by a few units in the last place of fp32.
        assert!(
            error <= 2.0 * allowed + 2e-6,
            "{name}: error {error:.2e}, the naive computation's is {allowed:.2e}"
        );
    }
    got.iter().flat_map(|o| o.values.iter().map(|x| x.to_bits())).collect()
}

#[cfg(feature = "simt")]
mod emulated {
    use elektron::backend::gpu::driver::simt::{Order, Simt};
    use elektron::backend::gpu::driver::{Argument, Launch, Precision, Region};
    use rayon::prelude::*;

    use super::*;

    fn all_orders<W: Working>() {
        Case::all().par_iter().for_each(|case| {
            let results = Order::ALL.map(|order| check(case, &Gpu::<_, W>::new(Simt::new(order))));
            for (order, bits) in Order::ALL.iter().zip(&results) {
                assert!(*bits == results[0], "{case:?}: threads in order {order:?} give other bits");
            }
        });
    }

    #[test]
    fn every_op_in_bf16() {
        all_orders::<bf16>();
    }

    #[test]
    fn every_op_in_fp32() {
        all_orders::<f32>();
    }

    /// Runs one of the kernels with a planted fault on 64 threads; `Err` is the emulator's complaint.
    fn planted(
        kernel: &'static str,
        order: Order,
        shared_bytes: u32,
        with_input: bool,
        n: Option<u32>,
    ) -> Result<Vec<f32>, String> {
        let device = Simt::new(order);
        let out = device.alloc(64 * 4).unwrap();
        let from = device.alloc(256 * 4).unwrap();
        let values: Vec<f32> = (0..256).map(|i| i as f32).collect();
        device.upload(bytemuck::cast_slice(&values), from).unwrap();
        device.fill(out, 0).unwrap();
        let mut arguments: Vec<Argument> = Vec::new();
        if with_input {
            arguments.push(from.into());
        }
        arguments.push(out.into());
        arguments.extend(n.map(Argument::from));
        let launch = Launch {
            file: "planted",
            kernel,
            precision: Precision::Fp32,
            grid: [1, 1, 1],
            threads: 64,
            shared_bytes,
            arguments: &arguments,
        };
        device.launch(&launch).map_err(|e| e.to_string())?;
        let mut result = vec![0.0f32; 64];
        device.download(out, bytemuck::cast_slice_mut(&mut result)).unwrap();
        assert_ne!(out, Region::NOTHING);
        Ok(result)
    }

    #[test]
    fn planted_faults_are_caught() {
        let orders = |kernel| Order::ALL.map(|order| planted(kernel, order, 256, false, None).unwrap());
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let agree = |results: &[Vec<f32>]| results.iter().all(|r| bits(r) == bits(&results[0]));
        assert!(agree(&orders("with_barrier")));
        assert!(!agree(&orders("missing_barrier")), "a missing barrier shows in the order of threads");

        let complaint = |kernel, n| planted(kernel, Order::Ascending, 256, false, n).unwrap_err();
        assert!(planted("one_past_the_end", Order::Ascending, 256, false, Some(62)).is_ok());
        assert!(planted("one_past_the_end", Order::Ascending, 256, false, Some(63)).is_ok());
        let beyond = planted_write(64);
        assert!(beyond.unwrap_err().contains("wrote beyond a buffer"));
        assert!(complaint("beyond_shared_memory", Some(1)).contains("beyond the shared memory"));
        assert!(complaint("mismatched_mask", None).contains("different masks"));
        assert!(complaint("missing_lanes", None).contains("never come"));

        let uninitialised = planted("uninitialised_read", Order::Ascending, 256, false, None).unwrap();
        assert!(uninitialised.iter().all(|x| x.is_nan()), "unwritten shared memory is NaN");
        let waited = planted("waited_copy", Order::Ascending, 1024, true, None).unwrap();
        assert_eq!(waited, (0..64).map(|i| i as f32).collect::<Vec<_>>());
        let unwaited = planted("unwaited_copy", Order::Ascending, 1024, true, None).unwrap();
        assert!(unwaited.iter().all(|x| x.is_nan()), "a copy arrives only at its wait");
    }

    /// A buffer of 63 floats that 64 threads write to.
    fn planted_write(threads: u32) -> Result<(), String> {
        let device = Simt::new(Order::Ascending);
        let out = device.alloc(63 * 4).unwrap();
        let launch = Launch {
            file: "planted",
            kernel: "one_past_the_end",
            precision: Precision::Fp32,
            grid: [1, 1, 1],
            threads,
            shared_bytes: 0,
            arguments: &[out.into(), 63u32.into()],
        };
        device.launch(&launch).map_err(|e| e.to_string())
    }

    #[test]
    fn arguments_of_the_wrong_size_are_refused() {
        let device = Simt::new(Order::Ascending);
        let out = device.alloc(256).unwrap();
        let launch = Launch {
            file: "planted",
            kernel: "with_barrier",
            precision: Precision::Bf16,
            grid: [1, 1, 1],
            threads: 64,
            shared_bytes: 256,
            arguments: &[out.into(), 1u32.into()],
        };
        assert!(device.launch(&launch).unwrap_err().to_string().contains("takes arguments of"));
    }
}
