//! One optimizer step: forward and backward of both networks, clip, AdamW. Dropout on, as in training.
//!
//! `cargo bench --bench step -- [--steps N] [CASE or FILTER…]`, cases named `small-g256-t128-b8`: preset, generator's hidden size, T, B. A case that
//! is not among the usual ones may be named too. `--precision` is a CPU's; `--products`, `--no-overlap` and `--no-cuda-graph` as `elektron pretrain` has them. Tokens a second; with `--json` one line a case. On a GPU in bf16. The other options: see `common`.
#![allow(missing_docs)]

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use elektron::Result;
use elektron::backend::cpu::in_pool;
use elektron::backend::gpu::Products;
use elektron::backend::gpu::driver::cuda::{Cuda, CudaOptions};
use elektron::backend::{Backend, Cpu, Gpu};
use elektron::data::Batch;
use elektron::model::config::{Architecture, ElectraConfig, Preset};
use elektron::model::hf::Checkpoint;
use elektron::model::{Options as ModelOptions, Phase, Share, TokenDetection};
use elektron::rng::{Philox, Site};
use elektron::train::optim::{AdamW, AdamWOptions};
use half::bf16;

#[path = "common/mod.rs"]
mod common;

use common::record::Case as Measured;
use common::{Arguments, Session, arguments};

const VOCABULARY: usize = 30522;
const WARM_UP: usize = 2;
/// A GPU's steps are short.
const GPU_STEPS: usize = 5;
const ON_CPU: [&str; 3] = ["tiny-g64-t128-b16", "small-g64-t128-b8", "small-g256-t128-b8"];
const ON_GPU: [&str; 3] = ["small-g64-t128-b128", "small-g256-t128-b128", "base-g256-t512-b16"];

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    common: Arguments,
    /// Steps that are measured; on a GPU five times as many.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// What a CPU stores and multiplies.
    #[arg(long, default_value = "fp32", value_parser = ["fp32", "bf16"])]
    precision: String,
    /// Who multiplies on a GPU.
    #[arg(long, default_value = "auto", value_parser = ["auto", "library", "own"])]
    products: String,
    /// A GPU begins a kernel only when the one before has ended.
    #[arg(long)]
    no_overlap: bool,
    /// A GPU's kernels are launched one by one.
    #[arg(long)]
    no_cuda_graph: bool,
}

impl Options {
    fn gpu(&self) -> Result<Gpu<Cuda, bf16>> {
        let products = match self.products.as_str() {
            "library" => Products::Library,
            "own" => Products::Own,
            _ => Products::Auto,
        };
        let (graphs, overlap, cublaslt) = (!self.no_cuda_graph, !self.no_overlap, products != Products::Own);
        let options = CudaOptions { graphs, overlap, cublaslt, ..CudaOptions::default() };
        Ok(Gpu::new(Cuda::new(options)?).with_products(products))
    }
}

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
        special: None,
        ids,
    }
}

fn model<B: Backend>(backend: B, case: &Case) -> Result<TokenDetection<B>> {
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
        ModelOptions { share: Share::Word, ..ModelOptions::default() },
    )
}

/// Most memory this process has held, in MiB.
fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}

