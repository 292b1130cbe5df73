//! The `elektron` binary.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::Parser;
use elektron::cli::{Cli, Outcome};
use elektron::train::signals::INTERRUPTED;

fn main() -> ExitCode {
    // Usage errors end the process with code 2.
    match Cli::parse().run() {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            elektron::note!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
