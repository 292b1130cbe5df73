//! `elektron completions` and `elektron man`: what shells and `man` know of the program, made from its own flags.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, confirm, print_bytes};
use crate::fsutil::create_dir;
use crate::{Error, Result};

#[derive(Args)]
#[command(after_help = "Examples:
  elektron completions bash > ~/.local/share/bash-completion/completions/elektron
  elektron completions zsh > ~/.zfunc/_elektron      # a folder of your $fpath
  elektron completions fish > ~/.config/fish/completions/elektron.fish")]
pub(super) struct Arguments {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Args)]
#[command(after_help = "Examples:
  elektron man | man -l -
  elektron man ~/.local/share/man/man1 && man elektron-pretrain")]
pub(super) struct ManArguments {
    /// Folder for the pages of all commands; without it the first page goes to standard output
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(a: &Arguments) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(a.shell, &mut Cli::command(), "elektron", &mut script);
    print_bytes(&script)
}

pub(super) fn run_man(a: &ManArguments) -> Result<()> {
    let Some(dir) = &a.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command())
            .render(&mut page)
            .map_err(Error::io("make", "the manual page"))?;
        return print_bytes(&page);
    };
    create_dir(dir)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(Error::io("write", dir))?;
    confirm(&format!("the pages are in {}", dir.display()));
    Ok(())
}
