//! Figures of a pass, against their definitions applied to what the pass computed: which tokens
//! could have been masked is read off the batch, scores are compared pair by pair.

use approx::assert_abs_diff_eq;
use elektron::backend::{Backend, COUNTS, Cpu};
use elektron::data::Batch;
use elektron::data::mask::SpecialIds;
use elektron::model::config::{Architecture, ElectraConfig};
use elektron::model::hf::Checkpoint;
use elektron::model::{Losses, Options, Phase, TokenDetection};
use elektron::train::metrics::Metrics;

use crate::whole::config;

const PAD: u32 = 0;
const CLS: u32 = 2;
const SEP: u32 = 3;
const MASK: u32 = 4;
const SPECIAL: SpecialIds = SpecialIds { never: [PAD, CLS, SEP, MASK, PAD], mask: MASK };
const ROWS: usize = 40;
const LEN: usize = 12;

/// Rows of [CLS] … [SEP]; every third row ends in padding. Three positions of each are masked: one
/// shows [MASK], one a random token, and of the last some keep their token and some show [MASK].
fn batch() -> Batch {
    let mut batch = Batch { cu_seqlens: vec![0], special: Some(SPECIAL), ..Batch::default() };
    for row in 0..ROWS as u32 {
        let start = batch.ids.len() as u32;
        let mut ids: Vec<u32> = (0..LEN as u32).map(|i| 5 + (row * 7 + i * i * 3) % 18).collect();
        (ids[0], ids[LEN - 1]) = (CLS, SEP);
        let padded = if row % 3 == 0 { 2 } else { 0 };
        if padded > 0 {
            ids[LEN - 3..].copy_from_slice(&[SEP, PAD, PAD]);
        }
        let mut shown = ids.clone();
        (shown[2], shown[4]) = (MASK, 6 + row % 11);
        if row % 2 == 0 {
            shown[7] = MASK;
        }
        batch.masked_index.extend([2, 4, 7].map(|i| start + i));
        batch.masked_ids.extend(shown);
        batch.ids.extend(ids);
        batch.positions.extend(0..LEN as u32);
        batch.types.extend([0; LEN]);
        batch.key_len.push(LEN as u32 - padded);
        batch.rtd_weight.extend((0..LEN as u32).map(|i| f32::from(u8::from(i < LEN as u32 - padded))));
        batch.cu_seqlens.push(batch.ids.len() as u32);
    }
    // One position is masked but counts nowhere.
    batch.masked_weight = vec![1.0; batch.masked_index.len()];
    batch.masked_weight[5] = 0.0;
    batch
}

fn model<B: Backend>(backend: B, head: Architecture) -> TokenDetection<B> {
    let config = |hidden| ElectraConfig { max_position_embeddings: LEN, ..config(hidden) };
    let generator = Checkpoint::fresh(config(4), Architecture::MaskedLm);
    let options = Options { seed: 5, ..Options::default() };
    TokenDetection::with_options(backend, generator, Checkpoint::fresh(config(8), head), options).unwrap()
}

/// (score, replaced) of the tokens that a figure is over.
type Scored = Vec<(f64, bool)>;

/// Accuracy, AUC, precision, recall, rate of replacements.
fn by_definition(scored: &Scored) -> [f64; 5] {
    let count = |of: &dyn Fn(&(f64, bool)) -> bool| scored.iter().filter(|x| of(x)).count() as f64;
    let of_class = |replaced| scored.iter().filter(move |x| x.1 == replaced).map(|x| x.0);
    let mut won = 0.0;
    for a in of_class(true) {
        for b in of_class(false) {
            won += f64::from(u8::from(a > b)) + 0.5 * f64::from(u8::from(a == b));
        }
    }
    let (fakes, originals) = (count(&|x| x.1), count(&|x| !x.1));
    let (called, found) = (count(&|x| x.0 > 0.0), count(&|x| x.0 > 0.0 && x.1));
    let right = count(&|x| (x.0 > 0.0) == x.1);
    let all = fakes + originals;
    [right / all, won / (fakes * originals), found / called, found / fakes, fakes / all]
}

