//! Training steps that a GPU, emulated or real, records once and replays: batches staged beside the computation, masked on the device,
//! evened out.

use approx::relative_eq;
use elektron::backend::{Backend, Clock, Cpu, Mask};
use elektron::data::Batch;
use elektron::data::loader::{Batching, LoaderSpec};
use elektron::data::mask::{MaskSpec, MaskStyle};
use elektron::data::pack::{Merge, Rows};
use elektron::data::prepare::{Spec, prepare};
use elektron::data::source::TextSource;
use elektron::data::tokenizer::Tokenizer;
use elektron::model::config::{Architecture, ElectraConfig};
use elektron::model::hf::Checkpoint;
use elektron::model::{Losses, Options, Phase, TokenDetection};
use elektron::train::optim::{AdamW, AdamWOptions};

use crate::golden::SINGLE;
use crate::support::{relative_l2, repository, widen};
use crate::whole::config;

const SEQ_LEN: usize = 12;
const STEPS: u64 = 6;

/// Paragraphs of many lengths, so that most batches need padding.
fn rows() -> (Rows, MaskSpec) {
    let dir = tempfile::tempdir().unwrap();
    let book = std::fs::read_to_string(repository("tests/data/sherlock-holmes.txt")).unwrap();
    let words: Vec<&str> = book.split_whitespace().skip(900).take(400).collect();
    let mut text = String::new();
    let mut at = 0;
    while at < words.len() {
        let count = 2 + at % 5;
        text += &(words[at..words.len().min(at + count)].join(" ") + "\n\n");
        at += count;
    }
    let path = dir.path().join("text.txt");
    std::fs::write(&path, text).unwrap();
    let source = TextSource::new(&[path.to_str().unwrap()], &["text".to_owned()]).unwrap();
    let tokenizer = Tokenizer::load(&repository("tests/data/wordpiece-8k.txt")).unwrap();
    let dataset = prepare(&source, &tokenizer, &dir.path().join("shards"), &Spec::default(), |_| {}).unwrap();
    let special = tokenizer.special();
    let vocab_size = tokenizer.vocab_size();
    let rows = Rows::new(dataset, special, Merge::None, SEQ_LEN, 7).unwrap();
    let style = MaskStyle::Electra;
    (rows, MaskSpec { style, probability: 0.15, vocab_size, special, seq_len: SEQ_LEN })
}

fn spec(mask: MaskSpec, micro_batches: usize, on_device: bool) -> LoaderSpec {
    LoaderSpec { batch_size: 3, micro_batches, batching: Batching::Continuous, seed: 4, mask, on_device }
}

fn model<B: Backend>(backend: B, vocab_size: usize) -> TokenDetection<B> {
    let config = |hidden| ElectraConfig { vocab_size, ..config(hidden) };
    let generator = Checkpoint::fresh(config(4), Architecture::MaskedLm);
    let discriminator = Checkpoint::fresh(config(8), Architecture::PreTraining);
    TokenDetection::with_options(backend, generator, discriminator, Options::default()).unwrap()
}

#[derive(Debug, PartialEq)]
struct Trained {
    losses: Vec<Losses>,
    weights: Vec<f32>,
    counts: Vec<u64>,
}

fn rate(step: u64) -> f64 {
    1e-3 / (step + 1) as f64
}

fn phase(step: u64, row0: usize, micro_batches: usize) -> Phase {
    Phase::Train { step: step as u32, row0: row0 as u32, divisor: micro_batches as f64 }
}

/// Steps as the ops stand, one after the other. Dropout and samples depend on the step, the learning rate on it too.
fn direct<B: Backend>(backend: B, rows: &Rows, spec: LoaderSpec) -> Trained {
    let mut model = model(backend, spec.mask.vocab_size);
    let mut optimizer = AdamW::new(&mut model, AdamWOptions::default()).unwrap();
    let mut losses = Vec::new();
    for step in 0..STEPS {
        let mut row0 = 0;
        for micro in 0..spec.micro_batches {
            let batch = spec.training_batch(rows, step, micro);
            model.step_forward(&batch, phase(step, row0, spec.micro_batches), None).unwrap();
            losses.push(model.collect_losses(model.fetch_losses().unwrap()).unwrap());
            model.step_backward().unwrap();
            row0 += batch.tokens();
        }
        optimizer.step(&mut model, rate(step)).unwrap();
    }
    let (weights, counts) = (model.flat_weights().unwrap(), model.take_counts().unwrap());
    Trained { losses, weights, counts }
}

/// The same with each batch staged before the step before it is read, as training does; `after` sees the backend after every step.
fn staged<B: Backend>(backend: B, rows: &Rows, spec: LoaderSpec, mut after: impl FnMut(&B)) -> Trained {
    let mut model = model(backend, spec.mask.vocab_size);
    let mut optimizer = AdamW::new(&mut model, AdamWOptions::default()).unwrap();
    let mut losses = Vec::new();
    model.stage(&spec.training_batch(rows, 0, 0)).unwrap();
    for step in 0..STEPS {
        let mut row0 = 0;
        for micro in 0..spec.micro_batches {
            let phase = phase(step, row0, spec.micro_batches);
            match micro + 1 == spec.micro_batches {
                true => optimizer.step_staged(&mut model, phase, rate(step)).unwrap(),
                false => model.step_staged(phase).unwrap(),
            }
            losses.push(model.fetch_losses().unwrap());
            let next = step as usize * spec.micro_batches + micro + 1;
            let (next, slot) = ((next / spec.micro_batches) as u64, next % spec.micro_batches);
            model.stage(&spec.training_batch(rows, next, slot)).unwrap();
            row0 += spec.batch_size * SEQ_LEN;
        }
        after(model.backend());
    }
    let losses = losses.into_iter().map(|l| model.collect_losses(l).unwrap()).collect();
    let (weights, counts) = (model.flat_weights().unwrap(), model.take_counts().unwrap());
    Trained { losses, weights, counts }
}

