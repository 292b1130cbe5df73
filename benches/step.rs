//! One optimizer step: forward and backward of both networks, clip, AdamW. Dropout on, as in training.
//!
//! `cargo bench --bench step -- [--json] [--threads N] [--steps N] [--device cpu|cuda] CASE…`, cases named
//! `small-g256-t128-b8`: preset, generator's hidden size, T, B. Prints medians; with `--json` one line a case. On a GPU in bf16.
#![allow(missing_docs)]

use std::time::Instant;

use elektron::backend::gpu::driver::cuda::{Cuda, CudaOptions};
use elektron::backend::{Backend, Cpu, Gpu};
use elektron::data::Batch;
use elektron::model::config::{Architecture, ElectraConfig, Preset};
use elektron::model::hf::Checkpoint;
use elektron::model::{Options, Phase, Share, TokenDetection};
use elektron::rng::{Philox, Site};
use elektron::train::optim::{AdamW, AdamWOptions};

const VOCABULARY: usize = 30522;
const WARM_UP: usize = 2;

struct Case {
    preset: Preset,
    generator: usize,
    seq_len: usize,
    batch: usize,
}

fn parse(name: &str) -> Option<Case> {
    let mut parts = name.split('-');
    let preset = Preset::from_name(parts.next()?)?;
    let mut number = |letter: char| parts.next()?.strip_prefix(letter)?.parse().ok();
    Some(Case { preset, generator: number('g')?, seq_len: number('t')?, batch: number('b')? })
}

/// Random tokens, round(0.15 · T) of each row masked.
fn batch(case: &Case) -> Batch {
    let (t, philox) = (case.seq_len, Philox::new(1));
    let n = t * case.batch;
    let ids: Vec<u32> = (0..n as u32)
        .map(|i| match i as usize % t {
            0 => 101,
            last if last == t - 1 => 102,
            _ => 1000 + philox.word(i, 0, Site(0), 0) % (VOCABULARY as u32 - 1000),
        })
        .collect();
    let per_row = (0.15 * t as f64).round() as usize;
    let masked_index: Vec<u32> = (0..case.batch)
        .flat_map(|row| (0..per_row).map(move |i| (row * t + 1 + i * (t - 2) / per_row) as u32))
        .collect();
    let mut masked_ids = ids.clone();
    masked_index.iter().for_each(|&i| masked_ids[i as usize] = 103);
    Batch {
        masked_ids,
        positions: (0..n).map(|i| (i % t) as u32).collect(),
        types: vec![0; n],
        cu_seqlens: (0..=case.batch).map(|row| (row * t) as u32).collect(),
        key_len: vec![t as u32; case.batch],
        masked_weight: vec![1.0; masked_index.len()],
        masked_index,
        rtd_weight: vec![1.0; n],
        masking: None,
        ids,
    }
}

fn model<B: Backend>(backend: B, case: &Case) -> TokenDetection<B> {
    let generator = ElectraConfig {
        hidden_size: case.generator,
        num_attention_heads: (case.generator / 64).max(1),
        intermediate_size: 4 * case.generator,
        ..case.preset.discriminator(VOCABULARY)
    };
    let discriminator = case.preset.discriminator(VOCABULARY);
    TokenDetection::with_options(
        backend,
        Checkpoint::fresh(generator, Architecture::MaskedLm),
        Checkpoint::fresh(discriminator, Architecture::PreTraining),
        Options { share: Share::Word, ..Options::default() },
    )
    .expect("the model fits")
}

/// Most memory this process has held, in MiB.
fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}

fn main() {
    let (mut json, mut steps, mut names) = (false, 10, Vec::new());
    let (mut threads, mut device) = (0, "cpu".to_owned());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--device" {
            device = arguments.next().expect("cpu or cuda");
            continue;
        }
        let mut number = || arguments.next().and_then(|n| n.parse().ok()).expect("a number");
        match argument.as_str() {
            "--json" => json = true,
            "--bench" => {}
            "--steps" => steps = number(),
            "--threads" => threads = number(),
            name => names.push(name.to_owned()),
        }
    }
    if names.is_empty() {
        names = ["tiny-g64-t128-b16", "small-g64-t128-b8", "small-g256-t128-b8"].map(str::to_owned).to_vec();
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("a thread pool");
    for name in names {
        let case = parse(&name).unwrap_or_else(|| panic!("`{name}` is no case; small-g256-t128-b8 is one"));
        match device.as_str() {
            "cpu" => run(Cpu::<f32>::new(), &name, &case, (steps, WARM_UP), json, "cpu fp32"),
            "cuda" => {
                let gpu = Cuda::new(CudaOptions::default()).expect("a GPU");
                let words = format!("{} bf16", gpu.info().name);
                run(Gpu::<_, half::bf16>::new(gpu), &name, &case, (5 * steps, 5 * WARM_UP), json, &words);
            }
            other => panic!("`{other}` is no device; cpu and cuda are"),
        }
    }
}

fn run<B: Backend>(
    backend: B,
    name: &str,
    case: &Case,
    (steps, warm_up): (usize, usize),
    json: bool,
    device: &str,
) {
    let (mut model, batch) = (model(backend, case), batch(case));
    let options = AdamWOptions { bias_correction: true, clip: None, ..AdamWOptions::default() };
    let mut optimizer = AdamW::new(&mut model, options).expect("an optimizer");
    let mut times = Vec::new();
    // As in training: a device computes a step while the host stages the next batch and looks at the step before.
    let mut before = None;
    model.stage(&batch).expect("a batch in its place");
    for step in 0..warm_up + steps {
        let start = Instant::now();
        let phase = Phase::Train { step: step as u32, row0: 0, micro_batches: 1 };
        optimizer.step_staged(&mut model, phase, 5e-4).expect("a step");
        let norm = optimizer.fetch_norm(model.backend()).expect("its gradient norm, on its way");
        model.stage(&batch).expect("a batch in its place");
        if let Some(norm) = before.replace(norm) {
            optimizer.collect_norm(model.backend(), norm).expect("the norm of the step before");
        }
        if step >= warm_up {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let rate = |seconds: f64| batch.tokens() as f64 / seconds;
    let (lowest, highest) = (times[0], times[times.len() - 1]);
    let (rss, threads) = (peak_rss_mib(), rayon::current_num_threads());
    if json {
        println!(
            "{{\"case\":\"{name}\",\"tok_per_s\":{:.0},\"step_s\":{median:.4},\"min_s\":{lowest:.4},\"max_s\":{highest:.4},\
             \"peak_rss_mib\":{rss},\"threads\":{threads},\"steps\":{steps},\"device\":\"{device}\"}}",
            rate(median)
        );
    } else {
        println!(
            "{name}: {:.0} tok/s, {median:.3} s a step ({lowest:.3} to {highest:.3}), peak {rss} MiB, {threads} threads, {device}",
            rate(median)
        );
    }
}
