//! Text sources, streamed: files, folders, globs, manifests and `datasets` folders of the formats that `ENDINGS` lists.
//!
//! A source is a sequence of paragraphs in documents. In a text file a paragraph is a line and a blank line ends the
//! document; a record of the other formats is a document whose chosen columns are read the same way. Memory is bounded
//! by the longest record. A further format is one more arm of `Format` and a file beside this one.
//!
//! ```text
//! paths → files → decompress → recognize → text │ table │ json ─┐
//!               → recognize → columnar (parquet, arrow) ────────┴→ paragraphs
//! ```

mod card;
mod columnar;
mod decompress;
mod json;
mod manifest;
mod non_finite;
mod notes;
mod paths;
mod recognize;
mod saved;
mod splits;
mod spool;
mod table;
mod text;
mod walk;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use self::decompress::Compression;
use self::notes::Note;
use self::paths::Expansion;
pub use self::spool::{Spooled, spool};
use crate::{Error, Result};

/// A longer line or record is an error rather than an allocation without bound.
const MAX_RECORD_BYTES: u64 = 64 << 20;

/// Endings of readable files.
const ENDINGS: &str = ".txt, .md, .csv, .tsv, .jsonl, .json (each also with .gz, .zst, .bz2 or .xz), .parquet, .arrow, .feather";

/// What a file holds once decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    /// With a header, fields separated by commas and quoted where need be.
    Csv,
    /// With a header, fields separated by tabs and never quoted.
    Tsv,
    JsonLines,
    /// One array of objects, or objects one after the other.
    Json,
    Parquet,
    /// Arrow's IPC formats: streams, which `datasets` writes, and files, which are also called Feather.
    Arrow,
}

fn format_of(path: &Path) -> Option<(Format, Compression)> {
    // Of a name that is not UTF-8 the ending still is.
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    let (stem, compression) = Compression::of(&name);
    let format = match stem.rsplit_once('.')?.1 {
        "txt" | "md" => Format::Text,
        "csv" => Format::Csv,
        "tsv" => Format::Tsv,
        "jsonl" => Format::JsonLines,
        "json" => Format::Json,
        // These compress within themselves.
        "parquet" if compression == Compression::None => Format::Parquet,
        "arrow" | "feather" if compression == Compression::None => Format::Arrow,
        _ => return None,
    };
    Some((format, compression))
}

/// One paragraph of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paragraph<'a> {
    /// Its text, without surrounding white space; never empty.
    pub text: &'a str,
    /// Whether it opens a document.
    pub opens_document: bool,
}

/// Files to be read in a fixed order.
#[derive(Clone, Debug)]
pub struct TextSource {
    files: Vec<PathBuf>,
    columns: Vec<String>,
    /// What was left out.
    notes: Vec<Note>,
    /// What reading shows, shared with clones.
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of files read so far.
    read: AtomicU64,
    /// Files that were read and had no text.
    without_text: Mutex<BTreeSet<PathBuf>>,
}

impl TextSource {
    /// Expands files, folders (recursively), globs and manifests, whose weights do not matter here. `columns` are the
    /// text columns of records. Of a dataset, which is a folder with splits, the split `train` is taken.
    pub fn new<P: AsRef<Path>>(paths: &[P], columns: &[String]) -> Result<Self> {
        Self::of_splits(paths, columns, &["train"])
    }

    /// As [`TextSource::new`], of a dataset the split `validation`, else `test`.
    pub fn held_out<P: AsRef<Path>>(paths: &[P], columns: &[String]) -> Result<Self> {
        Self::of_splits(paths, columns, &["validation", "test"])
    }

    fn of_splits<P: AsRef<Path>>(paths: &[P], columns: &[String], splits: &[&str]) -> Result<Self> {
        let mut found = Expansion::default();
        for path in paths {
            match manifest::read(path.as_ref())? {
                Some(entries) => entries.into_iter().try_for_each(|e| e.expand(splits, &mut found))?,
                None => paths::expand(Path::new(""), path.as_ref(), splits, &mut found)?,
            }
        }
        if found.files.is_empty() {
            return Err(Error::config(format!(
                "no text was given: name files, folders or globs of {ENDINGS}"
            )));
        }
        Ok(Self::of(found, columns))
    }

    fn of(found: Expansion, columns: &[String]) -> Self {
        let Expansion { files, notes } = found;
        Self { files, columns: columns.to_vec(), notes, state: Arc::default() }
    }

    /// Corpora with the weights that manifests among `paths` give them; all other paths together are one of weight 1.
    pub fn mixture<P: AsRef<Path>>(paths: &[P], columns: &[String]) -> Result<Vec<(Self, f64)>> {
        let (mut plain, mut weighted) = (Vec::new(), Vec::new());
        for path in paths {
            let Some(entries) = manifest::read(path.as_ref())? else {
                plain.push(path.as_ref());
                continue;
            };
            for entry in entries {
                let mut found = Expansion::default();
                entry.expand(&["train"], &mut found)?;
                weighted.push((Self::of(found, columns), entry.weight));
            }
        }
        if !plain.is_empty() || weighted.is_empty() {
            weighted.insert(0, (Self::new(&plain, columns)?, 1.0));
        }
        Ok(weighted)
    }

