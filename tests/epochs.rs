//! Epochs as the Trainer of `transformers` counts them: the last batch of an epoch may be short, and the
//! last step takes the batches that are left.

use std::collections::BTreeSet;

use approx::assert_relative_eq;
use elektron::config::{RunConfig, Settings};
use elektron::data::loader::{Batching, Loader, LoaderSpec};
use elektron::data::mask::{MaskSpec, MaskStyle};
use elektron::data::pack::{Merge, Rows};
use elektron::data::prepare::{Spec, prepare};
use elektron::data::source::TextSource;
use elektron::data::tokenizer::Tokenizer;
use elektron::model::Flavour;

use crate::support::repository;

/// Rows, rows per batch, micro-batches per step, epochs.
type Run = (usize, usize, usize, f64);

/// What the Trainer of transformers 5.24 makes of a dataset: for each step the number of rows of each of
/// its micro-batches. It divides the loss of each micro-batch by the number of micro-batches.
fn trainer() -> Vec<(Run, Vec<Vec<usize>>)> {
    vec![
        ((10, 8, 1, 3.0), vec![vec![8], vec![2], vec![8], vec![2], vec![8], vec![2]]),
        ((10, 8, 1, 0.5), vec![vec![8]]),
        ((10, 8, 1, 1.5), vec![vec![8], vec![2], vec![8]]),
        ((10, 3, 2, 1.0), vec![vec![3, 3], vec![3, 1]]),
        ((11, 2, 4, 2.0), vec![vec![2, 2, 2, 2], vec![2, 1], vec![2, 2, 2, 2], vec![2, 1]]),
        ((7, 8, 1, 2.0), vec![vec![7], vec![7]]),
        ((7, 8, 4, 1.0), vec![vec![7]]),
        ((16, 8, 1, 2.0), vec![vec![8], vec![8], vec![8], vec![8]]),
        (
            (17, 2, 3, 2.5),
            [[2, 2, 2], [2, 2, 2], [2, 2, 1]].map(|step| step.to_vec()).into_iter().cycle().take(8).collect(),
        ),
        ((1, 1, 1, 3.0), vec![vec![1], vec![1], vec![1]]),
    ]
}

fn settings(flavour: Flavour) -> Settings {
    Settings {
        train: Some(vec!["text".to_owned()]),
        output: Some("out".into()),
        flavour: Some(flavour),
        ..Settings::default()
    }
}

/// `count` rows of different words, and of different lengths.
fn rows(count: usize) -> (Rows, MaskSpec) {
    let dir = tempfile::tempdir().unwrap();
    let book = std::fs::read_to_string(repository("tests/data/sherlock-holmes.txt")).unwrap();
    let words: Vec<&str> = book.split_whitespace().skip(900).collect();
    let text: String = (0..count).map(|i| words[9 * i..9 * i + 4 + i % 5].join(" ") + "\n").collect();
    let path = dir.path().join("text.txt");
    std::fs::write(&path, text).unwrap();
    let source = TextSource::new(&[path.to_str().unwrap()], &["text".to_owned()]).unwrap();
    let tokenizer = Tokenizer::load(&repository("tests/data/wordpiece-8k.txt")).unwrap();
    let dataset = prepare(&source, &tokenizer, &dir.path().join("shards"), &Spec::default(), |_| {}).unwrap();
    let (special, vocab_size) = (tokenizer.special(), tokenizer.vocab_size());
    let rows = Rows::new(dataset, special, Merge::None, 12, 7).unwrap();
    assert_eq!(rows.len(), count);
    (rows, MaskSpec { style: MaskStyle::Txtai, probability: 0.15, vocab_size, special, seq_len: 12 })
}

fn spec(mask: MaskSpec, (_, batch_size, micro_batches, _): Run) -> LoaderSpec {
    let batching = Batching::PerEpoch { batch_size };
    LoaderSpec { batch_size, micro_batches, batching, seed: 4, mask, on_device: false }
}

#[test]
fn steps_are_as_many_as_the_trainers() {
    for ((rows, batch_size, accumulation, epochs), steps) in trainer() {
        for flavour in [Flavour::Txtai, Flavour::Electra] {
            let settings = Settings {
                batch_size: Some(batch_size),
                grad_accumulation: Some(accumulation),
                epochs: Some(epochs),
                ..settings(flavour)
            };
            let config = RunConfig::resolve(settings).unwrap();
            assert_eq!(config.total_steps(rows), steps.len() as u64, "{rows} rows, {config:?}");
            assert!(config.short_batches);
        }
    }
    let none = Settings { epochs: Some(0.0), ..settings(Flavour::Txtai) };
    assert!(RunConfig::resolve(none).unwrap_err().to_string().contains("--epochs is 0"));
}

