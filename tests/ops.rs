//! Every op of the CPU backend: its backward pass against finite differences of its forward pass in double precision,
//! over awkward shapes, with and without dropout, and into gradients that are not zero.

use approx::{abs_diff_eq, assert_abs_diff_eq, relative_eq};
use elektron::backend::selftest::{Case, compare};
use elektron::backend::{
    AddNormBwd, AddNormFwd, AttentionBwd, AttentionFwd, Backend, Clock, Cpu, Dropout, EmbedBwd, EmbedFwd,
    EmbedTables, MlmLoss, RtdLoss, Sequences,
};
use elektron::rng::{Philox, Site};
use half::bf16;

mod linear;

const CPU: Cpu<f64> = Cpu::new();
/// Gradients start at this, so that `+=` shows.
const BEFORE: f64 = 0.25;

/// Fixed numbers in (-1, 1).
pub(crate) fn noise(seed: u64, n: usize) -> Vec<f64> {
    let philox = Philox::new(seed);
    (0..n as u32).map(|i| f64::from(philox.word(i, 0, Site(99), 0)) / 2f64.powi(31) - 1.0).collect()
}

fn dropout(p: f64) -> Dropout {
    if p == 0.0 {
        return Dropout::OFF;
    }
    Dropout::new(p, Philox::new(5), Site(17), Clock { step: 3, row0: 40, slot0: 0 })
}

