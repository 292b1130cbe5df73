//! Steps whose numbers are not finite or stand out, made so on purpose: skipped, undone, diagnosed, marked in the log, and
//! all of it the same when the run is stopped and resumed on the way.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use elektron::Result;
use elektron::backend::Cpu;
use elektron::config::{RunConfig, Settings};
use elektron::data::Batch;
use elektron::data::loader::{Batching, LoaderSpec};
use elektron::data::mask::MaskSpec;
use elektron::data::pack::Rows;
use elektron::data::prepare::{Spec, prepare};
use elektron::data::source::TextSource;
use elektron::data::tokenizer::Tokenizer;
use elektron::model::hf::Checkpoint;
use elektron::model::{Options, TokenDetection};
use elektron::train::checkpoint::{Checkpoints, Moment, Position, Snapshot, TrainerState};
use elektron::train::log::Progress;
use elektron::train::optim::{AdamW, AdamWOptions};
use elektron::train::saver::Saver;
use elektron::train::signals::Stop;
use elektron::train::{Ending, Fault, Run, Summary, train};
use serde_json::Value;

use crate::place::{Place, metrics};
use crate::support::golden;

type Model = TokenDetection<Cpu<f32>>;

struct Bench {
    place: Place,
    settings: Settings,
}

impl Bench {
    fn new(steps: u64, save_every: u64) -> Self {
        let place = Place::new(&[]);
        let settings = Settings {
            train: Some(vec![place.path("page.txt").to_str().unwrap().to_owned()]),
            seq_len: Some(16),
            batch_size: Some(4),
            steps: Some(steps),
            save_every: Some(save_every),
            keep: Some(1),
            max_bad_steps: Some(3),
            log_every: Some(2),
            ..Settings::default()
        };
        Self { place, settings }
    }