/// The steps of google-research/electra are full batches; those of the Trainer's `max_steps` are the steps
/// of its epochs, with short ones.
#[test]
fn steps_of_the_electra_flavour_have_full_batches() {
    for (flavour, short) in [(Flavour::Electra, false), (Flavour::Txtai, true)] {
        let config = RunConfig::resolve(Settings { steps: Some(5), ..settings(flavour) }).unwrap();
        assert_eq!((config.short_batches, config.total_steps(3)), (short, 5));
    }
}

#[test]
fn batches_are_the_trainers() {
    for (run, steps) in trainer() {
        let (rows, mask) = rows(run.0);
        let spec = spec(mask, run);
        let per_epoch = run.0.div_ceil(run.1 * run.2);
        let mut seen = BTreeSet::new();
        for (step, want) in steps.iter().enumerate() {
            assert_eq!(spec.micro_batches_of(run.0, step as u64), want.len(), "{run:?}");
            for (micro, &count) in want.iter().enumerate() {
                let batch = spec.training_batch(&rows, step as u64, micro);
                assert_eq!(batch.sequences(), count, "{run:?}, step {step}");
                assert_eq!(spec.loss_divisor(run.0, step as u64, micro), want.len() as f64);
                let rows =
                    batch.cu_seqlens.windows(2).map(|w| batch.ids[w[0] as usize..w[1] as usize].to_vec());
                seen.extend(rows);
            }
            if (step + 1).is_multiple_of(per_epoch) {
                assert_eq!(seen.len(), run.0, "{run:?}: an epoch has every row");
                seen.clear();
            }
        }
    }
}

#[test]
fn the_loader_goes_on_wherever_it_is_asked_to() {
    let run = (11, 2, 4, 2.0);
    let (rows, mask) = rows(11);
    let rows = std::sync::Arc::new(rows);
    let spec = spec(mask, run);
    let batches = |from: u64, count: usize| {
        let mut loader = Loader::new(rows.clone(), spec, from);
        (0..count).map(|_| loader.next_batch().unwrap()).collect::<Vec<_>>()
    };
    let all = batches(0, 12);
    assert_eq!(
        all.iter().map(|batch| batch.sequences()).collect::<Vec<_>>(),
        [2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 1]
    );
    for (step, first) in [(1, 4), (2, 6), (3, 10)] {
        assert_eq!(batches(step, 12 - first), all[first..]);
    }
}

/// Parts of a batch are weighted by their rows, so that together they count as much as the batch.
#[test]
fn a_split_step_has_the_same_rows_and_weights() {
    for (run, steps) in trainer() {
        let (rows, mask) = rows(run.0);
        let whole = spec(mask, run);
        let full = run.1 * run.2;
        for size in (1..=full).filter(|&size| full.is_multiple_of(size)) {
            let split = LoaderSpec { batch_size: size, micro_batches: full / size, ..whole };
            for step in 0..steps.len() as u64 {
                let ids = |spec: &LoaderSpec| {
                    let micro = 0..spec.micro_batches_of(run.0, step);
                    micro
                        .flat_map(|micro| spec.training_batch(&rows, step, micro).masked_ids)
                        .collect::<Vec<_>>()
                };
                assert_eq!(ids(&split), ids(&whole), "{run:?} in parts of {size}");
                let count = split.micro_batches_of(run.0, step);
                let shares = (0..count).map(|micro| 1.0 / split.loss_divisor(run.0, step, micro));
                // At most eight quotients, each rounded a few times.
                assert_relative_eq!(shares.sum::<f64>(), 1.0, max_relative = 16.0 * f64::EPSILON);
            }
        }
    }
    // By hand: batches of 4 and 2 rows, each of which counts as half of the step. In parts of 3 rows the
    // second part holds one row of the first batch and both of the second.
    let (_, mask) = rows(6);
    let split = LoaderSpec { batch_size: 3, micro_batches: 4, ..spec(mask, (6, 4, 3, 1.0)) };
    let divisors: Vec<f64> = (0..2).map(|micro| split.loss_divisor(6, 0, micro)).collect();
    assert_relative_eq!(divisors[0], 1.0 / (3.0 / 4.0 / 2.0));
    assert_relative_eq!(divisors[1], 1.0 / ((1.0 / 4.0 + 1.0) / 2.0));
}

