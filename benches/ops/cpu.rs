//! The CPU backend, op by op.

use std::sync::OnceLock;
use std::time::Instant;

use elektron::backend::{
    AdamW, AddNormBwd, AddNormFwd, AttentionBwd, AttentionFwd, Backend, Clock, Corrupt, Cpu, Dropout,
    EmbedBwd, EmbedFwd, EmbedTables, LinearBwd, LinearFwd, MlmLoss, RtdLoss, Sequences, UpdateRule, Write,
};
use elektron::model::config::Activation;
use elektron::rng::{Philox, Site, threshold};
use rayon::prelude::*;

const CPU: Cpu<f32> = Cpu::new();
const N: usize = 1024;
const C: usize = 256;

fn noise(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1013) as f32 / 506.5 - 1.0).collect()
}

fn dropout() -> Dropout {
    let (threshold, scale) = (threshold(0.1), 1.0 / 0.9);
    Dropout {
        threshold,
        scale,
        rng: Philox::new(1),
        site: Site(9),
        clock: Clock { step: 1, ..Clock::default() },
    }
}

/// What this machine can do, all threads together.
#[derive(Debug)]
struct Bounds {
    gflops: f64,
    gb: f64,
}

static BOUNDS: OnceLock<Bounds> = OnceLock::new();

/// Median seconds of 15 calls.
fn median(mut f: impl FnMut()) -> f64 {
    f();
    let mut times: Vec<f64> = (0..15)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[7]
}

impl Bounds {
    /// A product of 1,024³ by the backend's own path, and a copy of 64 MiB by all threads.
    fn measure() -> Self {
        let (x, w, b, mut out) = (noise(1 << 20), noise(1 << 20), noise(1024), vec![0.0; 1 << 20]);
        let seconds = median(|| {
            CPU.linear_fwd(LinearFwd {
                inputs: 1024,
                outputs: 1024,
                inp: &x,
                weight: &w,
                bias: &b,
                activation: None,
                out: &mut out,
                pitch: 1024,
            })
            .expect("an op");
        });
        let gflops = 2.0 * 1024f64.powi(3) / seconds / 1e9;
        let (from, mut to) = (noise(1 << 24), vec![0.0f32; 1 << 24]);
        let seconds = median(|| {
            to.par_chunks_mut(1 << 16)
                .zip(from.par_chunks(1 << 16))
                .for_each(|(to, from)| to.copy_from_slice(from));
        });
        Self { gflops, gb: 8.0 * f64::from(1 << 24) / seconds / 1e9 }
    }
}

/// One line: time, what was reached of the op's bound, and its share of the machine's.
fn report(name: &str, work: f64, unit: &str, f: impl FnMut()) {
    let seconds = median(f);
    let rate = work / seconds / 1e9;
    let bound = BOUNDS.get().map_or(f64::NAN, |b| if unit == "GB/s" { b.gb } else { b.gflops });
    println!("{name:<44} {:>9.3} ms {rate:>8.1} {unit:<8} {:>4.0}%", seconds * 1e3, 100.0 * rate / bound);
}

fn linear(inputs: usize, outputs: usize, activation: Option<Activation>) {
    let (x, w, b) = (noise(N * inputs), noise(outputs * inputs), noise(outputs));
    let (mut pre, mut out) = (vec![0.0; N * outputs], vec![0.0; N * outputs]);
    let flops = (2 * N * inputs * outputs) as f64;
    let name = format!("linear {inputs} → {outputs} {}", activation.map_or("", |_| "+ GELU"));
    report(&format!("{name} forward"), flops, "GFLOP/s", || {
        let activation = activation.map(|a| (a, &mut pre[..]));
        CPU.linear_fwd(LinearFwd {
            inputs,
            outputs,
            inp: &x,
            weight: &w,
            bias: &b,
            activation,
            out: &mut out,
            pitch: outputs,
        })
        .expect("an op");
    });
    let (mut dx, mut dw, mut db) = (noise(N * inputs), noise(outputs * inputs), noise(outputs));
    report(&format!("{name} backward"), 2.0 * flops, "GFLOP/s", || {
        CPU.linear_bwd(LinearBwd {
            inputs,
            outputs,
            inp: &x,
            weight: &w,
            activation: activation.map(|a| (a, &pre[..])),
            dout: &mut out,
            pitch: outputs,
            before: None,
            dinp: (Write::Set, &mut dx),
            dweight: Some(&mut dw),
            dbias: Some(&mut db),
        })
        .expect("an op");
    });
}

