//! The surroundings of a step: tokenizing against the `tokenizers` library alone, and tokens a second that the loader
//! delivers. `cargo bench --bench data -- [--json] [FILE…]`, by default on sixteen copies of the book of the tests.
#![allow(missing_docs)]

use std::time::Instant;

use elektron::data::loader::LoaderSpec;
use elektron::data::mask::{MaskSpec, MaskStyle};
use elektron::data::pack::{Merge, Rows};
use elektron::data::prepare::{Spec, prepare};
use elektron::data::source::TextSource;
use elektron::data::tokenizer::Tokenizer;

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
    let tokenizer =
        Tokenizer::load(std::path::Path::new(&format!("{root}/wordpiece-8k.txt"))).expect("a vocabulary");
    let source = TextSource::new(&files, &["text".to_owned()]).expect("text");
    let mut lines = Vec::new();
    source
        .for_each(|p| {
            lines.push(p.text.to_owned());
            Ok(())
        })
        .expect("text");
    let megabytes = lines.iter().map(|line| line.len() + 1).sum::<usize>() as f64 / 1e6;
    let (mut alone, mut whole) = (Vec::new(), Vec::new());
    let mut dataset = None;
    for _ in 0..5 {
        let start = Instant::now();
        let encoded = tokenizer.inner().encode_batch_fast(lines.clone(), false).expect("tokens");
        alone.push(megabytes / start.elapsed().as_secs_f64());
        drop(encoded);
        let dir = tempfile::tempdir().expect("a directory");
        let start = Instant::now();
        dataset = Some(prepare(&source, &tokenizer, dir.path(), &Spec::default(), |_| {}).expect("shards"));
        whole.push(megabytes / start.elapsed().as_secs_f64());
    }
    let rows = Rows::new(dataset.expect("shards"), tokenizer.special(), Merge::Concat, 128, 1).expect("rows");
    let mask = MaskSpec {
        style: MaskStyle::Electra,
        probability: 0.15,
        vocab_size: tokenizer.vocab_size(),
        special: tokenizer.special(),
        seq_len: 128,
    };
    let spec = LoaderSpec { batch_size: 64, micro_batches: 1, seed: 1, mask, on_device: false };
    let mut loader = Vec::new();
    for round in 0..5 {
        let start = Instant::now();
        let tokens: usize =
            (0..50).map(|step| spec.training_batch(&rows, round * 50 + step, 0).tokens()).sum();
        loader.push(tokens as f64 / start.elapsed().as_secs_f64());
    }
    let median = |x: &mut Vec<f64>| {
        x.sort_by(f64::total_cmp);
        x[x.len() / 2]
    };
    let (alone, whole, loader) = (median(&mut alone), median(&mut whole), median(&mut loader));
    if json {
        println!(
            "{{\"library_mb_per_s\":{alone:.2},\"prepare_mb_per_s\":{whole:.2},\"loader_tok_per_s\":{loader:.0}}}"
        );
    } else {
        println!("tokenizing: the library alone {alone:.2} MB/s, text to shards {whole:.2} MB/s");
        println!("loader, one thread: {:.2} M tok/s", loader / 1e6);
    }
}
