//! The surroundings of a step: tokenizing against the `tokenizers` library alone, and tokens a second that one thread of
//! the loader delivers, for every way of making rows, of one corpus and of a mixture.
//! `cargo bench --bench data -- [--text FILE] [FILTER…]`, by default on sixteen copies of the book of the tests. The other options: see `common`.
#![allow(missing_docs)]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use elektron::data::loader::{Batching, LoaderSpec};
use elektron::data::mask::{MaskSpec, MaskStyle};
use elektron::data::pack::{Merge, Rows};
use elektron::data::prepare::{Spec, prepare};
use elektron::data::shard::Dataset;
use elektron::data::source::TextSource;
use elektron::data::split::{Part, split};
use elektron::data::tokenizer::Tokenizer;

const ROUNDS: usize = 5;
/// Batches of 64 rows of up to 128 tokens in a round.
const BATCHES: u64 = 50;

#[path = "common/mod.rs"]
mod common;

use common::record::Case;
use common::{Arguments, Session, arguments};

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    common: Arguments,
    /// Text to take instead of sixteen copies of the book of the tests; may be given more than once.
    #[arg(long, value_name = "FILE")]
    text: Vec<String>,
}

fn main() -> ExitCode {
    let options: Options = arguments(|options: &Options| &options.common);
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Adds and tells a case.
fn tell(session: &mut Session<'_>, name: &str, unit: &str, samples: Vec<f64>) {
    let case = Case::new(name, unit, samples);
    if session.talks() {
        println!("{name:<48} {:>9.2} {unit} ({:.2} to {:.2})", case.median, case.least, case.most);
    }
    session.add(case);
}

const TOKENIZING: [&str; 2] = ["tokenizing: the library alone", "tokenizing: text to shards"];
const SPLITTING: &str = "finding held-out documents";

fn run(options: Options) -> Result<(), String> {
    if !options.common.wants_cpu() {
        eprintln!(
            "tokenizing and loading are the processor's: nothing of them runs on {}",
            options.common.device
        );
        return Ok(());
    }
    let mut session = Session::new("data", "cpu", None, &options.common);
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    let copies = tempfile::Builder::new().suffix(".txt").tempfile().expect("a file");
    let mut files = options.text.clone();
    if files.is_empty() {
        let book = std::fs::read_to_string(format!("{root}/sherlock-holmes.txt")).expect("the book");
        std::fs::write(copies.path(), book.repeat(16)).expect("copies");
        files.push(copies.path().to_str().expect("a path").to_owned());
    }
    let tokenizer = Tokenizer::load(Path::new(&format!("{root}/wordpiece-8k.txt"))).expect("a vocabulary");
    let source = TextSource::new(&files, &["text".to_owned()]).expect("text");
    let timed = TOKENIZING.iter().any(|name| session.want(name));
    let (rates, dataset) = tokenizing(&source, &tokenizer, if timed { ROUNDS } else { 1 });
    for (name, rates) in TOKENIZING.into_iter().zip(rates) {
        if session.want(name) {
            tell(&mut session, name, "MB/s", rates);
        }
    }
    let dataset = Arc::new(dataset);
    let mut splitting = Vec::new();
    let mut parts = None;
    for _ in 0..if session.want(SPLITTING) { ROUNDS } else { 1 } {
        let start = Instant::now();
        parts = Some(split(&dataset, 0.01));
        splitting.push(dataset.tokens() as f64 / start.elapsed().as_secs_f64() / 1e6);
    }
    let (kept, held_out) = parts.expect("a round at least");
    if session.want(SPLITTING) {
        tell(&mut session, SPLITTING, "M tok/s", splitting);
    }
    let whole_part = Part::whole(dataset);
    let corpora = [
        ("one", vec![(whole_part.clone(), 1.0)]),
        ("split", vec![(kept.clone(), 1.0)]),
        ("mixed", vec![(kept, 0.7), (held_out, 2.5), (whole_part, 1.5)]),
    ];
    for (corpus, parts) in corpora {
        for merge in [Merge::Concat, Merge::Pack, Merge::None, Merge::Segments] {
            let name = format!("loader, one thread: {corpus}, {merge:?}").to_lowercase();
            if session.want(&name) {
                let rows = Rows::mixed(parts.clone(), tokenizer.special(), merge, 128, 1).expect("rows");
                tell(&mut session, &name, "M tok/s", loader(&rows, &tokenizer));
            }
        }
    }
    session.finish(true)
}

/// MB a second of the library alone and of all that `prepare` does, in each round.
fn tokenizing(source: &TextSource, tokenizer: &Tokenizer, rounds: usize) -> ([Vec<f64>; 2], Dataset) {
    let mut lines = Vec::new();
    source
        .for_each(|p| {
            lines.push(p.text.to_owned());
            Ok(())
        })
        .expect("text");
    let megabytes = lines.iter().map(|line| line.len() + 1).sum::<usize>() as f64 / 1e6;
    let (mut alone, mut whole, mut dataset) = (Vec::new(), Vec::new(), None);
    for _ in 0..rounds {
        let start = Instant::now();
        let encoded = tokenizer.inner().encode_batch_fast(lines.clone(), false).expect("tokens");
        alone.push(megabytes / start.elapsed().as_secs_f64());
        drop(encoded);
        let dir = tempfile::tempdir().expect("a directory");
        let start = Instant::now();
        dataset = Some(prepare(source, tokenizer, dir.path(), &Spec::default(), |_| {}).expect("shards"));
        whole.push(megabytes / start.elapsed().as_secs_f64());
    }
    ([alone, whole], dataset.expect("shards"))
}

/// Millions of tokens a second, masked and put into batches, in each round.
fn loader(rows: &Rows, tokenizer: &Tokenizer) -> Vec<f64> {
    let mask = MaskSpec {
        style: MaskStyle::Electra,
        probability: 0.15,
        vocab_size: tokenizer.vocab_size(),
        special: tokenizer.special(),
        seq_len: 128,
    };
    let spec = LoaderSpec {
        batch_size: 64,
        micro_batches: 1,
        batching: Batching::Continuous,
        seed: 1,
        mask,
        on_device: false,
    };
    let round = |round: u64| {
        let start = Instant::now();
        let steps = round * BATCHES..(round + 1) * BATCHES;
        let tokens: usize = steps.map(|step| spec.training_batch(rows, step, 0).tokens()).sum();
        tokens as f64 / start.elapsed().as_secs_f64() / 1e6
    };
    (0..ROUNDS as u64).map(round).collect()
}