/// Compares `got` with central differences of `f` in every element of `x` (or every `stride`-th).
fn check(name: &str, x: &[f64], got: &[f64], f: impl Fn(&[f64]) -> f64) {
    assert_eq!(x.len(), got.len(), "{name}");
    let step = 1e-5;
    let stride = (x.len() / 40).max(1);
    for i in (0..x.len()).step_by(stride) {
        let mut moved = x.to_vec();
        moved[i] += step;
        let above = f(&moved);
        moved[i] -= 2.0 * step;
        let want = (above - f(&moved)) / (2.0 * step);
        assert!(
            relative_eq!(got[i], want, epsilon = 2e-7, max_relative = 2e-7),
            "{name}[{i}]: {} against {want}",
            got[i]
        );
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// What was added to a gradient that held [`BEFORE`].
fn added(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x - BEFORE).collect()
}

/// In bf16 as exact as a GPU has to be; the reference is what the other tests of this file hold to finite differences.
#[test]
fn every_op_in_bf16() {
    let tests = Case::all().into_iter().map(|case| compare(&case, &Cpu::<bf16>::new()).unwrap().0);
    let problems: Vec<_> = tests.filter(|test| !test.passed).collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

/// Some rows alone, by their numbers, are dropped as they are among all.
#[test]
fn numbered_rows_keep_their_dropout() {
    let width = 70;
    let (gamma, beta) = (vec![1.0; width], vec![0.0; width]);
    let sums = |x: &[f64], numbers: Option<&[u32]>| {
        let (mut h, rows) = (x.to_vec(), x.len() / width);
        CPU.add_dropout_layernorm_fwd(AddNormFwd {
            width,
            x: &mut h,
            residual: None,
            dropout: dropout(0.5),
            numbers,
            gamma: &gamma,
            beta: &beta,
            eps: 1e-3,
            y: &mut vec![0.0; x.len()],
            mean: &mut vec![0.0; rows],
            rstd: &mut vec![0.0; rows],
        })
        .unwrap();
        h
    };
    let x = noise(1, 6 * width);
    let all = sums(&x, None);
    for row in [4, 0, 5] {
        let of = row * width..(row + 1) * width;
        assert_eq!(sums(&x[of.clone()], Some(&[row as u32])), all[of.clone()]);
        assert_ne!(sums(&x[of.clone()], Some(&[row as u32 + 1])), all[of]);
    }
}

fn norm_case(rows: usize, width: usize, p: f64, with_residual: bool) {
    let (x, r) = (noise(1, rows * width), noise(2, rows * width));
    let (gamma, beta, g) = (noise(3, width), noise(4, width), noise(5, rows * width));
    let numbers: Vec<u32> = (0..rows as u32).rev().map(|row| 5 * row).collect();
    let numbers = with_residual.then_some(&numbers[..]);
    let run = |x: &[f64], r: &[f64], gamma: &[f64], beta: &[f64]| {
        let (mut h, mut y) = (x.to_vec(), vec![f64::NAN; x.len()]);
        let (mut mean, mut rstd) = (vec![0.0; rows], vec![0.0; rows]);
        CPU.add_dropout_layernorm_fwd(AddNormFwd {
            width,
            x: &mut h,
            residual: with_residual.then_some(r),
            dropout: dropout(p),
            numbers,
            gamma,
            beta,
            eps: 1e-3,
            y: &mut y,
            mean: &mut mean,
            rstd: &mut rstd,
        })
        .unwrap();
        (h, y, mean, rstd)
    };
    let (h, _, mean, rstd) = run(&x, &r, &gamma, &beta);
    let (mut dx, mut dr) = (vec![f64::NAN; x.len()], vec![f64::NAN; x.len()]);
    let (mut dgamma, mut dbeta, mut dbias) = (vec![BEFORE; width], vec![BEFORE; width], vec![BEFORE; width]);
    CPU.add_dropout_layernorm_bwd(AddNormBwd {
        width,
        h: &h,
        dropout: dropout(p),
        numbers,
        gamma: &gamma,
        mean: &mean,
        rstd: &rstd,
        dy: &g,
        dx: &mut dx,
        dresidual: if with_residual { Some(&mut dr) } else { None },
        dgamma: &mut dgamma,
        dbeta: &mut dbeta,
        dbias: Some(&mut dbias),
    })
    .unwrap();
    for (c, got) in added(&dbias).iter().enumerate() {
        let want: f64 = dx.iter().skip(c).step_by(width).sum();
        assert!(abs_diff_eq!(*got, want, epsilon = 1e-12), "Σ dx[{c}]: {got} {want}");
    }
    let name = format!("norm {rows}x{width} p {p}");
    check(&format!("{name} dx"), &x, &dx, |x| dot(&run(x, &r, &gamma, &beta).1, &g));
    if with_residual {
        check(&format!("{name} dr"), &r, &dr, |r| dot(&run(&x, r, &gamma, &beta).1, &g));
    }
    check(&format!("{name} dγ"), &gamma, &added(&dgamma), |gamma| dot(&run(&x, &r, gamma, &beta).1, &g));
    check(&format!("{name} dβ"), &beta, &added(&dbeta), |beta| dot(&run(&x, &r, &gamma, beta).1, &g));
}

#[test]
fn add_dropout_layernorm() {
    for p in [0.0, 0.1] {
        for residual in [false, true] {
            norm_case(1, 2, p, residual);
            norm_case(33, 31, p, residual);
            norm_case(5, 128, p, residual);
        }
    }
}

fn sequences<'a>(
    cu_seqlens: &'a [u32],
    key_len: &'a [u32],
    (heads, head_size): (usize, usize),
) -> Sequences<'a, Cpu<f64>> {
    let max_seqlen = cu_seqlens.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap();
    Sequences { cu_seqlens, key_len, max_seqlen, heads, head_size }
}

/// Lengths and key lengths of packed sequences.
fn attention_case(lengths: &[(usize, usize)], heads: usize, head_size: usize, p: f64) {
    let n: usize = lengths.iter().map(|l| l.0).sum();
    let width = heads * head_size;
    let mut cu = vec![0u32];
    lengths.iter().for_each(|l| cu.push(cu[cu.len() - 1] + l.0 as u32));
    let key_len: Vec<u32> = lengths.iter().map(|l| l.1 as u32).collect();
    let (qkv, g) = (noise(1, 3 * n * width), noise(2, n * width));
    let run = |qkv: &[f64]| {
        let (mut out, mut lse) = (vec![f64::NAN; n * width], vec![f64::NAN; n * heads]);
        let dropout = dropout(p);
        CPU.attention_fwd(AttentionFwd {
            sequences: sequences(&cu, &key_len, (heads, head_size)),
            dropout,
            qkv,
            out: &mut out,
            lse: &mut lse,
        })
        .unwrap();
        (out, lse)
    };
    let (out, lse) = run(&qkv);
    let (mut dqkv, mut dbias) = (vec![f64::NAN; qkv.len()], vec![BEFORE; 3 * width]);
    CPU.attention_bwd(AttentionBwd {
        sequences: sequences(&cu, &key_len, (heads, head_size)),
        dropout: dropout(p),
        qkv: &qkv,
        out: &out,
        lse: &lse,
        dout: &g,
        dqkv: &mut dqkv,
        dbias: &mut dbias,
    })
    .unwrap();
    check(&format!("attention {lengths:?} p {p}"), &qkv, &dqkv, |qkv| dot(&run(qkv).0, &g));
    let shifted = |bias: &[f64]| -> Vec<f64> {
        qkv.chunks(3 * width).flat_map(|row| row.iter().zip(bias).map(|(x, b)| x + b)).collect()
    };
    check(&format!("attention {lengths:?} p {p} bias"), &vec![0.0; 3 * width], &added(&dbias), |bias| {
        dot(&run(&shifted(bias)).0, &g)
    });
    if p == 0.0 {
        check_against_definition(lengths, heads, head_size, &qkv, &out);
    }
}