fn sequences<'a>(cu_seqlens: &'a [u32], key_len: &'a [u32], max_seqlen: usize) -> Sequences<'a, Cpu<f32>> {
    Sequences { cu_seqlens, key_len, max_seqlen, heads: C / 64, head_size: 64 }
}

fn attention(seq_len: usize) {
    let heads = C / 64;
    let cu: Vec<u32> = (0..=N / seq_len).map(|i| (i * seq_len) as u32).collect();
    let keys = vec![seq_len as u32; N / seq_len];
    let qkv = noise(3 * N * C);
    let (mut out, mut lse, mut dqkv) = (vec![0.0; N * C], vec![0.0; N * heads], vec![0.0; 3 * N * C]);
    let mut dbias = vec![0.0; 3 * C];
    let flops = (4 * N * seq_len * C) as f64;
    report(&format!("attention T {seq_len} forward"), flops, "GFLOP/s", || {
        CPU.attention_fwd(AttentionFwd {
            sequences: sequences(&cu, &keys, seq_len),
            dropout: dropout(),
            qkv: &qkv,
            out: &mut out[..],
            lse: &mut lse[..],
        })
        .expect("an op");
    });
    report(&format!("attention T {seq_len} backward"), 2.5 * flops, "GFLOP/s", || {
        CPU.attention_bwd(AttentionBwd {
            sequences: sequences(&cu, &keys, seq_len),
            dropout: dropout(),
            qkv: &qkv,
            out: &out[..],
            lse: &lse[..],
            dout: &out[..],
            dqkv: &mut dqkv[..],
            dbias: &mut dbias[..],
        })
        .expect("an op");
    });
}

fn norm(name: &str, dropout: Dropout) {
    let (mut x, r, gamma) = (noise(N * C), noise(N * C), noise(C));
    let (mut y, mut mean, mut rstd) = (vec![0.0; N * C], vec![0.0; N], vec![0.0; N]);
    report(&format!("{name} forward"), (16 * N * C) as f64, "GB/s", || {
        CPU.add_dropout_layernorm_fwd(AddNormFwd {
            width: C,
            x: &mut x,
            residual: Some(&r),
            dropout,
            gamma: &gamma,
            beta: &gamma,
            eps: 1e-12,
            y: &mut y,
            mean: &mut mean,
            rstd: &mut rstd,
        })
        .expect("an op");
    });
    let (mut dx, mut dr, mut dgamma, mut dbeta, mut dbias) =
        (noise(N * C), noise(N * C), noise(C), noise(C), noise(C));
    report(&format!("{name} backward"), (16 * N * C) as f64, "GB/s", || {
        CPU.add_dropout_layernorm_bwd(AddNormBwd {
            width: C,
            h: &x,
            dropout,
            gamma: &gamma,
            mean: &mean,
            rstd: &rstd,
            dy: &r,
            dx: &mut dx,
            dresidual: Some(&mut dr),
            dgamma: &mut dgamma,
            dbeta: &mut dbeta,
            dbias: Some(&mut dbias),
        })
        .expect("an op");
    });
}

fn embedding() {
    const E: usize = 128;
    let tables: Vec<Vec<f32>> = [30522, 512, 2, 1, 1].map(|rows| noise(rows * E)).to_vec();
    fn borrow(tables: &[Vec<f32>]) -> EmbedTables<'_, Cpu<f32>> {
        EmbedTables {
            word: &tables[0],
            delta: None,
            position: &tables[1],
            token_type: &tables[2],
            gamma: &tables[3],
            beta: &tables[4],
        }
    }
    let ids: Vec<u32> = (0..N as u32).map(|i| i * 7919 % 30522).collect();
    let (positions, types): (Vec<u32>, _) = ((0..N as u32).map(|i| i % 128).collect(), vec![0u32; N]);
    let (mut out, mut mean, mut rstd) = (noise(N * E), noise(N), noise(N));
    report("embedding forward", (16 * N * E) as f64, "GB/s", || {
        CPU.embed_fwd(EmbedFwd {
            width: E,
            ids: &ids,
            positions: &positions,
            types: &types,
            tables: borrow(&tables),
            eps: 1e-12,
            dropout: dropout(),
            out: &mut out,
            mean: &mut mean,
            rstd: &mut rstd,
        })
        .expect("an op");
    });
    let mut grads = tables.clone();
    report("embedding backward", (44 * N * E) as f64, "GB/s", || {
        let [word, position, token_type, gamma, beta] = &mut grads[..] else { unreachable!() };
        CPU.embed_bwd(EmbedBwd {
            width: E,
            ids: &ids,
            positions: &positions,
            types: &types,
            tables: borrow(&tables),
            padding: Some(0),
            dropout: dropout(),
            mean: &mean,
            rstd: &rstd,
            dout: &mut out,
            dword: word,
            dposition: position,
            dtoken_type: token_type,
            dgamma: gamma,
            dbeta: beta,
        })
        .expect("an op");
    });
}

