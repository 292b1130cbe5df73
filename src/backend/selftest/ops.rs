//! The ops: forward, then backward from fixed saved values, so that an error of the first does not hide one of the second.

use super::{BEFORE, Bench, dropout, input, nan, noise};
use crate::backend::{
    AdamW, AddNormBwd, AddNormFwd, AttentionBwd, AttentionFwd, Backend, Before, Dropout, EmbedBwd, EmbedFwd,
    EmbedTables, Float, LinearBwd, LinearFwd, Sequences, UpdateRule, WeightGrad, Write,
};
use crate::model::config::Activation;
use crate::rng::{Philox, Site};
use crate::{Error, Result};

pub(super) fn linear<B: Backend>(
    b: &mut Bench<'_, B>,
    (rows, inputs, outputs): (usize, usize, usize),
    activation: Option<Activation>,
    write: Write,
) -> Result<()> {
    let inp = b.x(&input(1, rows * inputs))?;
    let weight = b.x(&input(2, outputs * inputs))?;
    let bias = b.x(&input(3, outputs))?;
    // Where there is no activation rows may be padded.
    let pitch = if activation.is_none() { B::pitch(outputs) } else { outputs };
    let (mut pre, mut out) = (b.x(&nan(rows * outputs))?, b.x(&nan(rows * pitch))?);
    let n = rows * outputs;
    b.backend.linear_fwd(LinearFwd {
        inputs,
        outputs,
        inp: B::slice(&inp, 0..rows * inputs),
        weight: B::slice(&weight, 0..outputs * inputs),
        bias: B::slice(&bias, 0..outputs),
        activation: activation.map(|a| (a, B::slice_mut(&mut pre, 0..n))),
        out: B::slice_mut(&mut out, 0..rows * pitch),
        pitch,
    })?;
    b.take_rows("out", &out, [rows, outputs, pitch])?;
    if activation.is_some() {
        b.take_x("pre", &pre, n)?;
    }
    // The backward pass alone: from the same saved argument on every backend.
    let pre = b.x(&input(5, n))?;
    let mut dout = b.padded(&input(4, n), outputs, pitch)?;
    let backward = |activation: Option<Activation>, dout: &mut B::Buf<B::X>| -> Result<_> {
        let mut dinp = b.x(&vec![BEFORE; rows * inputs])?;
        let (mut dweight, mut dbias) = (b.f(&vec![BEFORE; outputs * inputs])?, b.f(&vec![BEFORE; outputs])?);
        b.backend.linear_bwd(LinearBwd {
            inputs,
            outputs,
            rows,
            weight: B::slice(&weight, 0..outputs * inputs),
            activation: activation.map(|a| (a, B::slice(&pre, 0..n))),
            dout: B::slice_mut(dout, 0..rows * pitch),
            pitch,
            before: None,
            dinp: (write, B::slice_mut(&mut dinp, 0..rows * inputs)),
            dweight: Some((
                B::slice(&inp, 0..rows * inputs),
                B::slice_mut(&mut dweight, 0..outputs * inputs),
            )),
            dbias: Some(B::slice_mut(&mut dbias, 0..outputs)),
        })?;
        Ok((dinp, dweight, dbias))
    };
    let mut results = backward(activation, &mut dout)?;
    if b.naive && activation.is_some() {
        // The activation's gradient is stored before the products read it.
        b.round(&mut dout, n)?;
        results = backward(None, &mut dout)?;
    }
    let (dinp, dweight, dbias) = results;
    b.take_x("dinp", &dinp, rows * inputs)?;
    b.take_f("dweight", &dweight, outputs * inputs)?;
    b.take_f("dbias", &dbias, outputs)?;
    Ok(())
}