/// For recorded steps all batches are padded to the same sizes, short ones too.
#[test]
fn short_batches_are_evened_out() {
    let run = (11, 2, 4, 2.0);
    let (rows, mask) = rows(11);
    let spec = LoaderSpec { on_device: true, ..spec(mask, run) };
    let mut sizes = BTreeSet::new();
    let mut real = 0;
    for step in 0..2 {
        for micro in 0..spec.micro_batches_of(11, step) {
            let batch = spec.training_batch(&rows, step, micro);
            sizes.insert((
                batch.tokens(),
                batch.sequences(),
                batch.masked(),
                batch.rtd_weight.len(),
                batch.types.len(),
            ));
            real += batch.real_tokens();
        }
    }
    assert_eq!(sizes.len(), 1, "{sizes:?}");
    assert_eq!(real, (0..11).map(|row| rows.row(row).ids.len()).sum::<usize>(), "padding does not count");
}

#[cfg(unix)]
mod runs {
    use crate::place::{
        Place, assert_equal, assert_equal_but_for_rounding, signal, text, traces, wait_for_step,
    };

    /// How many rows of 16 tokens a run cuts its page of text into.
    fn rows_of(place: &Place) -> usize {
        let said = place.finish(&place.path("counted"));
        let words: Vec<&str> = said.split_whitespace().collect();
        let at = words.windows(2).position(|pair| pair == ["rows", "of"]).expect("rows are counted");
        words[at - 1].parse().unwrap()
    }

    #[test]
    fn a_run_ends_with_its_epochs_and_goes_on_to_the_same_bytes() {
        let rows = rows_of(&Place::new(&["--steps", "1"]));
        let place = Place::new(&["--epochs", "2", "--grad-accumulation", "3", "--save-every", "7"]);
        let want = place.undisturbed();
        let steps = 2 * rows.div_ceil(12);
        let trained: Vec<_> = want.1.iter().filter(|line| line.get("lr").is_some()).collect();
        assert_eq!(trained.last().unwrap()["step"], steps);
        assert_ne!(rows % 12, 0, "the last step of an epoch is short");
        assert_eq!(trained.last().unwrap()["tokens"], 2 * rows * 16, "every row twice");
        let output = place.path("stopped");
        let child = place.start(&output);
        wait_for_step(&output, steps as u64 / 2 - 1);
        signal(&child, "TERM");
        child.wait_with_output().unwrap();
        place.finish(&output);
        assert_equal(&traces(&output), &want);
    }

    /// The loss of a short batch is the mean over its parts, weighted by their rows.
    #[test]
    fn a_split_changes_rounding_alone_in_short_steps_too() {
        let run = |settings: &[&str]| {
            let fixed = ["--epochs", "1", "--precision", "fp32"];
            Place::new(&[&fixed[..], settings].concat()).undisturbed()
        };
        let want = run(&[]);
        for parts in ["1", "2"] {
            let got = run(&["--micro-batch", parts]);
            assert!(got.0 != want.0, "{parts} rows at a time are no other split");
            assert_equal_but_for_rounding(&got.1, &want.1);
        }
    }

    /// A device that records its steps trains on short steps as the CPU does.
    #[cfg(feature = "simt")]
    #[test]
    fn a_device_that_records_trains_on_short_steps() {
        for merge in ["none", "concat"] {
            let run = |device: &str| {
                let settings = ["--merge", merge, "--epochs", "3", "--precision", "fp32"];
                let place = Place::on(device, &settings);
                let line = |letters: usize| "abcdefghijklmno"[..letters].to_owned() + "\n";
                std::fs::write(place.path("page.txt"), (3..14).map(line).collect::<String>()).unwrap();
                let output = place.path("out");
                place.finish(&output);
                crate::place::metrics(&output)
            };
            assert_equal_but_for_rounding(&run("simt"), &run("cpu"));
        }
    }

    #[test]
    fn a_run_keeps_to_its_way_of_counting() {
        let place = Place::new(&["--steps", "3"]);
        let output = place.path("out");
        place.finish(&output);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_elektron"));
        let out =
            command.args(["pretrain", "--resume"]).arg(&output).args(["--epochs", "2"]).output().unwrap();
        let error = text(&out.stderr);
        assert!(out.status.code() == Some(1) && error.contains("full batches only"), "{error}");
    }
}
