//! `elektron report`: runs as a page, a drawing or a picture.

use std::path::{Path, PathBuf};

use clap::Args;

use super::confirm;
use crate::fsutil::{check_apart, check_output, is_stdout, write_atomic};
use crate::report::{self, Axis, Look, Run};
use crate::train::log::METRICS;
use crate::{Error, Result};

#[derive(Args)]
#[command(after_help = "Examples:
  elektron report out/run                                    # report.html: open it in a browser, send it to a friend
  elektron report out/run out/other --x tokens               # beside each other, and what they were set to
  elektron report out/sweep/* --output sweep.html --title \"Learning rates\"
  elektron report out/run --png curves.png --svg curves.svg  # for slides and papers")]
pub(super) struct Arguments {
    /// Directories of runs, or metrics files
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// HTML page to write; nothing else is needed to look at it [default: report.html, unless --svg or --png is given]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    /// All panels as one drawing
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    svg: Option<PathBuf>,
    /// All panels as one picture
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    png: Option<PathBuf>,
    /// What the runs are laid beside each other by
    #[arg(long, value_enum, default_value = "step", value_name = "AXIS", help_heading = "Look")]
    x: Axis,
    /// Lines of the log in a smoothed value; 1 for none [default: a fortieth of the run]
    #[arg(long, value_name = "LINES", help_heading = "Look")]
    smooth: Option<usize>,
    /// Headline
    #[arg(long, value_name = "TEXT", help_heading = "Look")]
    title: Option<String>,
}

pub(super) fn run(a: &Arguments) -> Result<()> {
    let runs = Run::load_all(&a.runs)?;
    for run in runs.iter().filter(|run| run.damaged > 0) {
        crate::note!(
            "warning: {} lines of {} cannot be read and are left out",
            run.damaged,
            run.path.display()
        );
    }
    let look = Look { axis: a.x, window: a.smooth, title: a.title.clone() };
    let page = match (&a.output, &a.svg, &a.png) {
        (None, None, None) => Some(PathBuf::from("report.html")),
        (output, ..) => output.clone(),
    };
    let outputs: Vec<&PathBuf> = [&page, &a.svg, &a.png].into_iter().flatten().collect();
    outputs.iter().try_for_each(|path| check_output(path))?;
    let logs: Vec<PathBuf> = runs.iter().flat_map(|run| [run.path.clone(), run.path.join(METRICS)]).collect();
    for (number, path) in outputs.iter().enumerate() {
        let others = outputs[..number].iter().map(|path| path.as_path());
        check_apart(path, logs.iter().map(PathBuf::as_path).chain(others))?;
    }
    let mut written = Vec::new();
    if let Some(path) = &page {
        written.push(write(path, report::html(&runs, &look).as_bytes())?);
    }
    if let Some(path) = &a.svg {
        written.push(write(path, report::svg(&runs, &look).as_bytes())?);
    }
    if let Some(path) = &a.png {
        written.push(write(path, &report::png(&runs, &look)?)?);
    }
    let said = format!("written: {}", written.join(", "));
    match outputs.iter().any(|path| is_stdout(path)) {
        // It would become part of the page or the picture.
        true => crate::note!("{said}"),
        false => confirm(&said),
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<String> {
    match write_atomic(path, |out| out.write_all(bytes)) {
        // The reader of this output needs no more of it; other outputs are still written.
        Ok(()) | Err(Error::OutputClosed) => Ok(path.display().to_string()),
        Err(error) => Err(error),
    }
}