/// softmax(Q · Kᵀ / √HS) · V, written out.
fn check_against_definition(lengths: &[(usize, usize)], heads: usize, size: usize, qkv: &[f64], out: &[f64]) {
    let width = heads * size;
    let at = |row: usize, which: usize, head: usize, c: usize| {
        qkv[row * 3 * width + which * width + head * size + c]
    };
    let mut first = 0;
    for &(rows, keys) in lengths {
        for (row, head) in (first..first + rows).flat_map(|row| (0..heads).map(move |head| (row, head))) {
            let score = |k: usize| {
                (0..size).map(|c| at(row, 0, head, c) * at(first + k, 1, head, c)).sum::<f64>()
                    / (size as f64).sqrt()
            };
            let e: Vec<f64> = (0..keys).map(|k| score(k).exp()).collect();
            let total: f64 = e.iter().sum();
            for c in 0..size {
                let want: f64 = (0..keys).map(|k| e[k] / total * at(first + k, 2, head, c)).sum();
                assert_abs_diff_eq!(out[row * width + head * size + c], want, epsilon = 1e-12);
            }
        }
        first += rows;
    }
}

#[test]
fn attention() {
    for p in [0.0, 0.1] {
        attention_case(&[(1, 1)], 1, 4, p);
        attention_case(&[(5, 5), (3, 2), (7, 4)], 2, 3, p);
        attention_case(&[(129, 129), (2, 1)], 1, 8, p);
    }
}

#[test]
fn embedding() {
    for (p, with_delta) in [(0.0, false), (0.1, false), (0.1, true)] {
        embedding_case(p, with_delta);
    }
}

