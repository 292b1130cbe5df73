//! Single ops of the CPU backend at the sizes of `small` (N = 1,024 tokens): GFLOP/s of matrix products, GB/s of the
//! rest. `cargo bench --bench ops`.
#![allow(missing_docs)]

use std::time::Instant;

use elektron::backend::{
    AddNormFwd, AttentionBwd, AttentionFwd, Backend, Cpu, Dropout, LinearBwd, LinearFwd, MlmLoss, Sequences,
    Write,
};
use elektron::model::config::Activation;
use elektron::rng::{Philox, Site, threshold};

const CPU: Cpu<f32> = Cpu::new();
const N: usize = 1024;
const C: usize = 256;

fn noise(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1013) as f32 / 506.5 - 1.0).collect()
}

fn dropout() -> Dropout {
    let (threshold, scale) = (threshold(0.1), 1.0 / 0.9);
    Dropout { threshold, scale, rng: Philox::new(1), site: Site(9), step: 1, row0: 0 }
}

/// Median over 15 calls; `work` in units of 10⁹.
fn report(name: &str, work: f64, unit: &str, mut f: impl FnMut()) {
    f();
    let mut times: Vec<f64> = (0..15)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{name:<44} {:>9.3} ms {:>8.1} {unit}", times[7] * 1e3, work / times[7] / 1e9);
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
            dinp: (Write::Set, &mut dx),
            dweight: &mut dw,
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
            nll: &mut nll,
            best: &mut best,
            sampled: Some(&mut sampled),
        })
        .expect("an op");
    });
}

fn main() {
    linear(C, 3 * C, None);
    linear(C, C, None);
    linear(C, 4 * C, Some(Activation::Gelu));
    linear(4 * C, C, None);
    attention(128);
    attention(512);
    norm("dropout + residual + LayerNorm", dropout());
    norm("residual + LayerNorm", Dropout::OFF);
    mlm_loss();
}