fn check<B: Backend>(backend: B, head: Architecture) {
    let batch = batch();
    let mut model = model(backend, head);
    model.step_forward(&batch, Phase::Eval { step: 3 }, None).unwrap();
    let out = model.read_step().unwrap();
    let metrics = Metrics::new(Losses::default(), &model.take_counts().unwrap());
    let special = [PAD, CLS, SEP, MASK];
    let counted = |i: &usize| batch.rtd_weight[*i] > 0.0;
    let scores = |keep: &dyn Fn(usize) -> bool| -> Scored {
        let tokens = (0..batch.ids.len()).filter(counted).filter(|&i| keep(i));
        // A bin holds an eighth of an octave: compared to that.
        tokens.map(|i| (f64::from(out.disc_logits[i]), out.is_fake[i])).collect()
    };
    let own = scores(&|i| !special.contains(&batch.ids[i]));
    let [accuracy, auc, precision, recall, rate] = by_definition(&own);
    assert!(own.len() < ROWS * (LEN - 2) && rate > 0.1 && rate < 0.4, "{} {rate}", own.len());
    let exact = [
        (metrics.disc_acc, accuracy),
        (metrics.disc_precision, precision),
        (metrics.disc_recall, recall),
        (metrics.fake_rate, rate),
    ];
    exact.iter().for_each(|&(got, want)| assert_abs_diff_eq!(got, want, epsilon = 1e-12));
    assert_abs_diff_eq!(metrics.disc_auc, auc, epsilon = 0.02);
    let mean = own.iter().map(|x| x.0).sum::<f64>() / own.len() as f64;
    let std = (own.iter().map(|x| (x.0 - mean).powi(2)).sum::<f64>() / own.len() as f64).sqrt();
    assert_abs_diff_eq!(metrics.disc_score_std, std, epsilon = 0.1 * std);
    let all = scores(&|_| true);
    let [accuracy, auc, precision, recall, rate] = by_definition(&all);
    let exact = [
        (metrics.disc_all_acc, accuracy),
        (metrics.disc_all_precision, precision),
        (metrics.disc_all_recall, recall),
        (metrics.all_fake_rate, rate),
    ];
    exact.iter().for_each(|&(got, want)| assert_abs_diff_eq!(got, want, epsilon = 1e-12));
    assert_abs_diff_eq!(metrics.disc_all_auc, auc, epsilon = 0.02);
    // The generator, by its own words on each masked position.
    let slots = (0..batch.masked_index.len()).filter(|&slot| batch.masked_weight[slot] > 0.0);
    let shows = |slot: &usize| batch.masked_ids[batch.masked_index[*slot] as usize] == MASK;
    let accuracy = |slots: Vec<usize>| {
        slots.iter().filter(|&&slot| out.gen_correct[slot]).count() as f64 / slots.len() as f64
    };
    let (masked, kept): (Vec<usize>, Vec<usize>) = slots.clone().partition(shows);
    assert!(masked.len() > 40 && kept.len() > 40);
    assert_abs_diff_eq!(metrics.gen_acc, accuracy(slots.collect()), epsilon = 1e-12);
    assert_abs_diff_eq!(metrics.gen_mask_acc, accuracy(masked.clone()), epsilon = 1e-12);
    assert_abs_diff_eq!(metrics.gen_kept_acc, accuracy(kept), epsilon = 1e-12);
    // Its loss: the mean over a batch whose other positions do not count.
    let mut only = batch.clone();
    for (slot, weight) in only.masked_weight.iter_mut().enumerate() {
        *weight = if masked.contains(&slot) { 1.0 } else { 0.0 };
    }
    model.step_forward(&only, Phase::Eval { step: 3 }, None).unwrap();
    let loss = model.read_step().unwrap().gen_loss;
    assert_abs_diff_eq!(metrics.gen_mask_loss, loss, epsilon = 1e-4);
}

#[test]
fn figures_follow_their_definitions() {
    check(Cpu::<f64>::new(), Architecture::PreTraining);
    check(Cpu::<f32>::new(), Architecture::TokenClassification);
    #[cfg(feature = "simt")]
    {
        use elektron::backend::Gpu;
        use elektron::backend::gpu::driver::simt::{Order, Simt};
        check(Gpu::<_, f32>::new(Simt::new(Order::Shuffled(3))), Architecture::PreTraining);
        check(Gpu::<_, half::bf16>::new(Simt::new(Order::Descending)), Architecture::TokenClassification);
    }
}