/// The backward pass of a layer whose input came out of an activation.
pub(super) fn linear_before<B: Backend>(
    b: &mut Bench<'_, B>,
    (rows, inputs, outputs): (usize, usize, usize),
    activation: Activation,
) -> Result<()> {
    let n = rows * inputs;
    let (weight, mut act) = (b.x(&input(1, outputs * inputs))?, b.x(&nan(n))?);
    let (pre, mut dout) = (b.x(&input(3, n))?, b.x(&input(4, rows * outputs))?);
    let (mut dinp, mut dbias) = (b.x(&nan(n))?, b.f(&vec![BEFORE; inputs])?);
    b.backend.linear_bwd(LinearBwd {
        inputs,
        outputs,
        rows,
        weight: B::slice(&weight, 0..outputs * inputs),
        activation: None,
        dout: B::slice_mut(&mut dout, 0..rows * outputs),
        pitch: outputs,
        before: Some(Before {
            activation,
            pre: B::slice(&pre, 0..n),
            act: Some(B::slice_mut(&mut act, 0..n)),
            dbias: B::slice_mut(&mut dbias, 0..inputs),
        }),
        dinp: (Write::Set, B::slice_mut(&mut dinp, 0..n)),
        dweight: None,
        dbias: None,
    })?;
    if b.naive {
        // What is stored is what is summed.
        b.round(&mut dinp, n)?;
        let stored = b.backend.download(B::slice(&dinp, 0..n))?;
        let sums: Vec<f64> = (0..inputs)
            .map(|c| BEFORE + stored.iter().skip(c).step_by(inputs).map(|x| x.to_f64()).sum::<f64>())
            .collect();
        dbias = b.f(&sums)?;
    }
    b.take_x("dinp", &dinp, n)?;
    b.take_x("act", &act, n)?;
    b.take_f("dbias", &dbias, inputs)
}

pub(super) fn weight_grads<B: Backend>(
    b: &mut Bench<'_, B>,
    rows: usize,
    layers: &[(usize, usize)],
) -> Result<()> {
    let mut buffers = Vec::new();
    for (seed, &(outputs, inputs)) in (0..).zip(layers) {
        let (inp, dout) = (b.x(&input(2 * seed, rows * inputs))?, b.x(&input(2 * seed + 1, rows * outputs))?);
        buffers.push((inp, dout, b.f(&vec![BEFORE; outputs * inputs])?));
    }
    let ops = layers.iter().zip(&mut buffers).map(|(&(outputs, inputs), (inp, dout, dweight))| WeightGrad {
        inputs,
        outputs,
        inp: B::slice(inp, 0..rows * inputs),
        dout: B::slice(dout, 0..rows * outputs),
        dweight: B::slice_mut(dweight, 0..outputs * inputs),
    });
    b.backend.weight_grads(ops.collect())?;
    for (&(outputs, inputs), (_, _, dweight)) in layers.iter().zip(&buffers) {
        b.take_f("dweight", dweight, outputs * inputs)?;
    }
    Ok(())
}