    fn output(&self, name: &str) -> PathBuf {
        let path = self.place.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Trains, or goes on; returns how it ended and the weights.
    fn train(&self, output: &Path, stop: Stop, fault: &Fault<'_, Cpu<f32>>) -> Result<(Summary, Vec<f32>)> {
        let settings = Settings { output: Some(output.to_path_buf()), ..self.settings.clone() };
        let config = RunConfig::resolve(settings).unwrap();
        let tokenizer = Tokenizer::load(&self.place.path("vocab.txt")).unwrap();
        let source = TextSource::new(&config.train, &config.columns).unwrap();
        let dataset =
            prepare(&source, &tokenizer, &self.place.path("shards"), &Spec::default(), |_| {}).unwrap();
        let special = tokenizer.special();
        let rows = Rows::new(dataset, special, config.merge, config.seq_len, config.seed).unwrap();
        let (style, vocab_size, seq_len) = (config.mask_style, tokenizer.vocab_size(), config.seq_len);
        let mask = MaskSpec { style, probability: config.mask_prob, vocab_size, special, seq_len };
        let loader = LoaderSpec {
            batch_size: config.batch_size,
            micro_batches: 1,
            batching: Batching::Continuous,
            seed: config.seed,
            mask,
            on_device: false,
        };
        let network = |name: &str| Checkpoint::load(&golden("checkpoints").join(name)).unwrap();
        let (g, d) = (network("generator"), network("discriminator_pre"));
        let mut model = TokenDetection::with_options(Cpu::new(), g, d, Options::default()).unwrap();
        let summary = train(Run {
            config: &config,
            model: &mut model,
            rows: Arc::new(rows),
            validation: None,
            loader,
            splits: None,
            resume: true,
            progress: Progress::Quiet,
            stop,
            fault: Some(fault),
        })?;
        Ok((summary, model.flat_weights().unwrap()))
    }

    /// Holds a run that is stopped after each of `stops` (step, returns) and resumed to one that is not.
    fn check_stops(&self, stops: &[(u64, u64)], fault: &Fault<'_, Cpu<f32>>) {
        let want = self.output("straight");
        let (_, weights) = self.train(&want, Stop::default(), fault).unwrap();
        for &(step, rollbacks) in stops {
            let output = self.output(&format!("stopped-{step}-{rollbacks}"));
            let stop = Stop::default();
            let stopping = |s: u64, r: u64, model: &mut Model, batch: &mut Batch| {
                if (s, r) == (step, rollbacks) {
                    stop.request();
                }
                fault(s, r, model, batch)
            };
            let (summary, _) = self.train(&output, stop.clone(), &stopping).unwrap();
            assert_eq!(summary.ending, Ending::Interrupted);
            assert_eq!(summary.position.step, step + 1);
            let (summary, got) = self.train(&output, Stop::default(), fault).unwrap();
            assert_eq!(summary.ending, Ending::Finished);
            assert_eq!(metrics(&output), metrics(&want), "stopped at {step}, {rollbacks}");
            assert_eq!(got, weights, "stopped at {step}, {rollbacks}");
        }
    }
}

/// Makes the discriminator's loss and its gradient infinite.
fn spoil(batch: &mut Batch) {
    batch.rtd_weight[0] = f32::INFINITY;
}

fn steps(lines: &[Value]) -> Vec<u64> {
    lines.iter().map(|line| line["step"].as_u64().unwrap()).collect()
}

#[test]
fn a_bad_step_is_skipped_and_counted() {
    let bench = Bench::new(8, 100);
    let output = bench.output("run");
    let before = RefCell::new(Vec::new());
    let fault = |step: u64, _: u64, model: &mut Model, batch: &mut Batch| {
        before.borrow_mut().push(model.flat_weights()?);
        if step == 4 {
            spoil(batch);
        }
        Ok(())
    };
    let (summary, weights) = bench.train(&output, Stop::default(), &fault).unwrap();
    assert_eq!((summary.skipped, summary.rollbacks, summary.position.step), (1, 0, 8));
    let before = before.borrow();
    assert_eq!(before[4], before[5], "the bad step changes nothing");
    assert_ne!(before[5], before[6], "the next does");
    assert!(weights.iter().all(|x| x.is_finite()));
    let lines = metrics(&output);
    assert_eq!(steps(&lines), [2, 4, 6, 8]);
    let skipped: Vec<_> = lines.iter().map(|line| line.get("skipped").and_then(Value::as_u64)).collect();
    assert_eq!(skipped, [None, None, Some(1), None]);
    assert!(lines.iter().all(|line| line["loss"].is_f64() && line["grad_norm"].is_f64()), "{lines:?}");
}

/// Steps 13 to 15 are bad in the first order of the data: back to step 10, whose rows are then others.
#[test]
fn bad_steps_in_a_row_are_undone_with_other_data() {
    let bench = Bench::new(20, 5);
    let seen = RefCell::new(Vec::new());
    let fault = |step: u64, rollbacks: u64, _: &mut Model, batch: &mut Batch| {
        seen.borrow_mut().push((step, rollbacks, batch.ids.clone()));
        if rollbacks == 0 && step >= 12 {
            spoil(batch);
        }
        Ok(())
    };
    let output = bench.output("run");
    let (summary, _) = bench.train(&output, Stop::default(), &fault).unwrap();
    assert_eq!((summary.skipped, summary.rollbacks, summary.position.step), (3, 1, 20));
    let lines = metrics(&output);
    assert_eq!(steps(&lines), [2, 4, 6, 8, 10, 10, 12, 14, 16, 18, 20]);
    let rollback = &lines[5]["rollback"];
    assert_eq!(rollback["from"], 15);
    assert!(rollback["reason"].as_str().unwrap().contains("discriminator's loss"), "{rollback}");
    assert!(lines[6..].iter().all(|line| line.get("skipped").is_none()));
    {
        let seen = seen.borrow();
        let ids = |step, rollbacks| &seen.iter().find(|s| (s.0, s.1) == (step, rollbacks)).unwrap().2;
        assert_ne!(ids(10, 0), ids(10, 1));
        assert_ne!(ids(11, 0), ids(11, 1));
    }
    bench.check_stops(&[(7, 0), (11, 0), (12, 0), (13, 0), (10, 1), (13, 1), (16, 1)], &fault);
}

#[test]
fn a_run_that_stays_bad_ends_with_a_diagnosis() {
    const NAME: &str = "discriminator.electra.encoder.layer.1.output.dense.weight";
    let refuse = |bench: &Bench, name: &str, fault: &Fault<'_, Cpu<f32>>, words: &[&str]| {
        let output = bench.output(name);
        let error = bench.train(&output, Stop::default(), fault).err().unwrap().to_string();
        words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is not in: {error}"));
        output
    };
    let bench = Bench::new(20, 5);
    let weights = |step: u64, _: u64, model: &mut Model, _: &mut Batch| {
        if step >= 12 {
            let mut flat = model.flat_weights()?;
            flat[model.table().get(NAME)?.offset + 5] = f32::NAN;
            model.load_flat_weights(&flat)?;
        }
        Ok(())
    };
    let output =
        refuse(&bench, "weights", &weights, &[NAME, "the weights", "twice", "learning-rate", "--resume"]);
    let kept = fs::read_dir(output.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name());
    assert_eq!(kept.collect::<Vec<_>>(), ["step-000000010.safetensors"], "the last good one stays");
    let losses = |step: u64, _: u64, _: &mut Model, batch: &mut Batch| {
        if step >= 2 {
            batch.masked_weight[0] = f32::INFINITY;
        }
        Ok(())
    };
    let words = [
        "steps in a row up to step 5",
        "the generator's loss is NaN",
        "generator.electra.embeddings",
        "No checkpoint",
        "starts again from the beginning",
    ];
    let output = bench.output("losses");
    let error = bench.train(&output, Stop::default(), &losses).err().unwrap().to_string();
    words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is not in: {error}"));
    assert!(!error.contains("last checkpoint") && !error.contains("last good"), "{error}");
}

