//! The ops of masking, of the two heads and of their metrics; as in [`super::ops`].

use super::ops::geometry;
use super::{Bench, Kind, dropout, input, nan, rounded};
use crate::Result;
use crate::backend::{Backend, COUNTS, Clock, Corrupt, Dropout, Mask, Metrics, MlmLoss, RtdLoss};
use crate::data::mask::{MaskSpec, MaskStyle, SpecialIds};
use crate::data::tokenizer::SpecialTokens;
use crate::rng::{Philox, Site};

pub(super) fn mask<B: Backend>(
    b: &mut Bench<'_, B>,
    lengths: &[usize],
    style: MaskStyle,
    m: usize,
) -> Result<()> {
    let pairs: Vec<(usize, usize)> = lengths.iter().map(|&len| (len, len)).collect();
    let (cu, _) = geometry(&pairs);
    let n = cu[lengths.len()] as usize;
    // Every seventh token is special.
    let ids: Vec<u32> = (0..n as u32).map(|i| if i % 7 == 0 { i % 5 } else { 5 + i * 31 % 900 }).collect();
    let (ids, cu_buf) = (b.u(&ids)?, b.u(&cu)?);
    let [mut masked_ids, mut index, mut targets] =
        [b.u(&vec![u32::MAX; n])?, b.u(&vec![u32::MAX; m])?, b.u(&vec![u32::MAX; m])?];
    let mut weight = b.f(&nan(m))?;
    let special = SpecialTokens { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 };
    b.backend.mask(Mask {
        spec: MaskSpec { style, probability: 0.15, vocab_size: 1000, special, seq_len: 128 },
        rng: Philox::new(11),
        clock: Clock { step: 5, row0: 40, slot0: 7 },
        tiny: 1e-6,
        max_seqlen: lengths.iter().copied().max().unwrap_or(0),
        ids: B::slice(&ids, 0..n),
        cu_seqlens: B::slice(&cu_buf, 0..cu.len()),
        masked_ids: B::slice_mut(&mut masked_ids, 0..n),
        masked_index: B::slice_mut(&mut index, 0..m),
        targets: B::slice_mut(&mut targets, 0..m),
        weight: B::slice_mut(&mut weight, 0..m),
    })?;
    b.take_u("masked_ids", &masked_ids, n)?;
    b.take_u("masked_index", &index, m)?;
    b.take_u("targets", &targets, m)?;
    b.take_f("weight", &weight, m)?;
    Ok(())
}

pub(super) fn mlm<B: Backend>(
    b: &mut Bench<'_, B>,
    m: usize,
    v: usize,
    disallow_correct: bool,
) -> Result<()> {
    let logits: Vec<f64> = input(1, m * v).iter().map(|x| 4.0 * x).collect();
    let targets: Vec<u32> = (0..m as u32).map(|i| i * 7919 % v as u32).collect();
    let rows: Vec<u32> = (0..m as u32).map(|i| 3 + 2 * i).collect();
    let weight: Vec<f64> = (0..m).map(|i| i as f64 / 8.0).collect();
    let (targets, rows, weight) = (b.u(&targets)?, b.u(&rows)?, b.f(&weight)?);
    for gradient in [true, false] {
        let pitch = B::pitch(v);
        let (mut x, mut nll) = (b.padded(&logits, v, pitch)?, b.f(&nan(m))?);
        let (mut best, mut sampled) = (b.u(&vec![u32::MAX; m])?, b.u(&vec![u32::MAX; m])?);
        b.backend.mlm_loss(MlmLoss {
            vocabulary: v,
            targets: B::slice(&targets, 0..m),
            masked_index: B::slice(&rows, 0..m),
            weight: B::slice(&weight, 0..m),
            scale: 3.0,
            temperature: 0.7,
            disallow_correct,
            noise: Dropout { site: Site::GUMBEL, ..dropout(0.1) },
            gradient,
            logits: B::slice_mut(&mut x, 0..m * pitch),
            pitch,
            nll: B::slice_mut(&mut nll, 0..m),
            best: B::slice_mut(&mut best, 0..m),
            sampled: gradient.then(|| B::slice_mut(&mut sampled, 0..m)),
        })?;
        b.take_rows("logits", &x, [m, v, pitch])?;
        b.take_f("nll", &nll, m)?;
        b.take_u("best", &best, m)?;
        b.take_u("sampled", &sampled, m)?;
    }
    Ok(())
}