fn embedding_case(p: f64, with_delta: bool) {
    const WIDTH: usize = 6;
    const PAD: u32 = 0;
    let ids = [3u32, 1, 3, 2, 4, 1, 5];
    let positions = [0u32, 1, 2, 0, 1, 2, 3];
    let types = [0u32, 0, 1, 1, 0, 1, 0];
    let n = ids.len();
    let tables: Vec<Vec<f64>> =
        [6, 6, 4, 2, 1, 1].iter().zip(1..).map(|(&rows, s)| noise(s, rows * WIDTH)).collect();
    let g = noise(9, n * WIDTH);
    fn borrow(t: &[Vec<f64>], with_delta: bool) -> EmbedTables<'_, Cpu<f64>> {
        EmbedTables {
            word: &t[0],
            delta: with_delta.then_some(&t[1][..]),
            position: &t[2],
            token_type: &t[3],
            gamma: &t[4],
            beta: &t[5],
        }
    }
    let run = |t: &[Vec<f64>]| {
        let (mut out, mut mean, mut rstd) = (vec![f64::NAN; n * WIDTH], vec![0.0; n], vec![0.0; n]);
        CPU.embed_fwd(EmbedFwd {
            width: WIDTH,
            ids: &ids,
            positions: &positions,
            types: &types,
            tables: borrow(t, with_delta),
            eps: 1e-3,
            dropout: dropout(p),
            out: &mut out,
            mean: &mut mean,
            rstd: &mut rstd,
        })
        .unwrap();
        (out, mean, rstd)
    };
    let backward = |padding: u32| {
        let (_, mean, rstd) = run(&tables);
        let mut grads: Vec<Vec<f64>> = tables.iter().map(|t| vec![BEFORE; t.len()]).collect();
        let [dword, _, dposition, dtoken_type, dgamma, dbeta] = &mut grads[..] else { unreachable!() };
        CPU.embed_bwd(EmbedBwd {
            width: WIDTH,
            ids: &ids,
            positions: &positions,
            types: &types,
            tables: borrow(&tables, with_delta),
            padding: Some(padding),
            dropout: dropout(p),
            mean: &mean,
            rstd: &rstd,
            dout: &mut g.clone(),
            dword,
            dposition,
            dtoken_type,
            dgamma,
            dbeta,
        })
        .unwrap();
        grads
    };
    let grads = backward(PAD);
    let moved = usize::from(with_delta);
    for (table, grad) in [(moved, 0), (2, 2), (3, 3), (4, 4), (5, 5)] {
        let vary = |x: &[f64]| {
            let mut tables = tables.clone();
            tables[table] = x.to_vec();
            dot(&run(&tables).0, &g)
        };
        check(&format!("embedding table {table} p {p}"), &tables[table], &added(&grads[grad]), vary);
    }
    let skipped = backward(3);
    assert!(skipped[0][3 * WIDTH..4 * WIDTH].iter().all(|&x| x == BEFORE), "padding_idx row has a gradient");
    assert_eq!(skipped[0][..3 * WIDTH], grads[0][..3 * WIDTH]);
}

#[test]
fn mlm_loss() {
    let (m, v) = (5, 131);
    let logits: Vec<f64> = noise(1, m * v).iter().map(|x| 4.0 * x).collect();
    let (targets, rows) = ([0u32, 130, 64, 7, 7], [3u32, 9, 11, 12, 40]);
    let weight = [0.2, 0.3, 0.0, 0.4, 0.1];
    let run = |logits: &[f64], gradient: bool, disallow_correct: bool| {
        let (mut x, mut nll) = (logits.to_vec(), vec![0.0; m]);
        let (mut best, mut sampled) = (vec![0; m], vec![0; m]);
        CPU.mlm_loss(MlmLoss {
            vocabulary: v,
            targets: &targets,
            masked_index: &rows,
            weight: &weight,
            scale: 3.0,
            temperature: 0.7,
            disallow_correct,
            noise: Dropout { site: Site::GUMBEL, ..dropout(0.1) },
            gradient,
            logits: &mut x,
            pitch: v,
            nll: &mut nll,
            best: &mut best,
            sampled: Some(&mut sampled),
        })
        .unwrap();
        (x, nll, best, sampled)
    };
    let (gradient, nll, best, sampled) = run(&logits, true, false);
    check("mlm", &logits, &gradient, |x| 3.0 * dot(&run(x, false, false).1, &weight));
    assert_eq!(run(&logits, false, false).0, logits, "without a gradient the logits stay");
    let philox = Philox::new(5);
    for i in 0..m {
        let row = &logits[i * v..(i + 1) * v];
        let total: f64 = row.iter().map(|x| x.exp()).sum();
        assert_abs_diff_eq!(nll[i], total.ln() - row[targets[i] as usize], epsilon = 1e-12);
        let arg_max =
            |score: &dyn Fn(usize) -> f64| (0..v).max_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap();
        assert_eq!(best[i] as usize, arg_max(&|t| row[t]));
        let gumbel = |t: usize| {
            let word = philox.word(t as u32, 40 + rows[i], Site::GUMBEL, 3);
            let u = (f64::from(word >> 9) + 0.5) / f64::from(1 << 23);
            row[t] / 0.7 - (-(u + 1e-9).ln() + 1e-9).ln()
        };
        assert_eq!(sampled[i] as usize, arg_max(&gumbel));
    }
    let few = |forbid| {
        (0..40u32).map(|k| run(&noise(u64::from(k) + 50, m * v), false, forbid).3).collect::<Vec<_>>()
    };
    let correct =
        |all: &[Vec<u32>]| all.iter().flat_map(|s| s.iter().zip(&targets)).filter(|(a, b)| a == b).count();
    assert_eq!(correct(&few(true)), 0, "disallow_correct");
}

