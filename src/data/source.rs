//! Text sources, streamed: files, folders and globs of `.txt`, `.csv` and `.jsonl`, each also `.gz` or `.zst`.
//!
//! A source is a sequence of paragraphs in documents. In a text file a paragraph is a line and a blank line ends the
//! document; a csv or jsonl record is a document whose chosen columns are read the same way. Memory is bounded by the
//! longest line. A further format is one more arm of `Format`.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

use crate::fsutil::sorted_entries;
use crate::{Error, Result};

/// A longer line is an error rather than an allocation without bound.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// Endings of readable files.
const ENDINGS: &str = ".txt, .csv, .jsonl, each also with .gz or .zst";

/// What a file holds once decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Csv,
    JsonLines,
}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstandard,
}

fn format_of(path: &Path) -> Option<(Format, Compression)> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let (stem, compression) = match (name.strip_suffix(".gz"), name.strip_suffix(".zst")) {
        (Some(stem), _) => (stem, Compression::Gzip),
        (_, Some(stem)) => (stem, Compression::Zstandard),
        _ => (name.as_str(), Compression::None),
    };
    let format = match stem.rsplit_once('.')?.1 {
        "txt" => Format::Text,
        "csv" => Format::Csv,
        "jsonl" => Format::JsonLines,
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
    /// Bytes of files read so far, by this source and its clones.
    read: Arc<AtomicU64>,
}

/// A file whose bytes are counted as they are read.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl TextSource {
    /// Expands files, folders (recursively) and globs. `columns` are the text columns of csv and jsonl files.
    pub fn new<S: AsRef<str>>(paths: &[S], columns: &[String]) -> Result<Self> {
        let mut files = Vec::new();
        for path in paths {
            expand(path.as_ref(), &mut files)?;
        }
        if files.is_empty() {
            return Err(Error::config(format!(
                "no text was given: name files, folders or globs of {ENDINGS}"
            )));
        }
        Ok(Self { files, columns: columns.to_vec(), read: Arc::default() })
    }

    /// The files, in the order they are read.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The text columns of csv and jsonl files.
    pub fn columns(&self) -> &[String] {
        &self.columns
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
        let Some((format, compression)) = format_of(path) else { return Err(unknown_ending(path)) };
        let file = File::open(path).map_err(Error::io("read", path))?;
        let file = Counted { file, read: self.read.clone() };
        let input: Box<dyn Read> = match compression {
            Compression::None => Box::new(file),
            Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::new(file))),
            Compression::Zstandard => Box::new(
                StreamingDecoder::new(BufReader::new(file))
                    .map_err(|e| Error::file(path, format!("this is not a Zstandard file: {e}")))?,
            ),
        };
        let input = BufReader::with_capacity(1 << 18, input);
        let mut document = Document { sink, open: false, any: false };
        match format {
            Format::Text => read_text(path, input, &mut document)?,
            Format::Csv => self.read_csv(path, input, &mut document)?,
            Format::JsonLines => self.read_json_lines(path, input, &mut document)?,
        }
        match document.any {
            true => Ok(()),
            false => Err(Error::file(path, "there is no text in this file: fill it or leave it out")),
        }
    }

    fn read_csv(&self, path: &Path, input: impl Read, document: &mut Document<'_>) -> Result<()> {
        // The csv reader has no limit of its own, and a small compressed file can hold a record without end.
        let left = Rc::new(Cell::new(MAX_LINE_BYTES));
        let mut reader = csv::ReaderBuilder::new().from_reader(Rationed { input, left: left.clone() });
        let line_of = |e: &csv::Error| e.position().map_or(1, csv::Position::line);
        let broken = |e: csv::Error| {
            Error::line(
                path,
                line_of(&e),
                format!("this is not valid csv in UTF-8 ({e}): mend or remove the record"),
            )
        };
        let header = reader.headers().map_err(broken)?.clone();
        let column = |name: &String| {
            header.iter().position(|title| title == name).ok_or_else(|| {
                let titles: Vec<&str> = header.iter().collect();
                Error::line(
                    path,
                    1,
                    format!("there is no column `{name}`; the header has {titles:?}: choose with --columns"),
                )
            })
        };
        let columns = self.columns.iter().map(column).collect::<Result<Vec<_>>>()?;
        let mut record = csv::StringRecord::new();
        while reader.read_record(&mut record).map_err(broken)? {
            for &column in &columns {
                document.text(record.get(column).unwrap_or_default())?;
            }
            document.close();
            left.set(MAX_LINE_BYTES);
        }
        Ok(())
    }

    fn read_json_lines(&self, path: &Path, input: impl BufRead, document: &mut Document<'_>) -> Result<()> {
        for_each_line(path, input, |number, line| {
            if line.trim().is_empty() {
                return Ok(());
            }
            let record: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(line).map_err(|e| {
                    Error::line(
                        path,
                        number,
                        format!("this is not a JSON object ({e}): mend or remove the line"),
                    )
                })?;
            for name in &self.columns {
                match record.get(name) {
                    Some(serde_json::Value::String(text)) => document.text(text)?,
                    Some(serde_json::Value::Null) => {}
                    Some(_) => return Err(Error::line(path, number, format!("`{name}` is not a string"))),
                    None => {
                        let keys: Vec<&String> = record.keys().collect();
                        return Err(Error::line(
                            path,
                            number,
                            format!(
                                "there is no field `{name}`; the object has {keys:?}: choose with --columns"
                            ),
                        ));
                    }
                }
            }
            document.close();
            Ok(())
        })
    }
}