/// Losses that are not finite count nowhere; others are bounded, so that their sum cannot overflow.
fn check_extreme_losses<B: Backend<F = f32>>(backend: B) {
    const M: usize = 8;
    let nll = [f32::NAN, f32::INFINITY, 1e9, -1e-7, 0.75, 12.5, 3.0, 2.0];
    let buf = |values: &[u32]| {
        let mut buf = backend.alloc::<u32>(values.len()).unwrap();
        backend.upload(values, B::slice_mut(&mut buf, 0..values.len())).unwrap();
        buf
    };
    let float = |values: &[f32]| {
        let mut buf = backend.alloc::<f32>(values.len()).unwrap();
        backend.upload(values, B::slice_mut(&mut buf, 0..values.len())).unwrap();
        buf
    };
    let (ids, shown) = (buf(&[9; M]), buf(&[MASK, MASK, MASK, MASK, MASK, MASK, 9, 10]));
    let (index, zero, one) = (buf(&[0, 1, 2, 3, 4, 5, 6, 7]), buf(&[0; M]), buf(&[1, 1, 1, 0, 1, 0, 1, 0]));
    let (nll, weight) = (float(&nll), float(&[0.125; M]));
    let logits = backend.alloc::<B::X>(M).unwrap();
    let (mut losses, mut counts) = (float(&[0.0; 2]), backend.alloc::<u64>(COUNTS).unwrap());
    backend
        .metrics(elektron::backend::Metrics {
            labels: 1,
            logits: B::slice(&logits, 0..M),
            is_fake: B::slice(&zero, 0..M),
            rtd_nll: B::slice(&weight, 0..M),
            rtd_weight: B::slice(&weight, 0..M),
            special: SPECIAL,
            ids: B::slice(&ids, 0..M),
            masked_ids: B::slice(&shown, 0..M),
            masked_index: B::slice(&index, 0..M),
            best: B::slice(&one, 0..M),
            targets: B::slice(&zero, 0..M),
            mlm_nll: B::slice(&nll, 0..M),
            mlm_weight: B::slice(&weight, 0..M),
            losses: B::slice_mut(&mut losses, 0..2),
            counts: B::slice_mut(&mut counts, 0..COUNTS),
        })
        .unwrap();
    let counts = backend.download(B::slice(&counts, 0..COUNTS)).unwrap();
    // Six are finite, three of them right (the fourth, sixth and eighth); four show [MASK], two of
    // them right.
    let halves = 65536 / 2;
    assert_eq!(counts[..6], [6, 3, 4, 2, 65535 + 12, halves + halves / 2 + halves]);
    assert!(backend.download(B::slice(&losses, 0..1)).unwrap()[0].is_nan(), "the run sees that loss");
}

#[test]
fn extreme_losses_are_bounded_or_left_out() {
    check_extreme_losses(Cpu::<f32>::new());
    #[cfg(feature = "simt")]
    {
        use elektron::backend::Gpu;
        use elektron::backend::gpu::driver::simt::{Order, Simt};
        for order in Order::ALL {
            check_extreme_losses(Gpu::<_, f32>::new(Simt::new(order)));
            check_extreme_losses(Gpu::<_, half::bf16>::new(Simt::new(order)));
        }
    }
}

/// Without a tokenizer the special tokens are those that the generator's configuration names.
#[test]
fn a_batch_without_special_tokens_takes_them_from_the_configuration() {
    let mut named = config(4);
    named.max_position_embeddings = LEN;
    for (name, id) in [("bos_token_id", CLS), ("sep_token_id", SEP), ("mask_token_id", MASK)] {
        named.other.insert(name.to_owned(), id.into());
    }
    assert_eq!(named.special_ids(), SPECIAL);
    let metrics = |special, config: ElectraConfig| {
        let discriminator = ElectraConfig { hidden_size: 8, ..config.clone() };
        let mut model = TokenDetection::with_options(
            Cpu::<f32>::new(),
            Checkpoint::fresh(config, Architecture::MaskedLm),
            Checkpoint::fresh(discriminator, Architecture::PreTraining),
            Options::default(),
        )
        .unwrap();
        let batch = Batch { special, ..batch() };
        model.step_forward(&batch, Phase::Eval { step: 3 }, None).unwrap();
        Metrics::new(Losses::default(), &model.take_counts().unwrap())
    };
    assert_eq!(metrics(None, named.clone()), metrics(Some(SPECIAL), named));
    // One that names padding alone: [CLS] and [SEP] are counted with the others, and nothing shows
    // [MASK].
    let unnamed = ElectraConfig { max_position_embeddings: LEN, ..config(4) };
    let without = metrics(None, unnamed);
    assert_eq!((without.gen_mask_loss, without.gen_kept_acc), (0.0, without.gen_acc));
    assert_eq!(without.fake_rate, without.all_fake_rate);
}