fn main() -> ExitCode {
    let options: Options = arguments(|options: &Options| &options.common);
    match both(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn both(options: &Options) -> std::result::Result<(), String> {
    let arguments = &options.common;
    if arguments.wants_cpu() {
        let name = if options.precision == "bf16" { "cpu-bf16" } else { "cpu" };
        let session = Session::new("step", name, None, arguments);
        let rounds = (options.steps, WARM_UP);
        let device = format!("cpu {}", options.precision);
        in_pool(|| match options.precision.as_str() {
            "bf16" => cases(session, arguments, &ON_CPU, rounds, &device, || Ok(Cpu::<bf16>::new())),
            _ => cases(session, arguments, &ON_CPU, rounds, &device, || Ok(Cpu::<f32>::new())),
        })?;
    }
    if arguments.wants_gpu() {
        let gpu = match Cuda::new(CudaOptions::default()) {
            Ok(gpu) => gpu.info().name.clone(),
            Err(e) => return arguments.without_gpu(&e),
        };
        let session = Session::new("step", "cuda", Some(gpu.clone()), arguments);
        let rounds = (GPU_STEPS * options.steps, GPU_STEPS * WARM_UP);
        cases(session, arguments, &ON_GPU, rounds, &format!("{gpu} bf16"), || options.gpu())?;
    }
    match arguments.device.as_str() {
        "simt" => Err("`simt` is no device of this bench; cpu and cuda are".to_owned()),
        _ => Ok(()),
    }
}

/// The usual cases that are asked for, and those that are named.
fn cases<B: Backend>(
    mut session: Session<'_>,
    arguments: &Arguments,
    usual: &[&str],
    rounds: (usize, usize),
    device: &str,
    backend: impl Fn() -> Result<B>,
) -> std::result::Result<(), String> {
    let named = arguments.filters.iter().map(String::as_str).filter(|name| parse(name).is_some());
    let mut names: Vec<&str> = usual.to_vec();
    named.for_each(|name| {
        if !names.contains(&name) {
            names.push(name)
        }
    });
    for name in names.into_iter().filter(|name| arguments.want(name)) {
        let case = parse(name).ok_or_else(|| format!("`{name}` is no case"))?;
        let times = backend().and_then(|backend| run(backend, &case, rounds));
        report(&mut session, name, &case, times.map_err(|e| format!("{name}: {e}"))?, device);
    }
    session.finish(false)
}

/// Seconds of each step.
fn run<B: Backend>(backend: B, case: &Case, (steps, warm_up): (usize, usize)) -> Result<Vec<f64>> {
    let (mut model, batch) = (model(backend, case)?, batch(case));
    let options = AdamWOptions { bias_correction: true, clip: None, ..AdamWOptions::default() };
    let mut optimizer = AdamW::new(&mut model, options)?;
    let mut times = Vec::new();
    // As in training: a device computes a step while the host stages the next batch and looks at the step before.
    let mut before = None;
    model.stage(&batch)?;
    for step in 0..warm_up + steps {
        let start = Instant::now();
        let phase = Phase::Train { step: step as u32, row0: 0, divisor: 1.0 };
        optimizer.step_staged(&mut model, phase, 5e-4)?;
        let norm = optimizer.fetch_norm(model.backend())?;
        model.stage(&batch)?;
        if let Some(norm) = before.replace(norm) {
            optimizer.collect_norm(model.backend(), norm)?;
        }
        if step >= warm_up {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(times)
}

fn report(session: &mut Session<'_>, name: &str, case: &Case, times: Vec<f64>, device: &str) {
    let tokens = (case.batch * case.seq_len) as f64;
    let seconds = Measured::new(name, "s", times);
    let rate = Measured {
        unit: "tok/s".to_owned(),
        median: tokens / seconds.median,
        least: tokens / seconds.most,
        most: tokens / seconds.least,
        ..seconds.clone()
    };
    let (Measured { median, least, most, rounds, .. }, rss) = (&seconds, peak_rss_mib());
    let threads = rayon::current_num_threads();
    if session.talks() {
        println!(
            "{name:<24} {:>9.0} tok/s, {median:.3} s a step ({least:.3} to {most:.3}), peak {rss} MiB, {threads} threads, {device}",
            rate.median
        );
    } else {
        println!(
            "{{\"case\":\"{name}\",\"tok_per_s\":{:.0},\"step_s\":{median:.4},\"min_s\":{least:.4},\"max_s\":{most:.4},\
             \"peak_rss_mib\":{rss},\"threads\":{threads},\"steps\":{rounds},\"device\":\"{device}\"}}",
            rate.median
        );
    }
    session.add(rate);
}