pub(super) fn rtd<B: Backend>(b: &mut Bench<'_, B>, n: usize, labels: usize) -> Result<()> {
    let ids: Vec<u32> = (0..n as u32).map(|i| i * 31 % 50).collect();
    let masked: Vec<u32> = (0..n as u32).step_by(3).collect();
    let sampled: Vec<u32> = masked.iter().map(|&i| if i % 2 == 0 { ids[i as usize] } else { 49 }).collect();
    // The last slot is left over; where there are no tokens, it is the only one.
    let (masked, sampled) = ([&masked[..], &[n as u32]].concat(), [&sampled[..], &[7]].concat());
    let m = masked.len();
    let (ids, masked, sampled) = (b.u(&ids)?, b.u(&masked)?, b.u(&sampled)?);
    let (mut corrupted, mut is_fake) = (b.u(&vec![u32::MAX; n])?, b.u(&vec![u32::MAX; n])?);
    b.backend.corrupt(Corrupt {
        ids: B::slice(&ids, 0..n),
        masked_index: B::slice(&masked, 0..m),
        sampled: B::slice(&sampled, 0..m),
        corrupted: B::slice_mut(&mut corrupted, 0..n),
        is_fake: B::slice_mut(&mut is_fake, 0..n),
    })?;
    b.take_u("corrupted", &corrupted, n)?;
    b.take_u("is_fake", &is_fake, n)?;
    let logits: Vec<f64> = input(1, n * labels).iter().map(|x| rounded(30.0 * x * x * x)).collect();
    let weight: Vec<f64> = (0..n).map(|i| (i % 8) as f64 / 8.0).collect();
    let (logits, weight) = (b.x(&logits)?, b.f(&weight)?);
    let (mut nll, mut dlogits) = (b.f(&nan(n))?, b.x(&nan(n * labels))?);
    b.backend.rtd_loss(RtdLoss {
        labels,
        is_fake: B::slice(&is_fake, 0..n),
        weight: B::slice(&weight, 0..n),
        scale: 2.0,
        logits: B::slice(&logits, 0..n * labels),
        nll: B::slice_mut(&mut nll, 0..n),
        dlogits: B::slice_mut(&mut dlogits, 0..n * labels),
    })?;
    b.take_f("nll", &nll, n)?;
    b.take_x("dlogits", &dlogits, n * labels)?;
    Ok(())
}

pub(super) fn metrics<B: Backend>(b: &mut Bench<'_, B>, n: usize, labels: usize) -> Result<()> {
    let m = n / 6;
    // Cubes: scores of every size, and some zeros.
    let logits: Vec<f64> = input(1, n * labels).iter().map(|x| rounded(30.0 * x * x * x)).collect();
    let logits: Vec<f64> = logits.iter().map(|&x| if x.abs() < 0.01 { 0.0 } else { x }).collect();
    let fake: Vec<u32> = (0..n as u32).map(|i| u32::from(i % 7 < 2)).collect();
    let draw = |seed: u64, len: usize| -> Vec<f64> { input(seed, len).iter().map(|x| x.abs()).collect() };
    let weight = |len: usize| (0..len).map(|i| (i % 4) as f64 / 8.0).collect::<Vec<_>>();
    let (best, targets): (Vec<u32>, Vec<u32>) = (0..m as u32).map(|i| (i % 3, i % 2)).unzip();
    let (logits, fake) = (b.x(&logits)?, b.u(&fake)?);
    let (rtd_nll, rtd_weight) = (b.f(&draw(2, n))?, b.f(&weight(n))?);
    let (best, targets) = (b.u(&best)?, b.u(&targets)?);
    // Multiples of 1/32, which every precision rounds to the same 65536ths.
    let mlm_nll: Vec<f64> = draw(3, m).iter().map(|x| (x * 256.0).round() / 32.0).collect();
    let (mlm_nll, mlm_weight) = (b.f(&mlm_nll)?, b.f(&weight(m))?);
    // Every ninth token is special; masked positions show [MASK], their own token or another one.
    let ids: Vec<u32> = (0..n as u32).map(|i| if i % 9 == 0 { i % 5 } else { 5 + i % 20 }).collect();
    let masked_ids: Vec<u32> = (0..n as u32).map(|i| if i % 5 < 3 { 4 } else { i % 25 }).collect();
    // Unused slots, of weight 0, point behind the tokens.
    let index: Vec<u32> = (0..m).map(|i| if i % 4 == 0 { n } else { i * 6 + 1 } as u32).collect();
    let (ids, masked_ids, index) = (b.u(&ids)?, b.u(&masked_ids)?, b.u(&index)?);
    let (mut losses, mut counts) = (b.f(&nan(2))?, b.backend.alloc::<u64>(COUNTS)?);
    // Twice: counts add up, losses do not.
    for _ in 0..2 {
        b.backend.metrics(Metrics {
            labels,
            logits: B::slice(&logits, 0..n * labels),
            is_fake: B::slice(&fake, 0..n),
            rtd_nll: B::slice(&rtd_nll, 0..n),
            rtd_weight: B::slice(&rtd_weight, 0..n),
            special: SpecialIds { never: [0, 2, 3, 4, 0], mask: 4 },
            ids: B::slice(&ids, 0..n),
            masked_ids: B::slice(&masked_ids, 0..n),
            masked_index: B::slice(&index, 0..m),
            best: B::slice(&best, 0..m),
            targets: B::slice(&targets, 0..m),
            mlm_nll: B::slice(&mlm_nll, 0..m),
            mlm_weight: B::slice(&mlm_weight, 0..m),
            losses: B::slice_mut(&mut losses, 0..2),
            counts: B::slice_mut(&mut counts, 0..COUNTS),
        })?;
    }
    b.take_f("losses", &losses, 2)?;
    let counts = b.backend.download(B::slice(&counts, 0..COUNTS))?;
    b.push("counts", Kind::Index, counts.into_iter().map(|x| x as f64).collect());
    Ok(())
}