#[test]
fn a_spike_is_marked_in_the_log() {
    let bench = Bench::new(90, 1000);
    let fault = |step: u64, _: u64, model: &mut Model, _: &mut Batch| {
        if step == 70 {
            let larger: Vec<f32> = model.flat_weights()?.iter().map(|x| 8.0 * x).collect();
            model.load_flat_weights(&larger)?;
        }
        Ok(())
    };
    let output = bench.output("run");
    bench.train(&output, Stop::default(), &fault).unwrap();
    let lines = metrics(&output);
    let spikes: Vec<_> = lines
        .iter()
        .filter_map(|line| Some((line["step"].as_u64()?, line.get("spike")?.as_f64()?)))
        .collect();
    assert_eq!(spikes[0].0, 72, "{spikes:?}");
    assert!(spikes[0].1 > 6.0, "{spikes:?}");
    bench.check_stops(&[(40, 0), (69, 0), (70, 0)], &fault);
}

/// The thread that writes is blocked by a pipe without a reader: training continues meanwhile, and then
/// gets the error.
#[test]
fn a_checkpoint_is_written_beside_the_training() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("checkpoints/step-000000003.safetensors");
    let log = || Some(fs::File::create(dir.path().join("log")).unwrap());
    let network = |name: &str| Checkpoint::load(&golden("checkpoints").join(name)).unwrap();
    let (g, d) = (network("generator"), network("discriminator_pre"));
    let mut model = TokenDetection::with_options(Cpu::<f32>::new(), g, d, Options::default()).unwrap();
    let optimizer = AdamW::new(&mut model, AdamWOptions::default()).unwrap();
    let mut snapshot = |step| {
        let state = TrainerState { position: Position { step, tokens: 9 }, ..TrainerState::default() };
        Snapshot::take(&mut model, &optimizer, state).unwrap()
    };
    let checkpoints = Checkpoints::new(dir.path(), 2);
    checkpoints.prepare().unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut saver = Saver::new(checkpoints.clone(), None);
    saver.start(snapshot(3), Moment::SavePoint, log()).unwrap();
    saver.poll().unwrap();
    assert_eq!(saver.saved(), None, "it is still under way");
    drop(fs::File::open(&pipe).unwrap());
    assert!(saver.wait().unwrap_err().to_string().contains("Broken pipe"));
    saver.poll().unwrap();
    assert_eq!(saver.saved(), None);
    fs::remove_file(&pipe).unwrap();

    let mut saver = Saver::new(checkpoints.clone(), Some(3));
    for step in 4..8 {
        saver.start(snapshot(step), Moment::SavePoint, log()).unwrap();
    }
    saver.wait().unwrap();
    assert_eq!((saver.saved(), checkpoints.list().unwrap().len()), (Some(7), 2));
    let newest = checkpoints.newest(&[Moment::SavePoint], |e| panic!("{e}")).unwrap().unwrap();
    assert_eq!(
        newest.state,
        TrainerState { position: Position { step: 7, tokens: 9 }, ..TrainerState::default() }
    );
}
