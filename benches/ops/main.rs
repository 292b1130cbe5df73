//! Every op, with the bytes it moves, its floating-point operations, and its share of what the machine can do.
//!
//! `cargo bench --bench ops -- [FILTER…]` runs the CPU backend (`--precision fp32|bf16`) at the sizes of `small` (N = 1,024 tokens), against bounds measured first: a large
//! matrix product, and a copy that does not fit the caches. On a GPU (`--device cuda`, or where one is found) it runs the sizes of `small`
//! and `base` at N = 16,384, every kernel timed by events after the L2 cache was flushed, against bounds measured by a large product and by
//! writing memory, and then a whole training step kernel by kernel. `--save` and `--compare`: see `common`.
#![allow(missing_docs)]

use std::process::ExitCode;

use clap::Parser;
use elektron::backend::cpu::in_pool;
use half::bf16;

mod cases;
#[path = "../common/mod.rs"]
mod common;
mod cpu;
mod gpu;
mod heads;
mod linear;
mod step;

use common::{Arguments, Session, arguments};

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    common: Arguments,
    /// What a CPU stores and multiplies.
    #[arg(long, default_value = "fp32", value_parser = ["fp32", "bf16"])]
    precision: String,
}

fn main() -> ExitCode {
    let options: Options = arguments(|options: &Options| &options.common);
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let arguments = &options.common;
    if arguments.wants_cpu() {
        let half = options.precision == "bf16";
        let mut session = Session::new("ops", if half { "cpu-bf16" } else { "cpu" }, None, arguments);
        let cases = if half { cpu::run::<bf16> } else { cpu::run::<f32> };
        in_pool(|| cases(&mut session)).map_err(|e| e.to_string())?;
        session.finish(true)?;
    }
    if arguments.wants_gpu() {
        gpu::cuda(arguments)?;
    }
    if arguments.device == "simt" {
        gpu::simt(arguments)?;
    }
    Ok(())
}
