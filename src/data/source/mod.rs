//! Text sources, streamed: files, folders, globs, manifests and `datasets` folders of the formats that `ENDINGS` lists.
//!
//! A source is a sequence of paragraphs in documents. In a text file a paragraph is a line and a
//! blank line ends the document; a record of the other formats is a document whose chosen columns
//! are read as [`Reading`] says. Memory is bounded by the longest record. A further format is one
//! more arm of `Format` and a file next to this one.
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
pub use self::spool::{Spooled, given_name, moved_copy, spool};
use crate::{Error, Result};

/// A longer line or record is an error rather than an allocation without bound.
const MAX_RECORD_BYTES: u64 = 64 << 20;

/// Endings of readable files.
const ENDINGS: &str = ".txt, .md, .csv, .tsv, .jsonl, .json (each also with .gz, .zst, .bz2 or \
                       .xz), .parquet, .arrow, .feather";

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
    /// Arrow's IPC formats: streams, which `datasets` writes, and files, which are also called
    /// Feather.
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

/// How the columns of a record become paragraphs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// Every line of a column is a paragraph, without surrounding white space.
    #[default]
    Lines,
    /// A column is one paragraph, line ends and all, as txtai gives it to the tokenizer; two
    /// columns are a pair.
    Whole,
}

/// One paragraph of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paragraph<'a> {
    /// Its text. A line is without surrounding white space and never empty; one text of a pair may
    /// be.
    pub text: &'a str,
    /// Whether it opens a document.
    pub opens_document: bool,
    /// Whether it is one text of a pair: the first opens a document, the second follows it at once
    /// and ends it.
    pub pair: bool,
}

/// Files to be read in a fixed order.
#[derive(Clone, Debug)]
pub struct TextSource {
    files: Vec<PathBuf>,
    columns: Vec<String>,
    reading: Reading,
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
    /// Expands files, folders (recursively), globs and manifests, whose weights do not matter here.
    /// `columns` are the text columns of records. Of a dataset, which is a folder with splits, the
    /// split `train` is taken.
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
        let (reading, state) = (Reading::default(), Arc::default());
        Self { files, columns: columns.to_vec(), reading, notes, state }
    }

    /// The same files, read in another way.
    pub fn with_reading(self, reading: Reading) -> Self {
        Self { reading, ..self }
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

    /// What was left out of the paths, one line each: other splits, hidden files and so on.
    /// `verbose` names everything.
    pub fn left_out(&self, verbose: bool) -> Vec<String> {
        self.notes.iter().map(|note| note.line(verbose)).collect()
    }

    /// Files that were read, by this source or a clone, and had no text.
    pub fn without_text(&self) -> Vec<PathBuf> {
        let empty = self.state.without_text.lock().unwrap_or_else(PoisonError::into_inner);
        empty.iter().map(|file| given_name(file)).collect()
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
        Err(Error::file(given_name(&self.files[0]), problem))
    }

    /// The files, in the order they are read.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The text columns of records.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// How the columns of records become paragraphs.
    pub fn reading(&self) -> Reading {
        self.reading
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

    /// Every paragraph of one file. One without text is remembered, see
    /// [`TextSource::without_text`].
    pub fn read_file(&self, path: &Path, sink: &mut dyn FnMut(Paragraph<'_>) -> Result<()>) -> Result<()> {
        self.try_read_file(path, sink).map_err(spool::name_pipe)
    }

    fn try_read_file(&self, path: &Path, sink: &mut dyn FnMut(Paragraph<'_>) -> Result<()>) -> Result<()> {
        let Some((format, compression)) = format_of(path) else { return Err(paths::unknown_ending(path)) };
        let mut document = Document { pair: Pair::of(path, self), ..Document::new(sink, self.reading) };
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
    let (input, problem) = recognize::Checked::of_stream(input);
    let mut document = Document::new(sink, Reading::Lines);
    let read = text::read(Path::new(name), BufReader::new(input), &mut document);
    read.map_err(|error| problem.take().map_or(error, |problem| Error::file(name, problem)))
}

/// Turns lines into paragraphs that know whether they open a document.
struct Document<'a> {
    sink: &'a mut dyn FnMut(Paragraph<'_>) -> Result<()>,
    /// Whether a document has begun.
    open: bool,
    /// Whether any paragraph has a character that can be seen.
    visible: bool,
    reading: Reading,
    pair: Option<Pair<'a>>,
}

/// A record whose two columns are a pair.
struct Pair<'a> {
    path: &'a Path,
    columns: &'a [String],
    /// The column whose texts come now.
    column: usize,
    texts: [Option<String>; 2],
}

impl<'a> Pair<'a> {
    /// Where the columns of `source` are a pair.
    fn of(path: &'a Path, source: &'a TextSource) -> Option<Self> {
        let columns = &source.columns;
        let is_pair = source.reading == Reading::Whole && columns.len() == 2;
        is_pair.then(|| Self { path, columns, column: 0, texts: [None, None] })
    }

    fn add(&mut self, text: &str) -> Result<()> {
        let name = &self.columns[self.column];
        match self.texts[self.column].replace(text.to_owned()) {
            None => Ok(()),
            Some(_) => Err(Error::file(
                self.path,
                format!("`{name}` has several texts in one record; of a pair each column has one"),
            )),
        }
    }
}

impl<'a> Document<'a> {
    fn new(sink: &'a mut dyn FnMut(Paragraph<'_>) -> Result<()>, reading: Reading) -> Self {
        Self { sink, open: false, visible: false, reading, pair: None }
    }

    /// The texts that come next are of this column of the record.
    fn column(&mut self, number: usize) {
        if let Some(pair) = &mut self.pair {
            pair.column = number;
        }
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let text = line.trim();
        if text.is_empty() {
            self.open = false;
            return Ok(());
        }
        self.paragraph(text)
    }

    fn paragraph(&mut self, text: &str) -> Result<()> {
        (self.sink)(Paragraph { text, opens_document: !self.open, pair: false })?;
        self.open = true;
        self.visible = self.visible || text.chars().any(is_visible);
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<()> {
        match (&mut self.pair, self.reading) {
            (Some(pair), _) => pair.add(text),
            (None, Reading::Whole) if text.trim().is_empty() => Ok(()),
            (None, Reading::Whole) => self.paragraph(text),
            (None, Reading::Lines) => text.lines().try_for_each(|line| self.line(line)),
        }
    }

    /// The record ends here.
    fn close(&mut self) -> Result<()> {
        self.open = false;
        let Some(pair) = &mut self.pair else { return Ok(()) };
        // A missing text is an empty one, as the tokenizer would be given.
        let [first, second] = std::mem::take(&mut pair.texts).map(Option::unwrap_or_default);
        if first.trim().is_empty() && second.trim().is_empty() {
            return Ok(());
        }
        self.visible = self.visible || first.chars().chain(second.chars()).any(is_visible);
        (self.sink)(Paragraph { text: &first, opens_document: true, pair: true })?;
        (self.sink)(Paragraph { text: &second, opens_document: false, pair: true })
    }
}

/// Whether a character is neither white space nor one that is not drawn, such as NUL or a
/// zero-width space: a control character or one that Unicode calls "default ignorable".
fn is_visible(c: char) -> bool {
    !(c.is_whitespace()
        || c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fff8}' | '\u{e0000}'..='\u{e0fff}'))
}