#[test]
fn the_sampler_follows_the_softmax() {
    let (m, v) = (4000, 6);
    let row = [0.5, 2.0, -1.0, 0.0, 1.0, -3.0];
    let mut logits: Vec<f32> = (0..m).flat_map(|_| row.map(|x| x as f32)).collect();
    let (mut nll, mut best, mut sampled) = (vec![0.0; m], vec![0; m], vec![0; m]);
    let rows: Vec<u32> = (0..m as u32).collect();
    Cpu::<f32>::new()
        .mlm_loss(MlmLoss {
            vocabulary: v,
            targets: &vec![0; m],
            masked_index: &rows,
            weight: &vec![0.0; m],
            scale: 1.0,
            temperature: 1.0,
            disallow_correct: false,
            noise: Dropout { site: Site::GUMBEL, ..dropout(0.1) },
            gradient: false,
            logits: &mut logits,
            pitch: v,
            nll: &mut nll,
            best: &mut best,
            sampled: Some(&mut sampled),
        })
        .unwrap();
    let total: f64 = row.iter().map(|x: &f64| x.exp()).sum();
    for (token, x) in row.iter().enumerate() {
        let p = x.exp() / total;
        let seen = sampled.iter().filter(|&&s| s as usize == token).count() as f64 / m as f64;
        let deviation = (p * (1.0 - p) / m as f64).sqrt();
        assert!((seen - p).abs() < 4.5 * deviation, "token {token}: {seen} against {p}");
    }
}

#[test]
fn rtd_loss() {
    let n = 7;
    let is_fake = [0u32, 1, 1, 0, 0, 1, 0];
    let weight = [0.1, 0.2, 0.0, 0.3, 0.1, 0.2, 0.1];
    for labels in [1, 2] {
        let logits: Vec<f64> = noise(1, n * labels).iter().map(|x| 30.0 * x * x * x).collect();
        let run = |logits: &[f64]| {
            let (mut nll, mut dlogits) = (vec![f64::NAN; n], vec![f64::NAN; n * labels]);
            CPU.rtd_loss(RtdLoss {
                labels,
                is_fake: &is_fake,
                weight: &weight,
                scale: 2.0,
                logits,
                nll: &mut nll,
                dlogits: &mut dlogits,
            })
            .unwrap();
            (nll, dlogits)
        };
        check("rtd", &logits, &run(&logits).1, |x| 2.0 * dot(&run(x).0, &weight));
    }
}

#[test]
fn dropout_drops_its_share_and_keeps_the_mean() {
    let (rows, width, p) = (200, 130, 0.3);
    let inp = vec![1.0; rows * width];
    let mut out = vec![0.0; rows * width];
    CPU.dropout(width, dropout(p), &inp, &mut out).unwrap();
    let dropped = out.iter().filter(|&&x| x == 0.0).count() as f64 / inp.len() as f64;
    assert!((dropped - p).abs() < 4.5 * (p * (1.0 - p) / inp.len() as f64).sqrt(), "{dropped}");
    // Of 65,536 equally likely values so many are dropped: the mean is kept exactly.
    let kept = 65_536.0 / (65_536.0 - (65_536.0 * p).round());
    assert_abs_diff_eq!(kept * (1.0 - p), 1.0, epsilon = 1e-5);
    assert!(out.iter().all(|&x| x == 0.0 || x == kept));
    let (index, width) = ([4u32, 0, 2], 3);
    let x = noise(1, 5 * width);
    let mut rows = vec![0.0; 3 * width];
    CPU.gather_rows_fwd(width, &index, &x, &mut rows).unwrap();
    assert_eq!(rows[..3], x[12..]);
    let mut back = vec![f64::NAN; 15];
    CPU.gather_rows_bwd(width, &index, &rows, &mut back).unwrap();
    for row in 0..5usize {
        let want = if index.contains(&(row as u32)) { &x[row * 3..row * 3 + 3] } else { &[0.0; 3][..] };
        assert_eq!(&back[row * 3..row * 3 + 3], want);
    }
}