pub(super) fn norm<B: Backend>(
    b: &mut Bench<'_, B>,
    rows: usize,
    width: usize,
    p: f64,
    with_residual: bool,
) -> Result<()> {
    let n = rows * width;
    // With a residual the rows are some of a larger batch.
    let numbers: Vec<u32> = (0..rows as u32).map(|row| 3 * row + 1).collect();
    let numbers = b.u(&numbers)?;
    let (mut x, residual) = (b.x(&input(1, n))?, b.x(&input(2, n))?);
    let (gamma, beta) = (b.x(&input(3, width))?, b.x(&input(4, width))?);
    let mut y = b.x(&nan(n))?;
    let (mut mean, mut rstd) = (b.f(&nan(rows))?, b.f(&nan(rows))?);
    let mut forward =
        |x: &mut B::Buf<B::X>, residual: Option<&B::Buf<B::X>>, dropout: Dropout| -> Result<()> {
            b.backend.add_dropout_layernorm_fwd(AddNormFwd {
                width,
                x: B::slice_mut(x, 0..n),
                residual: residual.map(|r| B::slice(r, 0..n)),
                dropout,
                numbers: with_residual.then(|| B::slice(&numbers, 0..rows)),
                gamma: B::slice(&gamma, 0..width),
                beta: B::slice(&beta, 0..width),
                eps: 1e-3,
                y: B::slice_mut(&mut y, 0..n),
                mean: B::slice_mut(&mut mean, 0..rows),
                rstd: B::slice_mut(&mut rstd, 0..rows),
            })
        };
    forward(&mut x, with_residual.then_some(&residual), dropout(p))?;
    if b.naive {
        // The sum is stored before the statistics read it.
        b.round(&mut x, n)?;
        forward(&mut x, None, Dropout::OFF)?;
    }
    b.take_x("h", &x, n)?;
    b.take_x("y", &y, n)?;
    b.take_f("mean", &mean, rows)?;
    b.take_f("rstd", &rstd, rows)?;
    let h: Vec<f64> = input(6, n);
    let (means, rstds): (Vec<f64>, Vec<f64>) = h
        .chunks(width)
        .map(|row| {
            let mean = row.iter().sum::<f64>() / width as f64;
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / width as f64;
            (mean, 1.0 / (variance + 1e-3).sqrt())
        })
        .unzip();
    let (h, mean, rstd, dy) = (b.x(&h)?, b.f(&means)?, b.f(&rstds)?, b.x(&input(5, n))?);
    let (mut dx, mut dresidual) = (b.x(&nan(n))?, b.x(&nan(n))?);
    let (mut dgamma, mut dbeta) = (b.f(&vec![BEFORE; width])?, b.f(&vec![BEFORE; width])?);
    let mut dbias = b.f(&vec![BEFORE; width])?;
    b.backend.add_dropout_layernorm_bwd(AddNormBwd {
        width,
        h: B::slice(&h, 0..n),
        dropout: dropout(p),
        numbers: with_residual.then(|| B::slice(&numbers, 0..rows)),
        gamma: B::slice(&gamma, 0..width),
        mean: B::slice(&mean, 0..rows),
        rstd: B::slice(&rstd, 0..rows),
        dy: B::slice(&dy, 0..n),
        dx: B::slice_mut(&mut dx, 0..n),
        dresidual: with_residual.then(|| B::slice_mut(&mut dresidual, 0..n)),
        dgamma: B::slice_mut(&mut dgamma, 0..width),
        dbeta: B::slice_mut(&mut dbeta, 0..width),
        dbias: with_residual.then(|| B::slice_mut(&mut dbias, 0..width)),
    })?;
    b.take_x("dx", &dx, n)?;
    if with_residual {
        b.take_x("dresidual", &dresidual, n)?;
    }
    b.take_f("dgamma", &dgamma, width)?;
    b.take_f("dbeta", &dbeta, width)?;
    b.take_f("dbias", &dbias, width)?;
    Ok(())
}

pub(super) fn geometry(lengths: &[(usize, usize)]) -> (Vec<u32>, Vec<u32>) {
    let mut cu = vec![0u32];
    lengths.iter().for_each(|l| cu.push(cu[cu.len() - 1] + l.0 as u32));
    (cu, lengths.iter().map(|l| l.1 as u32).collect())
}

