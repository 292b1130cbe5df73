//! The `elektron` binary.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Usage errors end the process with code 2.
    match elektron::cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
