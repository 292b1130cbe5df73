//! The ops of masking, of the two heads and of their metrics.

use elektron::Result;
use elektron::backend::{Backend, COUNTS, Clock, Corrupt, Mask, Metrics, MlmLoss, RtdLoss};
use elektron::data::mask::{MaskSpec, MaskStyle, SpecialIds};
use elektron::data::tokenizer::SpecialTokens;
use elektron::rng::Philox;

use super::cases::{Cases, Sizes, dropout};

impl<B: Backend> Cases<'_, B> {
    pub(super) fn mask(&mut self) -> Result<()> {
        let Some([name]) = self.named(["dynamic masking"]) else { return Ok(()) };
        let Sizes { tokens, seq_len, vocabulary, .. } = self.sizes;
        let (b, rows) = (self.b, (tokens / seq_len).max(1));
        let n = rows * seq_len;
        let special = SpecialTokens { pad: 0, unk: 100, cls: 101, sep: 102, mask: 103 };
        let (style, probability) = (MaskStyle::Electra, 0.15);
        let spec = MaskSpec { style, probability, vocab_size: vocabulary, special, seq_len };
        let m = spec.most(rows);
        let ids: Vec<u32> =
            (0..n as u32).map(|i| 200 + i.wrapping_mul(7919) % (vocabulary as u32 - 200)).collect();
        let cu: Vec<u32> = (0..=rows).map(|i| (i * seq_len) as u32).collect();
        let (ids, cu) = (self.u(&ids)?, self.u(&cu)?);
        let (mut masked_ids, mut index, mut targets) =
            (self.u(&vec![0; n])?, self.u(&vec![0; m])?, self.u(&vec![0; m])?);
        let mut weight = self.f(m)?;
        self.time(&name, 20 * n + (8 + size_of::<B::F>()) * m, 0, &mut || {
            b.mask(Mask {
                spec,
                rng: Philox::new(1),
                clock: Clock { step: 1, ..Clock::default() },
                tiny: 1e-6,
                max_seqlen: seq_len,
                ids: B::slice(&ids, 0..n),
                cu_seqlens: B::slice(&cu, 0..rows + 1),
                masked_ids: B::slice_mut(&mut masked_ids, 0..n),
                masked_index: B::slice_mut(&mut index, 0..m),
                targets: B::slice_mut(&mut targets, 0..m),
                weight: B::slice_mut(&mut weight, 0..m),
            })
        })
    }

    pub(super) fn mlm_loss(&mut self) -> Result<()> {
        let (b, m, v) = (self.b, self.sizes.masked(), self.sizes.vocabulary);
        let Some([name]) = self.named([&format!("mlm loss + gradient + sample, {m} × {v}")]) else {
            return Ok(());
        };
        let index: Vec<u32> = (0..m as u32).collect();
        let targets: Vec<u32> = index.iter().map(|i| i.wrapping_mul(7919) % v as u32).collect();
        let (index, targets, weight) = (self.u(&index)?, self.u(&targets)?, self.f(m)?);
        let pitch = B::pitch(v);
        let (mut logits, mut nll) = (self.x(m * pitch)?, self.f(m)?);
        let (mut best, mut sampled) = (self.u(&vec![0; m])?, self.u(&vec![0; m])?);
        self.time(&name, 2 * size_of::<B::X>() * m * v, 0, &mut || {
            // The gradient takes the logits' place, so from the second round on its values are smaller: the work is the same.
            b.mlm_loss(MlmLoss {
                vocabulary: v,
                targets: B::slice(&targets, 0..m),
                masked_index: B::slice(&index, 0..m),
                weight: B::slice(&weight, 0..m),
                scale: 1.0,
                temperature: 1.0,
                disallow_correct: false,
                noise: dropout(),
                gradient: true,
                logits: B::slice_mut(&mut logits, 0..m * pitch),
                pitch,
                nll: B::slice_mut(&mut nll, 0..m),
                best: B::slice_mut(&mut best, 0..m),
                sampled: Some(B::slice_mut(&mut sampled, 0..m)),
            })
        })
    }

    pub(super) fn discriminator_head(&mut self) -> Result<()> {
        let Some(names) = self.named(["corrupt", "replaced token loss + gradient"]) else { return Ok(()) };
        let (b, n, m) = (self.b, self.sizes.tokens, self.sizes.masked());
        let (x, f) = (size_of::<B::X>(), size_of::<B::F>());
        let ids: Vec<u32> = (0..n as u32).collect();
        let index: Vec<u32> = (0..m as u32).map(|i| i * 20 / 3).collect();
        let (ids, index, sampled) = (self.u(&ids)?, self.u(&index)?, self.u(&vec![7; m])?);
        let (mut corrupted, mut is_fake) = (self.u(&vec![0; n])?, self.u(&vec![0; n])?);
        self.time(&names[0], 12 * n + 20 * m, 0, &mut || {
            b.corrupt(Corrupt {
                ids: B::slice(&ids, 0..n),
                masked_index: B::slice(&index, 0..m),
                sampled: B::slice(&sampled, 0..m),
                corrupted: B::slice_mut(&mut corrupted, 0..n),
                is_fake: B::slice_mut(&mut is_fake, 0..n),
            })
        })?;
        let (logits, weight, mut nll, mut dlogits) = (self.x(n)?, self.f(n)?, self.f(n)?, self.x(n)?);
        self.time(&names[1], n * (4 + 2 * f + 2 * x), 0, &mut || {
            b.rtd_loss(RtdLoss {
                labels: 1,
                is_fake: B::slice(&is_fake, 0..n),
                weight: B::slice(&weight, 0..n),
                scale: 1.0,
                logits: B::slice(&logits, 0..n),
                nll: B::slice_mut(&mut nll, 0..n),
                dlogits: B::slice_mut(&mut dlogits, 0..n),
            })
        })
    }

    pub(super) fn metrics(&mut self) -> Result<()> {
        let Some([name]) = self.named(["metrics"]) else { return Ok(()) };
        let (b, n, m) = (self.b, self.sizes.tokens, self.sizes.masked());
        let fake: Vec<u32> = (0..n as u32).map(|i| u32::from(i % 7 == 0)).collect();
        let (best, targets): (Vec<u32>, Vec<u32>) = (0..m as u32).map(|i| (i % 3, i % 2)).unzip();
        let (logits, fake, best, targets) = (self.x(n)?, self.u(&fake)?, self.u(&best)?, self.u(&targets)?);
        let (rtd_nll, rtd_weight, mlm_nll, mlm_weight) = (self.f(n)?, self.f(n)?, self.f(m)?, self.f(m)?);
        let ids: Vec<u32> = (0..n as u32).map(|i| if i % 64 == 0 { 101 } else { 200 + i % 800 }).collect();
        let masked_ids: Vec<u32> = (0..n as u32).map(|i| if i % 7 < 6 { 103 } else { 200 }).collect();
        let index: Vec<u32> = (0..m).map(|i| (i * n / m) as u32).collect();
        let (ids, masked_ids, index) = (self.u(&ids)?, self.u(&masked_ids)?, self.u(&index)?);
        let special = SpecialIds { never: [0, 101, 102, 103, 0], mask: 103 };
        let (mut losses, mut counts) = (self.f(2)?, b.alloc::<u64>(COUNTS)?);
        let (x, f) = (size_of::<B::X>(), size_of::<B::F>());
        self.time(&name, n * (8 + x + 2 * f) + m * (16 + 2 * f), 0, &mut || {
            b.metrics(Metrics {
                labels: 1,
                logits: B::slice(&logits, 0..n),
                is_fake: B::slice(&fake, 0..n),
                rtd_nll: B::slice(&rtd_nll, 0..n),
                rtd_weight: B::slice(&rtd_weight, 0..n),
                special,
                ids: B::slice(&ids, 0..n),
                masked_ids: B::slice(&masked_ids, 0..n),
                masked_index: B::slice(&index, 0..m),
                best: B::slice(&best, 0..m),
                targets: B::slice(&targets, 0..m),
                mlm_nll: B::slice(&mlm_nll, 0..m),
                mlm_weight: B::slice(&mlm_weight, 0..m),
                losses: B::slice_mut(&mut losses, 0..2),
                counts: B::slice_mut(&mut counts, 0..COUNTS),
            })
        })
    }
}
