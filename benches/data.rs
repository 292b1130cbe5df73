//! The surroundings of a step: tokenizing against the `tokenizers` library alone, and tokens a second that one thread of
//! the loader delivers, for every way of making rows, of one corpus and of a mixture.
//! `cargo bench --bench data -- [--json] [FILE…]`, by default on sixteen copies of the book of the tests.
#![allow(missing_docs)]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use elektron::data::loader::LoaderSpec;
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

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let json = arguments.iter().any(|a| a == "--json");
    let mut files: Vec<String> = arguments.into_iter().filter(|a| a != "--json").collect();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    let copies = tempfile::Builder::new().suffix(".txt").tempfile().expect("a file");
    if files.is_empty() {
        let book = std::fs::read_to_string(format!("{root}/sherlock-holmes.txt")).expect("the book");
        std::fs::write(copies.path(), book.repeat(16)).expect("copies");
        files.push(copies.path().to_str().expect("a path").to_owned());
    }
    let tokenizer = Tokenizer::load(Path::new(&format!("{root}/wordpiece-8k.txt"))).expect("a vocabulary");
    let source = TextSource::new(&files, &["text".to_owned()]).expect("text");
    let (alone, whole, dataset) = tokenizing(&source, &tokenizer);
    let dataset = Arc::new(dataset);
    let start = Instant::now();
    let (kept, held_out) = split(&dataset, 0.01);
    let splitting = dataset.tokens() as f64 / start.elapsed().as_secs_f64();
    let whole_part = Part::whole(dataset);
    let corpora = [
        ("one", vec![(whole_part.clone(), 1.0)]),
        ("split", vec![(kept.clone(), 1.0)]),
        ("mixed", vec![(kept, 0.7), (held_out, 2.5), (whole_part, 1.5)]),
    ];
    let mut loading = Vec::new();
    for (name, parts) in corpora {
        for merge in [Merge::Concat, Merge::Pack, Merge::None, Merge::Segments] {
            let rows = Rows::mixed(parts.clone(), tokenizer.special(), merge, 128, 1).expect("rows");
            loading.push((format!("{name}, {merge:?}").to_lowercase(), loader(&rows, &tokenizer)));
        }
    }
    if json {
        let loading: serde_json::Map<String, serde_json::Value> =
            loading.into_iter().map(|(name, rate)| (name, rate.round().into())).collect();
        let all = serde_json::json!({ "library_mb_per_s": alone, "prepare_mb_per_s": whole,
            "split_tok_per_s": splitting, "loader_tok_per_s": loading });
        println!("{all}");
        return;
    }
    println!("tokenizing: the library alone {alone:.2} MB/s, text to shards {whole:.2} MB/s");
    println!("finding held-out documents: {:.1} M tok/s", splitting / 1e6);
    for (name, rate) in loading {
        println!("loader, one thread: {name:<16} {:>7.2} M tok/s", rate / 1e6);
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// MB a second of the library alone and of all that `prepare` does.
fn tokenizing(source: &TextSource, tokenizer: &Tokenizer) -> (f64, f64, Dataset) {
    let mut lines = Vec::new();
    source
        .for_each(|p| {
            lines.push(p.text.to_owned());
            Ok(())
        })
        .expect("text");
    let megabytes = lines.iter().map(|line| line.len() + 1).sum::<usize>() as f64 / 1e6;
    let (mut alone, mut whole, mut dataset) = (Vec::new(), Vec::new(), None);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let encoded = tokenizer.inner().encode_batch_fast(lines.clone(), false).expect("tokens");
        alone.push(megabytes / start.elapsed().as_secs_f64());
        drop(encoded);
        let dir = tempfile::tempdir().expect("a directory");
        let start = Instant::now();
        dataset = Some(prepare(source, tokenizer, dir.path(), &Spec::default(), |_| {}).expect("shards"));
        whole.push(megabytes / start.elapsed().as_secs_f64());
    }
    (median(alone), median(whole), dataset.expect("shards"))
}

/// Tokens a second, masked and put into batches.
fn loader(rows: &Rows, tokenizer: &Tokenizer) -> f64 {
    let mask = MaskSpec {
        style: MaskStyle::Electra,
        probability: 0.15,
        vocab_size: tokenizer.vocab_size(),
        special: tokenizer.special(),
        seq_len: 128,
    };
    let spec = LoaderSpec { batch_size: 64, micro_batches: 1, seed: 1, mask, on_device: false };
    let round = |round: u64| {
        let start = Instant::now();
        let steps = round * BATCHES..(round + 1) * BATCHES;
        let tokens: usize = steps.map(|step| spec.training_batch(rows, step, 0).tokens()).sum();
        tokens as f64 / start.elapsed().as_secs_f64()
    };
    median((0..ROUNDS as u64).map(round).collect())
}