pub(super) fn attention<B: Backend>(
    b: &mut Bench<'_, B>,
    lengths: &[(usize, usize)],
    (heads, head_size): (usize, usize),
    p: f64,
) -> Result<()> {
    let (cu, keys) = geometry(lengths);
    let (n, c) = (cu[cu.len() - 1] as usize, heads * head_size);
    let qkv = b.x(&input(1, 3 * n * c))?;
    let (cu_buf, keys_buf) = (b.u(&cu)?, b.u(&keys)?);
    let max_seqlen = lengths.iter().map(|l| l.0).max().unwrap_or(0);
    fn sequences<'a, B: Backend>(
        (cu, keys): (&'a B::Buf<u32>, &'a B::Buf<u32>),
        count: usize,
        max_seqlen: usize,
        (heads, head_size): (usize, usize),
    ) -> Sequences<'a, B> {
        let (cu_seqlens, key_len) = (B::slice(cu, 0..count + 1), B::slice(keys, 0..count));
        Sequences { cu_seqlens, key_len, max_seqlen, heads, head_size }
    }
    let (mut out, mut lse) = (b.x(&nan(n * c))?, b.f(&nan(n * heads))?);
    b.backend.attention_fwd(AttentionFwd {
        sequences: sequences((&cu_buf, &keys_buf), keys.len(), max_seqlen, (heads, head_size)),
        dropout: dropout(p),
        qkv: B::slice(&qkv, 0..3 * n * c),
        out: B::slice_mut(&mut out, 0..n * c),
        lse: B::slice_mut(&mut lse, 0..n * heads),
    })?;
    b.take_x("out", &out, n * c)?;
    b.take_f("lse", &lse, n * heads)?;
    let dout = b.x(&input(2, n * c))?;
    let (mut dqkv, mut dbias) = (b.x(&nan(3 * n * c))?, b.f(&vec![BEFORE; 3 * c])?);
    b.backend.attention_bwd(AttentionBwd {
        sequences: sequences((&cu_buf, &keys_buf), keys.len(), max_seqlen, (heads, head_size)),
        dropout: dropout(p),
        qkv: B::slice(&qkv, 0..3 * n * c),
        out: B::slice(&out, 0..n * c),
        lse: B::slice(&lse, 0..n * heads),
        dout: B::slice(&dout, 0..n * c),
        dqkv: B::slice_mut(&mut dqkv, 0..3 * n * c),
        dbias: B::slice_mut(&mut dbias, 0..3 * c),
    })?;
    b.take_x("dqkv", &dqkv, 3 * n * c)?;
    b.take_f("dbias", &dbias, 3 * c)?;
    Ok(())
}

pub(super) fn embed<B: Backend>(
    b: &mut Bench<'_, B>,
    n: usize,
    width: usize,
    p: f64,
    with_delta: bool,
    padding: Option<u32>,
) -> Result<()> {
    const ROWS: [usize; 6] = [40, 40, 64, 2, 1, 1];
    let philox = Philox::new(77);
    let draw = |site: u32, limit: u32| -> Vec<u32> {
        (0..n as u32).map(|i| philox.word(i, 0, Site(site), 0) % limit).collect()
    };
    // Half of the tokens are one of two words, as in real text.
    let ids: Vec<u32> = draw(1, 80).into_iter().map(|id| if id < 40 { id } else { id % 2 * 7 }).collect();
    let (positions, types) = ((0..n as u32).map(|i| i % 64).collect::<Vec<_>>(), draw(3, 2));
    let (ids, positions, types) = (b.u(&ids)?, b.u(&positions)?, b.u(&types)?);
    let tables: Vec<B::Buf<B::X>> =
        ROWS.iter().zip(1..).map(|(&rows, s)| b.x(&input(s, rows * width))).collect::<Result<_>>()?;
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
    let mut out = b.x(&nan(n * width))?;
    let (mut mean, mut rstd) = (b.f(&nan(n))?, b.f(&nan(n))?);
    b.backend.embed_fwd(EmbedFwd {
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
    })?;
    b.take_x("out", &out, n * width)?;
    b.take_f("mean", &mean, n)?;
    b.take_f("rstd", &rstd, n)?;
    let mut grads: Vec<B::Buf<B::F>> =
        ROWS.iter().map(|&rows| b.f(&vec![BEFORE; rows * width])).collect::<Result<_>>()?;
    let mut dout = b.x(&input(9, n * width))?;
    let [dword, _, dposition, dtoken_type, dgamma, dbeta] = &mut grads[..] else {
        return Err(Error::argument("there are six tables"));
    };
    b.backend.embed_bwd(EmbedBwd {
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
    })?;
    if b.naive {
        // The sum's gradient is stored before the tables read it.
        b.round(&mut dout, n * width)?;
        let rows = b.backend.download(B::slice(&dout, 0..n * width))?;
        for (table, index) in [(0, &ids), (2, &positions), (3, &types)] {
            let index = b.backend.download(B::slice(index, 0..n))?;
            let mut sums = vec![BEFORE; ROWS[table] * width];
            for (&id, row) in
                index.iter().zip(rows.chunks(width)).filter(|(id, _)| table > 0 || Some(**id) != padding)
            {
                for (sum, x) in sums[id as usize * width..].iter_mut().zip(row) {
                    *sum += x.to_f64();
                }
            }
            grads[table] = b.f(&sums)?;
        }
    }
    b.take_x("dsum", &dout, n * width)?;
    for (name, table) in [("dword", 0), ("dposition", 2), ("dtoken_type", 3), ("dgamma", 4), ("dbeta", 5)] {
        b.take_f(name, &grads[table], ROWS[table] * width)?;
    }
    Ok(())
}

