//! The `elektron` binary.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use elektron::cli::{Cli, Outcome};
use elektron::train::signals::{INTERRUPTED, survive_file_size_limit};

fn main() -> ExitCode {
    survive_file_size_limit();
    let cli = match Cli::from_arguments(std::env::args_os()) {
        Ok(cli) => cli,
        Err(said) => return help_or_usage(&said),
    };
    match cli.run() {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            elektron::note!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints help or the version (code 0), or an error of usage (code 2).
fn help_or_usage(said: &clap::Error) -> ExitCode {
    let printed = said.print().and_then(|()| std::io::stdout().flush());
    match printed {
        Err(e) if said.exit_code() == 0 && e.kind() != ErrorKind::BrokenPipe => {
            elektron::note!("error: cannot write standard output: {e}");
            ExitCode::FAILURE
        }
        _ => ExitCode::from(u8::try_from(said.exit_code()).unwrap_or(2)),
    }
}
