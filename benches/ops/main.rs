//! Every op, with the bytes it moves, its floating-point operations, and its share of what the machine can do.
//!
//! `cargo bench --bench ops -- [FILTER…]` runs the CPU backend at the sizes of `small` (N = 1,024 tokens), against bounds measured first: a large
//! matrix product, and a copy that does not fit the caches. On a GPU (`--device cuda`, or where one is found) it runs the sizes of `small`
//! and `base` at N = 16,384, every kernel timed by events after the L2 cache was flushed, against bounds measured by a large product and by
//! writing memory, and then a whole training step kernel by kernel. `--save` and `--compare`: see `common`.
#![allow(missing_docs)]

use std::process::ExitCode;

use clap::Parser;
use elektron::backend::cpu::in_pool;

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
}

fn main() -> ExitCode {
    let options: Options = arguments(|options: &Options| &options.common);
    match run(&options.common) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    if arguments.wants_cpu() {
        let mut session = Session::new("ops", "cpu", None, arguments);
        in_pool(|| cpu::run(&mut session)).map_err(|e| e.to_string())?;
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
