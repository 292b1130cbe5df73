//! The whole model: gradients against finite differences (every head and sharing, dropout on), independence of the
//! number of threads, gradient accumulation, and memory that is what the plan says.

use approx::relative_eq;
use elektron::backend::cpu::Working;
use elektron::backend::{Backend, Cpu, Dropout, Elem, Float, MlmLoss, RtdLoss};
use elektron::data::Batch;
use elektron::model::config::{Architecture, ElectraConfig};
use elektron::model::hf::Checkpoint;
use elektron::model::{BatchLimits, Flavour, Options, Phase, Share, TokenDetection, memory_plan};
use elektron::train::optim::{AdamW, AdamWOptions};
use half::bf16;

pub(crate) fn config(hidden: usize) -> ElectraConfig {
    ElectraConfig {
        vocab_size: 23,
        embedding_size: 6,
        hidden_size: hidden,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 10,
        max_position_embeddings: 12,
        initializer_range: 0.3,
        ..ElectraConfig::default()
    }
}

/// Two sequences of 7 and 5 tokens, four of them masked.
pub(crate) fn batch() -> Batch {
    let ids: Vec<u32> = vec![2, 9, 7, 14, 11, 22, 3, 2, 5, 6, 19, 3];
    let masked_index = vec![1, 4, 8, 10];
    let mut masked_ids = ids.clone();
    for &i in &masked_index[..3] {
        masked_ids[i as usize] = 4;
    }
    Batch {
        ids,
        masked_ids,
        positions: (0..7).chain(0..5).collect(),
        types: vec![0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        cu_seqlens: vec![0, 7, 12],
        key_len: vec![7, 5],
        masked_index,
        masked_weight: vec![1.0; 4],
        rtd_weight: vec![1.0; 12],
        masking: None,
        special: None,
    }
}

pub(crate) const SAMPLED: [u32; 4] = [9, 20, 5, 13];
const TRAIN: Phase = Phase::Train { step: 2, row0: 0, divisor: 1.0 };

fn model<B: Backend>(backend: B, head: Architecture, share: Share) -> TokenDetection<B> {
    let generator = Checkpoint::fresh(config(4), Architecture::MaskedLm);
    let discriminator = Checkpoint::fresh(config(8), head);
    let options = Options { share, flavour: Flavour::Electra, seed: 3, ..Options::default() };
    TokenDetection::with_options(backend, generator, discriminator, options).unwrap()
}

/// Both networks' loss, and the generator's alone.
fn losses(model: &mut TokenDetection<Cpu<f64>>, flat: &[f32]) -> (f64, f64) {
    model.load_flat_weights(flat).unwrap();
    model.step_forward(&batch(), TRAIN, Some(&SAMPLED)).unwrap();
    let out = model.read_step().unwrap();
    (out.loss, out.gen_loss)
}

/// Weights are single precision, so that moving them by a power of two is exact.
const STEP: f32 = 1.0 / 4096.0;

fn check_gradients(head: Architecture, share: Share) {
    let mut model = model(Cpu::<f64>::new(), head, share);
    let flat: Vec<f32> =
        model.flat_weights().unwrap().iter().map(|x| (x * 65536.0).round() / 65536.0).collect();
    losses(&mut model, &flat);
    model.step_backward().unwrap();
    let gradients = model.named_gradients().unwrap();
    let specs = model.table().specs().to_vec();
    for (spec, (name, gradient)) in specs.iter().zip(&gradients) {
        assert_eq!(&spec.name, name);
        // Under gdes the discriminator reads this table, but its loss has no gradient there.
        let separate =
            share == Share::Gdes && name.ends_with("generator.electra.embeddings.word_embeddings.weight");
        let stride = (gradient.data.len() / 5).max(1);
        for i in (0..gradient.data.len()).step_by(stride) {
            let at = |change: f32| {
                let mut moved = flat.clone();
                moved[spec.offset + i] += change;
                moved
            };
            let mut loss = |change: f32| {
                let (both, generator) = losses(&mut model, &at(change));
                if separate { generator } else { both }
            };
            let mut slope = |h: f32| (loss(h) - loss(-h)) / (2.0 * f64::from(h));
            // Richardson's combination removes the error of second order.
            let want = (4.0 * slope(STEP) - slope(2.0 * STEP)) / 3.0;
            let got = f64::from(gradient.data[i]);
            // What is left is h⁴ / 30 times the fifth derivative. The tolerance allows for one of 1.7e10,
            // which a loss of 50 has behind a LayerNorm whose input has a standard deviation of 0.02.
            assert!(
                relative_eq!(got, want, epsilon = 2e-6, max_relative = 2e-6),
                "{share:?} {name}[{i}]: {got} {want}"
            );
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    check_gradients(Architecture::PreTraining, Share::All);
    check_gradients(Architecture::PreTraining, Share::Word);
    check_gradients(Architecture::PreTraining, Share::Gdes);
    check_gradients(Architecture::TokenClassification, Share::None);
}

/// Under gdes the discriminator sends nothing into the generator's table: its gradient is the generator loss's own.
#[test]
fn gdes_separates_the_gradients_of_the_tables() {
    let gradient_of = |share: Share, disc_weight: f64, name: &str| {
        let generator = Checkpoint::fresh(config(4), Architecture::MaskedLm);
        let discriminator = Checkpoint::fresh(config(8), Architecture::PreTraining);
        let options = Options { share, disc_weight, seed: 3, ..Options::default() };
        let mut model =
            TokenDetection::with_options(Cpu::<f64>::new(), generator, discriminator, options).unwrap();
        model.step_forward(&batch(), TRAIN, Some(&SAMPLED)).unwrap();
        model.step_backward().unwrap();
        let gradients = model.named_gradients().unwrap();
        gradients.into_iter().find(|(n, _)| n == name).unwrap().1.data
    };
    let word = "generator.electra.embeddings.word_embeddings.weight";
    let delta = "discriminator.electra.embeddings.word_embeddings.delta";
    let (with, without) = (gradient_of(Share::Gdes, 50.0, word), gradient_of(Share::Gdes, 0.0, word));
    assert_eq!(with, without, "the discriminator reaches the generator's table");
    let shared = gradient_of(Share::Word, 50.0, word);
    assert_ne!(shared, with);
    assert!(gradient_of(Share::Gdes, 50.0, delta).iter().any(|&x| x != 0.0));
    assert!(gradient_of(Share::Gdes, 0.0, delta).iter().all(|&x| x == 0.0));
}

fn trained<X: Working>(threads: usize) -> Vec<f32> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut model = model(Cpu::<X>::new(), Architecture::PreTraining, Share::All);
        let mut optimizer = AdamW::new(&mut model, AdamWOptions::default()).unwrap();
        for step in 0..3 {
            model.step_forward(&batch(), Phase::Train { step, row0: 0, divisor: 1.0 }, None).unwrap();
            model.step_backward().unwrap();
            optimizer.step(&mut model, 1e-2).unwrap();
        }
        model.flat_weights().unwrap()
    })
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for trained in [trained::<f32>, trained::<bf16>] {
        let one = trained(1);
        assert!(one.iter().all(|x| x.is_finite()));
        for threads in [2, 3, 5] {
            assert_eq!(one, trained(threads), "{threads} threads");
        }
    }
}

