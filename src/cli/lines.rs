//! The lines of text that `detect` and `fill` look at: of arguments, of files, of standard input.

use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

use clap::Args;
use tempfile::TempDir;

use super::{report_left_out, warn_without_text};
use crate::data::source::{Paragraph, TextSource, read_stream, spool};
use crate::{Error, Result};

/// Lines run through a model at once.
pub(super) const LINES_AT_ONCE: usize = 16;

/// Where the lines come from.
#[derive(Args)]
pub(super) struct Texts {
    /// Text; without it and --input, standard input is read
    text: Vec<String>,
    /// Files, folders and globs, as for `pretrain --train`, a line at a time; - for standard input
    #[arg(long, num_args = 1.., value_name = "PATH")]
    input: Vec<PathBuf>,
    /// Text columns of csv, tsv, JSON, Parquet and Arrow files
    #[arg(long, value_delimiter = ',', default_value = "text", value_name = "NAME")]
    columns: Vec<String>,
}

/// What is done with the lines.
pub(super) trait Reader {
    /// Takes a line that is not blank. Its result may wait for those of further lines.
    fn line(&mut self, line: &str) -> Result<()>;

    /// Shows the results of all lines so far.
    fn show(&mut self) -> Result<()>;
}

/// Texts whose files were found.
pub(super) struct Lines<'a> {
    texts: &'a Texts,
    files: Option<TextSource>,
    is_stream_read: bool,
    /// Holds what pipes gave.
    _scratch: TempDir,
}

impl Texts {
    /// Finds the files.
    pub(super) fn open(&self) -> Result<Lines<'_>> {
        let (streams, mut files): (Vec<PathBuf>, Vec<PathBuf>) =
            self.input.iter().cloned().partition(|path| path == Path::new("-"));
        let scratch =
            tempfile::tempdir().map_err(Error::io("create a directory in", std::env::temp_dir()))?;
        for pipe in spool(&mut files, scratch.path(), false)? {
            pipe.copy()?;
        }
        let files = if files.is_empty() { None } else { Some(TextSource::held_out(&files, &self.columns)?) };
        if let Some(files) = &files {
            report_left_out(files, false);
        }
        let is_stream_read = !streams.is_empty() || (self.text.is_empty() && self.input.is_empty());
        Ok(Lines { texts: self, files, is_stream_read, _scratch: scratch })
    }
}

impl Lines<'_> {
    /// Has all of them read. An error if there is none.
    pub(super) fn read(&self, reader: &mut impl Reader) -> Result<()> {
        let mut count = 0_u64;
        let mut take = |reader: &mut _, line: &str| {
            if line.trim().is_empty() {
                return Ok(());
            }
            count += 1;
            Reader::line(reader, line)
        };
        for text in &self.texts.text {
            text.lines().try_for_each(|line| take(reader, line))?;
        }
        if let Some(files) = &self.files {
            files.for_each(|paragraph| take(reader, paragraph.text))?;
            warn_without_text(files);
        }
        if self.is_stream_read {
            standard_input(reader, &mut take)?;
        }
        reader.show()?;
        match count {
            0 => Err(Error::config(
                "there is no text: give it as an argument, with --input, or on standard input",
            )),
            _ => Ok(()),
        }
    }
}

/// Reads in a thread of its own, so that the lines read so far are shown while the thread waits for
/// more.
fn standard_input<R: Reader>(
    reader: &mut R,
    take: &mut impl FnMut(&mut R, &str) -> Result<()>,
) -> Result<()> {
    let (to_us, lines) = sync_channel::<String>(LINES_AT_ONCE);
    let thread = std::thread::spawn(move || {
        let mut send = |p: Paragraph<'_>| to_us.send(p.text.to_owned()).map_err(|_| Error::OutputClosed);
        read_stream("standard input", std::io::stdin().lock(), &mut send)
    });
    while let Ok(line) = lines.recv() {
        take(reader, &line)?;
        while let Ok(line) = lines.try_recv() {
            take(reader, &line)?;
        }
        reader.show()?;
    }
    thread.join().map_err(|_| Error::run("the thread that reads standard input failed"))?
}