fn rows() {
    let (x, mut out) = (noise(N * C), noise(N * C));
    report("dropout", (8 * N * C) as f64, "GB/s", || CPU.dropout(C, dropout(), &x, &mut out).expect("an op"));
    let index: Vec<u32> = (0..N as u32).step_by(7).collect();
    let mut few = noise(index.len() * C);
    report("gather rows forward", (8 * few.len()) as f64, "GB/s", || {
        CPU.gather_rows_fwd(C, &index, &x, &mut few).expect("an op");
    });
    report("gather rows backward", (8 * few.len() + 4 * N * C) as f64, "GB/s", || {
        CPU.gather_rows_bwd(C, &index, &few, &mut out).expect("an op");
    });
}

fn discriminator_head() {
    let ids: Vec<u32> = (0..N as u32).collect();
    let index: Vec<u32> = (0..N as u32).step_by(7).collect();
    let (mut corrupted, mut is_fake) = (ids.clone(), ids.clone());
    report("corrupt", (12 * N) as f64, "GB/s", || {
        CPU.corrupt(Corrupt {
            ids: &ids,
            masked_index: &index,
            sampled: &index,
            corrupted: &mut corrupted,
            is_fake: &mut is_fake,
        })
        .expect("an op");
    });
    let (logits, weight, mut nll, mut dlogits) = (noise(N), noise(N), noise(N), noise(N));
    report("replaced token loss + gradient", (20 * N) as f64, "GB/s", || {
        CPU.rtd_loss(RtdLoss {
            labels: 1,
            is_fake: &is_fake,
            weight: &weight,
            scale: 1.0,
            logits: &logits,
            nll: &mut nll,
            dlogits: &mut dlogits,
        })
        .expect("an op");
    });
}

fn optimizer() {
    let n = 1 << 23;
    let (mut grads, mut m, mut v) = (noise(n), noise(n), vec![1.0; n]);
    let (mut master, mut working, mut norm) = (noise(n), noise(n), [1.0]);
    report("gradient norm, 8 M", (4 * n) as f64, "GB/s", || {
        CPU.norm_squared(&grads, &mut norm).expect("an op")
    });
    report("AdamW, 8 M", (36 * n) as f64, "GB/s", || {
        CPU.adamw(AdamW {
            rule: UpdateRule {
                lr: 1e-4,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-6,
                weight_decay: 0.01,
                bias_correction: None,
                max_norm: Some(1.0),
            },
            norm_squared: &norm,
            decayed: std::slice::from_ref(&(0..n)),
            grads: &mut grads,
            m: &mut m,
            v: &mut v,
            master: &mut master,
            working: &mut working,
        })
        .expect("an op");
    });
    report("cast, 8 M", (8 * n) as f64, "GB/s", || CPU.cast(&master, &mut working).expect("an op"));
}

fn mlm_loss() {
    let (m, v) = (152, 30522);
    let logits = noise(m * v);
    let (mut x, mut nll) = (logits.clone(), vec![0.0; m]);
    let (mut best, mut sampled) = (vec![0; m], vec![0; m]);
    let (index, weight): (Vec<u32>, _) = ((0..m as u32).collect(), vec![1.0; m]);
    report("mlm loss + gradient + sample, 152 × 30,522", (8 * m * v) as f64, "GB/s", || {
        x.copy_from_slice(&logits);
        CPU.mlm_loss(MlmLoss {
            vocabulary: v,
            targets: &index,
            masked_index: &index,
            weight: &weight,
            scale: 1.0,
            temperature: 1.0,
            disallow_correct: false,
            noise: dropout(),
            gradient: true,
            logits: &mut x,
            pitch: v,
            nll: &mut nll,
            best: &mut best,
            sampled: Some(&mut sampled),
        })
        .expect("an op");
    });
}

pub(super) fn run() {
    let bounds = Bounds::measure();
    println!("bounds measured here: {:.0} GFLOP/s, {:.1} GB/s", bounds.gflops, bounds.gb);
    BOUNDS.set(bounds).expect("once");
    linear(C, 3 * C, None);
    linear(C, C, None);
    linear(C, 4 * C, Some(Activation::Gelu));
    linear(4 * C, C, None);
    attention(128);
    attention(512);
    norm("dropout + residual + LayerNorm", dropout());
    norm("residual + LayerNorm", Dropout::OFF);
    mlm_loss();
    embedding();
    rows();
    discriminator_head();
    optimizer();
}
