//! Text sources, streamed: files, folders, globs, manifests and `datasets` folders of the formats that `ENDINGS` lists.
//!
//! A source is a sequence of paragraphs in documents. In a text file a paragraph is a line and a blank line ends the
//! document; a record of the other formats is a document whose chosen columns are read as [`Reading`] says. Memory is
//! bounded by the longest record. A further format is one more arm of `Format` and a file beside this one.
//!
//! ```text
//! paths → files → decompress → text │ table │ json ─┐
//!               → columnar (parquet, arrow) ────────┴→ paragraphs
//! ```

mod columnar;
mod decompress;
mod json;
mod paths;
mod table;
mod text;

use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};
use decompress::Compression;

/// A longer line or record is an error rather than an allocation without bound.
const MAX_RECORD_BYTES: u64 = 64 << 20;

/// Endings of readable files.
const ENDINGS: &str =
    ".txt, .md, .csv, .tsv, .jsonl, .json (each also with .gz, .zst, .bz2 or .xz), .parquet, .arrow";

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
    /// Arrow's IPC stream format, which `datasets` writes.
    Arrow,
}

fn format_of(path: &Path) -> Option<(Format, Compression)> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let (stem, compression) = Compression::of(&name);
    let format = match stem.rsplit_once('.')?.1 {
        "txt" | "md" => Format::Text,
        "csv" => Format::Csv,
        "tsv" => Format::Tsv,
        "jsonl" => Format::JsonLines,
        "json" => Format::Json,
        // These compress within themselves.
        "parquet" if compression == Compression::None => Format::Parquet,
        "arrow" if compression == Compression::None => Format::Arrow,
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
    /// A column is one paragraph, line ends and all, as txtai gives it to the tokenizer; two columns are a pair.
    Whole,
}

/// One paragraph of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paragraph<'a> {
    /// Its text. A line is without surrounding white space and never empty; one text of a pair may be.
    pub text: &'a str,
    /// Whether it opens a document.
    pub opens_document: bool,
    /// Whether it is one text of a pair: the first opens a document, the second follows it at once and ends it.
    pub pair: bool,
}

/// Files to be read in a fixed order.
#[derive(Clone, Debug)]
pub struct TextSource {
    files: Vec<PathBuf>,
    columns: Vec<String>,
    reading: Reading,
    /// Bytes of files read so far, by this source and its clones.
    read: Arc<AtomicU64>,
}

impl TextSource {
    /// Expands files, folders (recursively), globs and manifests, whose weights do not matter here. `columns` are the
    /// text columns of records. Of a `DatasetDict` the split `train` is taken.
    pub fn new<S: AsRef<str>>(paths: &[S], columns: &[String]) -> Result<Self> {
        Self::of_splits(paths, columns, &["train"])
    }

    /// As [`TextSource::new`], of a `DatasetDict` the split `validation`, else `test`.
    pub fn held_out<S: AsRef<str>>(paths: &[S], columns: &[String]) -> Result<Self> {
        Self::of_splits(paths, columns, &["validation", "test"])
    }

    fn of_splits<S: AsRef<str>>(paths: &[S], columns: &[String], splits: &[&str]) -> Result<Self> {
        let mut files = Vec::new();
        for path in paths {
            match paths::manifest(path.as_ref())? {
                Some(entries) => entries.into_iter().try_for_each(|e| e.expand(splits, &mut files))?,
                None => paths::expand(Path::new(""), path.as_ref(), splits, &mut files)?,
            }
        }
        if files.is_empty() {
            return Err(Error::config(format!(
                "no text was given: name files, folders or globs of {ENDINGS}"
            )));
        }
        Ok(Self { files, columns: columns.to_vec(), reading: Reading::default(), read: Arc::default() })
    }

    /// The same files, read in another way.
    pub fn with_reading(self, reading: Reading) -> Self {
        Self { reading, ..self }
    }

    /// Corpora with the weights that manifests among `paths` give them; all other paths together are one of weight 1.
    pub fn mixture<S: AsRef<str>>(paths: &[S], columns: &[String]) -> Result<Vec<(Self, f64)>> {
        let (mut plain, mut weighted) = (Vec::new(), Vec::new());
        for path in paths {
            let Some(entries) = paths::manifest(path.as_ref())? else {
                plain.push(path.as_ref());
                continue;
            };
            for entry in entries {
                let mut files = Vec::new();
                entry.expand(&["train"], &mut files)?;
                let reading = Reading::default();
                let source = Self { files, columns: columns.to_vec(), reading, read: Arc::default() };
                weighted.push((source, entry.weight));
            }
        }
        if !plain.is_empty() || weighted.is_empty() {
            weighted.insert(0, (Self::new(&plain, columns)?, 1.0));
        }
        Ok(weighted)
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
        self.read.load(Ordering::Relaxed)
    }

    /// Every paragraph of every file.
    pub fn for_each(&self, mut sink: impl FnMut(Paragraph<'_>) -> Result<()>) -> Result<()> {
        self.files.iter().try_for_each(|file| self.read_file(file, &mut sink))
    }

    /// Every paragraph of one file; an error if there is none.
    pub fn read_file(&self, path: &Path, sink: &mut dyn FnMut(Paragraph<'_>) -> Result<()>) -> Result<()> {
        let Some((format, compression)) = format_of(path) else { return Err(paths::unknown_ending(path)) };
        let mut document = Document { pair: Pair::of(path, self), ..Document::new(sink, self.reading) };
        let columns = &self.columns;
        let open = || Ok(BufReader::with_capacity(1 << 18, decompress::open(path, compression, &self.read)?));
        match format {
            Format::Text => text::read(path, open()?, &mut document)?,
            Format::Csv => table::read_csv(path, open()?, columns, &mut document)?,
            Format::Tsv => table::read_tsv(path, open()?, columns, &mut document)?,
            Format::JsonLines => json::read_lines(path, open()?, columns, &mut document)?,
            Format::Json => json::read(path, open()?, columns, &mut document)?,
            Format::Parquet => columnar::read_parquet(path, columns, &mut document)?,
            Format::Arrow => columnar::read_arrow(path, columns, &mut document)?,
        }
        if matches!(format, Format::Parquet | Format::Arrow) {
            // These are mapped, not read.
            let bytes = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
            self.read.fetch_add(bytes, Ordering::Relaxed);
        }
        match document.any {
            true => Ok(()),
            false => Err(Error::file(path, "there is no text in this file: fill it or leave it out")),
        }
    }
}

/// Every paragraph of a stream of plain text, such as standard input; `name` is for errors.
pub fn read_stream(
    name: &str,
    input: impl Read,
    sink: &mut dyn FnMut(Paragraph<'_>) -> Result<()>,
) -> Result<()> {
    let mut document = Document::new(sink, Reading::Lines);
    text::read(Path::new(name), BufReader::new(input), &mut document)
}

/// Turns lines into paragraphs that know whether they open a document.
struct Document<'a> {
    sink: &'a mut dyn FnMut(Paragraph<'_>) -> Result<()>,
    /// Whether a document has begun.
    open: bool,
    /// Whether there was any paragraph.
    any: bool,
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
        Self { sink, open: false, any: false, reading, pair: None }
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
        (self.open, self.any) = (true, true);
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
        self.any = true;
        (self.sink)(Paragraph { text: &first, opens_document: true, pair: true })?;
        (self.sink)(Paragraph { text: &second, opens_document: false, pair: true })
    }
}