pub(super) fn move_rows<B: Backend>(b: &mut Bench<'_, B>, rows: usize, width: usize) -> Result<()> {
    let n = rows * width;
    let (x, mut out) = (b.x(&input(1, n))?, b.x(&nan(n))?);
    b.backend.dropout(width, dropout(0.3), B::slice(&x, 0..n), B::slice_mut(&mut out, 0..n))?;
    b.take_x("dropout", &out, n)?;
    // The last is beyond the rows: nobody's.
    let index: Vec<u32> = (0..rows as u32).rev().step_by(2).chain([rows as u32]).collect();
    let m = index.len();
    let index = b.u(&index)?;
    let (mut few, mut back) = (b.x(&nan(m * width))?, b.x(&nan(n))?);
    b.backend.gather_rows_fwd(
        width,
        B::slice(&index, 0..m),
        B::slice(&x, 0..n),
        B::slice_mut(&mut few, 0..m * width),
    )?;
    b.backend.gather_rows_bwd(
        width,
        B::slice(&index, 0..m),
        B::slice(&few, 0..m * width),
        B::slice_mut(&mut back, 0..n),
    )?;
    b.take_x("gathered", &few, m * width)?;
    b.take_x("scattered", &back, n)?;
    let (exact, mut cast) = (b.f(&noise(3, n))?, b.x(&nan(n))?);
    b.backend.cast(B::slice(&exact, 0..n), B::slice_mut(&mut cast, 0..n))?;
    b.take_x("cast", &cast, n)?;
    Ok(())
}

pub(super) fn optim<B: Backend>(
    b: &mut Bench<'_, B>,
    n: usize,
    bias_correction: Option<u64>,
    max_norm: Option<f64>,
) -> Result<()> {
    let mut grads = b.f(&input(1, n))?;
    let (mut m, mut v) = (b.f(&input(2, n))?, b.f(&input(3, n).iter().map(|x| x * x).collect::<Vec<_>>())?);
    let (mut master, mut working) = (b.f(&input(4, n))?, b.x(&nan(n))?);
    let mut norm_squared = b.f(&nan(1))?;
    b.backend.norm_squared(B::slice(&grads, 0..n), B::slice_mut(&mut norm_squared, 0..1))?;
    b.take_f("norm_squared", &norm_squared, 1)?;
    let decayed = if n == 0 { vec![] } else { vec![5..17, 40..n - 3] };
    b.backend.adamw(AdamW {
        rule: UpdateRule {
            lr: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-6,
            weight_decay: 0.1,
            bias_correction,
            max_norm,
        },
        norm_squared: B::slice(&norm_squared, 0..1),
        decayed: &decayed,
        grads: B::slice_mut(&mut grads, 0..n),
        m: B::slice_mut(&mut m, 0..n),
        v: B::slice_mut(&mut v, 0..n),
        master: B::slice_mut(&mut master, 0..n),
        working: B::slice_mut(&mut working, 0..n),
    })?;
    b.take_f("grads", &grads, n)?;
    b.take_f("m", &m, n)?;
    b.take_f("v", &v, n)?;
    b.take_f("master", &master, n)?;
    b.take_x("working", &working, n)?;
    Ok(())
}