#[test]
fn two_micro_batches_are_the_mean_of_both() {
    let gradients = |divisor: f64, times: usize| {
        let mut model = model(Cpu::<f64>::new(), Architecture::PreTraining, Share::All);
        for _ in 0..times {
            let phase = Phase::Train { step: 0, row0: 0, divisor };
            model.step_forward(&batch(), phase, Some(&SAMPLED)).unwrap();
            model.step_backward().unwrap();
        }
        model.named_gradients().unwrap()
    };
    for ((name, a), (_, b)) in gradients(1.0, 1).iter().zip(&gradients(2.0, 2)) {
        for (x, y) in a.data.iter().zip(&b.data) {
            // Both are rounded to single precision, so they may differ by one unit in the last place;
            // 1e-12 is what double precision leaves of a zero.
            assert!(relative_eq!(x, y, epsilon = 1e-12, max_relative = f32::EPSILON), "{name}: {x} {y}");
        }
    }
}

#[test]
fn a_backward_pass_needs_its_forward_pass() {
    let mut model = model(Cpu::<f32>::new(), Architecture::PreTraining, Share::All);
    assert!(model.step_backward().is_err());
    model.step_forward(&batch(), TRAIN, None).unwrap();
    model.step_backward().unwrap();
    assert!(model.step_backward().unwrap_err().to_string().contains("forward"));
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let mut model = model(Cpu::<f32>::new(), Architecture::PreTraining, Share::All);
    let mut refuse = |change: fn(&mut Batch), word: &str| {
        let mut batch = batch();
        change(&mut batch);
        let error = model.step_forward(&batch, TRAIN, None).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    refuse(|b| b.ids[3] = 23, "token id 23");
    refuse(|b| b.positions[3] = 12, "position 12");
    refuse(|b| b.types[3] = 2, "token type 2");
    refuse(|b| b.masked_index[3] = 12, "masked position 12");
    let too_many = |b: &mut Batch| (b.masked_index, b.masked_weight) = (vec![1; 13], vec![1.0; 13]);
    refuse(too_many, "13 positions of 12 tokens");
    refuse(|b| b.cu_seqlens[1] = 13, "cu_seqlens");
    refuse(|b| b.key_len[0] = 8, "key");
}

#[test]
fn tables_that_differ_cannot_be_shared() {
    let generator = Checkpoint::fresh(config(4), Architecture::MaskedLm);
    let other = ElectraConfig { embedding_size: 5, ..config(8) };
    let discriminator = Checkpoint::fresh(other, Architecture::PreTraining);
    let Err(error) =
        TokenDetection::with_options(Cpu::<f32>::new(), generator, discriminator, Options::default())
    else {
        panic!("was accepted")
    };
    assert!(error.to_string().contains("--share none"), "{error}");
}

/// The published count of the paper's small pair: 14 M with the generator's quarter-width encoder.
#[test]
fn the_plan_counts_what_the_model_has() {
    use elektron::model::ParamTable;
    use elektron::model::config::Preset;
    let (generator, discriminator) = (Preset::Small.generator(30522), Preset::Small.discriminator(30522));
    let table =
        ParamTable::new(&generator, Some((&discriminator, Architecture::PreTraining)), Share::All).unwrap();
    let embeddings = (30522 + 512 + 2 + 2) * 128;
    let encoder = |c: usize| 12 * (4 * c * c + 4 * c + 8 * c * c + 5 * c + 4 * c) + 128 * c + c;
    let heads = (64 * 128 + 128 + 256 + 30522) + (256 * 256 + 256 + 257);
    assert_eq!(table.parameter_count(), embeddings + encoder(64) + encoder(256) + heads);
    let limits = BatchLimits { tokens: 1024, sequences: 8, masked: 152 };
    let (head, cpu) = (Architecture::PreTraining, Cpu::<f32>::new());
    let plan = memory_plan(&cpu, &generator, Some((&discriminator, head)), Share::All, limits).unwrap();
    let parameters: u64 = plan.families()[0].1;
    assert_eq!(parameters, 5 * 4 * table.len() as u64);
    assert!(plan.total_bytes() > parameters && plan.bytes_per_token() > 0);
}

/// A gradient that is not finite leaves the weights as they are, and the next step goes on.
#[test]
fn an_infinite_gradient_changes_no_weight() {
    infinite_gradient(Cpu::<f32>::new());
    infinite_gradient(Cpu::<bf16>::new());
    #[cfg(feature = "simt")]
    {
        use elektron::backend::gpu::driver::simt::{Order, Simt};
        infinite_gradient(elektron::backend::Gpu::<_, bf16>::new(Simt::new(Order::Ascending)));
    }
}

/// A loss may be infinite where its gradient is not: the gradient says so then, unless the row does not count.
#[test]
fn a_loss_that_is_not_finite_spoils_its_gradient() {
    spoiled_gradient(&Cpu::<f32>::new());
    spoiled_gradient(&Cpu::<bf16>::new());
    #[cfg(feature = "simt")]
    {
        use elektron::backend::gpu::driver::simt::{Order, Simt};
        spoiled_gradient(&elektron::backend::Gpu::<_, f32>::new(Simt::new(Order::Ascending)));
    }
}

fn spoiled_gradient<B: Backend>(b: &B) {
    fn put<B: Backend, T: Elem>(b: &B, values: &[T]) -> B::Buf<T> {
        let mut buf = b.alloc(values.len()).unwrap();
        b.upload(values, B::slice_mut(&mut buf, 0..values.len())).unwrap();
        buf
    }
    let x = |values: &[f64]| put(b, &values.iter().map(|&v| B::X::from_f64(v)).collect::<Vec<_>>());
    let f = |values: &[f64]| put(b, &values.iter().map(|&v| B::F::from_f64(v)).collect::<Vec<_>>());
    let read = |buf: &B::Buf<B::X>, n: usize| -> Vec<f64> {
        b.download(B::slice(buf, 0..n)).unwrap().into_iter().map(Float::to_f64).collect()
    };
    let low = f64::NEG_INFINITY;
    // Two rows whose target has no chance at all; the second does not count.
    let (mut logits, targets, weight) = (x(&[low, 1.0, low, 1.0]), put(b, &[0u32, 0]), f(&[0.5, 0.0]));
    let (mut nll, mut best) = (f(&[0.0; 2]), put(b, &[0u32; 2]));
    b.mlm_loss(MlmLoss {
        vocabulary: 2,
        targets: B::slice(&targets, 0..2),
        masked_index: B::slice(&targets, 0..2),
        weight: B::slice(&weight, 0..2),
        scale: 1.0,
        temperature: 1.0,
        disallow_correct: false,
        noise: Dropout::OFF,
        gradient: true,
        logits: B::slice_mut(&mut logits, 0..4),
        pitch: 2,
        nll: B::slice_mut(&mut nll, 0..2),
        best: B::slice_mut(&mut best, 0..2),
        sampled: None,
    })
    .unwrap();
    let gradient = read(&logits, 4);
    assert!(gradient[1].is_nan() && gradient[2..] == [0.0, 0.0], "{gradient:?}");

    let (logits, is_fake) = (x(&[low, low, 3.0]), put(b, &[1u32, 1, 1]));
    let (weight, mut nll, mut dlogits) = (f(&[1.0, 0.0, 1.0]), f(&[0.0; 3]), x(&[0.0; 3]));
    b.rtd_loss(RtdLoss {
        labels: 1,
        is_fake: B::slice(&is_fake, 0..3),
        weight: B::slice(&weight, 0..3),
        scale: 1.0,
        logits: B::slice(&logits, 0..3),
        nll: B::slice_mut(&mut nll, 0..3),
        dlogits: B::slice_mut(&mut dlogits, 0..3),
    })
    .unwrap();
    let gradient = read(&dlogits, 3);
    assert!(gradient[0].is_nan() && gradient[1] == 0.0 && gradient[2].is_finite(), "{gradient:?}");
}

fn infinite_gradient<B: Backend>(backend: B) {
    let mut model = model(backend, Architecture::PreTraining, Share::All);
    let mut optimizer = AdamW::new(&mut model, AdamWOptions::default()).unwrap();
    let before = model.flat_weights().unwrap();
    let huge = Batch { rtd_weight: vec![f32::INFINITY; 12], ..batch() };
    let mut step = |batch: &Batch| {
        model.step_forward(batch, TRAIN, None).unwrap();
        model.step_backward().unwrap();
        let norm = optimizer.step(&mut model, 1e-3).unwrap();
        (norm, model.flat_weights().unwrap())
    };
    let (norm, weights) = step(&huge);
    assert!(!norm.is_finite());
    assert_eq!(weights, before);
    let (norm, weights) = step(&batch());
    assert!(norm.is_finite() && weights.iter().all(|x| x.is_finite()));
    assert_ne!(weights, before);
}