    /// What was left out of the paths, one line each: other splits, hidden files and so on. `verbose` names everything.
    pub fn left_out(&self, verbose: bool) -> Vec<String> {
        self.notes.iter().map(|note| note.line(verbose)).collect()
    }

    /// Files that were read, by this source or a clone, and had no text.
    pub fn without_text(&self) -> Vec<PathBuf> {
        self.state.without_text.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// A warning if files had no text.
    pub fn warning(&self) -> Option<String> {
        let empty = self.without_text();
        let (count, all) = (empty.len(), self.files.len());
        let names = notes::list(&empty, 3);
        (count > 0).then(|| format!("warning: {count} of {all} files have no text: {names}"))
    }

    /// An error if all files were read and none had text.
    pub fn check_text(&self) -> Result<()> {
        let empty = self.without_text();
        if empty.len() < self.files.iter().collect::<BTreeSet<_>>().len() {
            return Ok(());
        }
        let problem = match self.files.len() {
            1 => "there is no text in this file: fill it or leave it out".to_owned(),
            count => format!("there is no text in this file, nor in any other of {count} files: fill them"),
        };
        Err(Error::file(&self.files[0], problem))
    }

    /// The files, in the order they are read.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The text columns of records.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Bytes of files read so far, compressed where they are.
    pub fn bytes_read(&self) -> u64 {
        self.state.read.load(Ordering::Relaxed)
    }

    /// Every paragraph of every file; an error if there is none.
    pub fn for_each(&self, mut sink: impl FnMut(Paragraph<'_>) -> Result<()>) -> Result<()> {
        self.files.iter().try_for_each(|file| self.read_file(file, &mut sink))?;
        self.check_text()
    }

    /// Every paragraph of one file. One without text is remembered, see [`TextSource::without_text`].
    pub fn read_file(&self, path: &Path, sink: &mut dyn FnMut(Paragraph<'_>) -> Result<()>) -> Result<()> {
        let Some((format, compression)) = format_of(path) else { return Err(paths::unknown_ending(path)) };
        let mut document = Document { sink, open: false, visible: false };
        if let Some(head) = head(path)? {
            recognize::check_file(path, &head, format, compression)?;
            self.read_format(path, format, compression, &mut document)?;
        }
        if !document.visible {
            let mut empty = self.state.without_text.lock().unwrap_or_else(PoisonError::into_inner);
            empty.insert(path.to_path_buf());
        }
        Ok(())
    }

    fn read_format(
        &self,
        path: &Path,
        format: Format,
        compression: Compression,
        document: &mut Document<'_>,
    ) -> Result<()> {
        let columns = &self.columns;
        if matches!(format, Format::Parquet | Format::Arrow) {
            // These are mapped, not read.
            let bytes = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
            match format {
                Format::Parquet => columnar::read_parquet(path, columns, document)?,
                _ => columnar::read_arrow(path, columns, document)?,
            }
            self.state.read.fetch_add(bytes, Ordering::Relaxed);
            return Ok(());
        }
        let input = decompress::open(path, compression, &self.state)?;
        let checked = recognize::Checked::new(path, input, compression != Compression::None)?;
        let Some((input, problem)) = checked else { return Ok(()) };
        let input = BufReader::with_capacity(1 << 18, input);
        let read = match format {
            Format::Csv => table::read_csv(path, input, columns, document),
            Format::Tsv => table::read_tsv(path, input, columns, document),
            Format::JsonLines => json::read_lines(path, input, columns, document),
            Format::Json => json::read(path, input, columns, document),
            _ => text::read(path, input, document),
        };
        read.map_err(|error| problem.take().map_or(error, |problem| Error::file(path, problem)))
    }
}

/// The first bytes of a file; `None` if it is empty.
fn head(path: &Path) -> Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let file = File::open(path).map_err(Error::io("read", path))?;
    file.take(recognize::HEAD as u64).read_to_end(&mut head).map_err(Error::io("read", path))?;
    Ok((!head.is_empty()).then_some(head))
}

/// Every paragraph of a stream of plain text, such as standard input; `name` is for errors.
pub fn read_stream(
    name: &str,
    input: impl Read,
    sink: &mut dyn FnMut(Paragraph<'_>) -> Result<()>,
) -> Result<()> {
    let mut document = Document { sink, open: false, visible: false };
    text::read(Path::new(name), BufReader::new(input), &mut document)
}

/// Turns lines into paragraphs that know whether they open a document.
struct Document<'a> {
    sink: &'a mut dyn FnMut(Paragraph<'_>) -> Result<()>,
    /// Whether a document has begun.
    open: bool,
    /// Whether any paragraph has a character that can be seen.
    visible: bool,
}

impl Document<'_> {
    fn line(&mut self, line: &str) -> Result<()> {
        let text = line.trim();
        if text.is_empty() {
            self.open = false;
            return Ok(());
        }
        (self.sink)(Paragraph { text, opens_document: !self.open })?;
        self.open = true;
        self.visible = self.visible || text.chars().any(is_visible);
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<()> {
        text.lines().try_for_each(|line| self.line(line))
    }

    fn close(&mut self) {
        self.open = false;
    }
}

/// Whether a character is neither white space nor one that is not drawn, such as NUL or a zero-width space: a control
/// character or one that Unicode calls "default ignorable".
fn is_visible(c: char) -> bool {
    !(c.is_whitespace()
        || c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fff8}' | '\u{e0000}'..='\u{e0fff}'))
}