/// Replayed steps leave the bits of steps run op by op; `after` sees the backend after every step, with the micro-batches of one.
pub(crate) fn check_replays<B: Backend>(backend: impl Fn() -> B, mut after: impl FnMut(&B, usize)) {
    let (rows, mask) = rows();
    for micro_batches in [1, 2] {
        let spec = spec(mask, micro_batches, true);
        let want = direct(backend(), &rows, spec);
        let got = staged(backend(), &rows, spec, |backend| after(backend, micro_batches));
        assert_eq!(got, want);
    }
}

/// Padding, slots left over and masks drawn on the device change nothing: the CPU, without any of them, computes the same.
pub(crate) fn check_evened_out<B: Backend>(backend: impl Fn() -> B) {
    let (rows, mask) = rows();
    let batch = spec(mask, 1, true).training_batch(&rows, 0, 0);
    assert!(batch.rtd_weight.contains(&0.0) && batch.masking.is_some());
    let want = direct(Cpu::<f64>::new(), &rows, spec(mask, 1, false));
    let got = staged(backend(), &rows, spec(mask, 1, true), |_| {});
    for (got, want) in got.losses.iter().zip(&want.losses) {
        // Every step may add the error of one loss: independent errors of n steps add up to √n of one.
        let allowed = (STEPS as f64).sqrt() * SINGLE.loss;
        assert!(relative_eq!(got.loss, want.loss, max_relative = allowed), "{got:?} {want:?}");
    }
    assert_eq!(got.counts[..2], want.counts[..2], "masked positions, and how many the generator finds");
    let error = relative_l2("weights", &widen(&got.weights), &widen(&want.weights));
    assert!(error < 1e-4, "{error}");
}

/// The CPU records nothing and computes the same.
#[test]
fn staged_batches_are_the_batches_themselves() {
    check_replays(Cpu::<f32>::new, |_, _| {});
    check_evened_out(Cpu::<f32>::new);
}

/// A device's own op draws the masks that the loader draws on the host, and fills the slots that are left
/// over.
pub(crate) fn check_masks<B: Backend>(backend: &B) {
    let (rows, mask) = rows();
    for style in [MaskStyle::Electra, MaskStyle::Txtai] {
        let mask = MaskSpec { style, ..mask };
        let (ours, theirs) = (spec(mask, 2, false), spec(mask, 2, true));
        for micro in 0..2 {
            let (a, b) = (ours.training_batch(&rows, 3, micro), theirs.training_batch(&rows, 3, micro));
            let (n, used, slots) = (a.tokens(), a.masked(), b.masking.unwrap().slots);
            assert_eq!(a.ids, b.ids[..n]);
            assert!(b.masked_ids.is_empty() && used > 0 && used <= slots);
            let [masked_ids, index, targets] = masked_by(backend, &b);
            assert_eq!(masked_ids[..n], a.masked_ids);
            assert_eq!(masked_ids[n..], b.ids[n..], "padding stays");
            assert_eq!(index[..used], a.masked_index);
            assert_eq!(targets[..used], a.targets().collect::<Vec<_>>());
            assert!(index[used..].iter().all(|&i| i as usize == b.tokens()), "slots left over");
        }
    }
}

/// What the backend makes of a batch of step 3: the ids that the generator reads, the masked positions
/// and their targets.
fn masked_by<B: Backend>(backend: &B, batch: &Batch) -> [Vec<u32>; 3] {
    let masking = batch.masking.unwrap();
    let (n, m, rows) = (batch.tokens(), masking.slots, batch.sequences());
    let put = |values: &[u32]| {
        let mut buf = backend.alloc(values.len()).unwrap();
        backend.upload(values, B::slice_mut(&mut buf, 0..values.len())).unwrap();
        buf
    };
    let (ids, cu_seqlens) = (put(&batch.ids), put(&batch.cu_seqlens));
    let [mut masked_ids, mut index, mut targets] = [n, m, m].map(|len| put(&vec![u32::MAX; len]));
    let mut weight = backend.alloc(m).unwrap();
    backend
        .mask(Mask {
            spec: masking.spec,
            rng: masking.rng,
            clock: Clock { step: 3, row0: 0, slot0: masking.slot0 },
            tiny: 0.0,
            max_seqlen: SEQ_LEN,
            ids: B::slice(&ids, 0..n),
            cu_seqlens: B::slice(&cu_seqlens, 0..rows + 1),
            masked_ids: B::slice_mut(&mut masked_ids, 0..n),
            masked_index: B::slice_mut(&mut index, 0..m),
            targets: B::slice_mut(&mut targets, 0..m),
            weight: B::slice_mut(&mut weight, 0..m),
        })
        .unwrap();
    let read = |buf: &B::Buf<u32>, len: usize| backend.download(B::slice(buf, 0..len)).unwrap();
    [read(&masked_ids, n), read(&index, m), read(&targets, m)]
}

/// The CPU's op shares the loader's rule; what it adds are the slots.
#[test]
fn masks_fill_their_slots() {
    check_masks(&Cpu::<f32>::new());
}