/// Input that ends in an error once its ration is used up.
struct Rationed<R> {
    input: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Rationed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.input.read(buffer)?;
        let problem =
            || std::io::Error::other(format!("a record is longer than {} MiB", MAX_LINE_BYTES >> 20));
        self.left.set(self.left.get().checked_sub(read as u64).ok_or_else(problem)?);
        Ok(read)
    }
}

fn read_text(path: &Path, input: impl BufRead, document: &mut Document<'_>) -> Result<()> {
    for_each_line(path, input, |_, line| document.line(line))
}

/// Turns lines into paragraphs that know whether they open a document.
struct Document<'a> {
    sink: &'a mut dyn FnMut(Paragraph<'_>) -> Result<()>,
    /// Whether a document has begun.
    open: bool,
    /// Whether there was any paragraph.
    any: bool,
}

impl Document<'_> {
    fn line(&mut self, line: &str) -> Result<()> {
        let text = line.trim();
        if text.is_empty() {
            self.open = false;
            return Ok(());
        }
        (self.sink)(Paragraph { text, opens_document: !self.open })?;
        (self.open, self.any) = (true, true);
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<()> {
        text.lines().try_for_each(|line| self.line(line))
    }

    fn close(&mut self) {
        self.open = false;
    }
}

/// Lines with their numbers, counted from 1, without their ends.
fn for_each_line(
    path: &Path,
    mut input: impl BufRead,
    mut f: impl FnMut(u64, &str) -> Result<()>,
) -> Result<()> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = (&mut input).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).map_err(|e| {
            Error::line(
                path,
                number,
                format!("reading failed ({e}): the file may be cut short; copy it again"),
            )
        })?;
        if read == 0 {
            break;
        }
        if read as u64 == MAX_LINE_BYTES && line.last() != Some(&b'\n') {
            let limit = MAX_LINE_BYTES >> 20;
            return Err(Error::line(
                path,
                number,
                format!("this line is longer than {limit} MiB: break it up"),
            ));
        }
        let text = std::str::from_utf8(&line).map_err(|e| {
            let at = e.valid_up_to();
            Error::line(
                path,
                number,
                format!("byte {at} of this line is not UTF-8: convert the file to UTF-8"),
            )
        })?;
        let text = if number == 1 { text.trim_start_matches('\u{feff}') } else { text };
        f(number, text)?;
    }
    Ok(())
}

fn expand(path: &str, files: &mut Vec<PathBuf>) -> Result<()> {
    let plain = Path::new(path);
    if plain.is_dir() {
        let before = files.len();
        walk(plain, files)?;
        return match files.len() > before {
            true => Ok(()),
            false => Err(Error::file(plain, format!("this folder holds no text: expected {ENDINGS}"))),
        };
    }
    if plain.exists() {
        format_of(plain).ok_or_else(|| unknown_ending(plain))?;
        files.push(plain.to_path_buf());
        return Ok(());
    }
    if !path.contains(['*', '?', '[']) {
        return Err(Error::file(plain, "no such file or folder: check the spelling"));
    }
    let matches = glob::glob(path).map_err(|e| Error::file(plain, format!("this glob is not valid: {e}")))?;
    let mut found: Vec<PathBuf> =
        matches.collect::<Result<_, _>>().map_err(|e| Error::file(plain, format!("cannot read: {e}")))?;
    found.retain(|path| path.is_file() && format_of(path).is_some());
    found.sort();
    if found.is_empty() {
        return Err(Error::file(plain, format!("this glob matches no text: expected {ENDINGS}")));
    }
    files.extend(found);
    Ok(())
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for path in sorted_entries(dir)? {
        if path.is_dir() {
            walk(&path, files)?;
        } else if format_of(&path).is_some() {
            files.push(path);
        }
    }
    Ok(())
}

fn unknown_ending(path: &Path) -> Error {
    Error::file(path, format!("the ending names no known format: expected {ENDINGS}"))
}
