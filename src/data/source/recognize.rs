//! Files that are not what their names say: other compressions, archives, pointers of Git LFS, and
//! text in UTF-16 or UTF-32, which may happen to be valid UTF-8 full of NULs.

use std::cell::RefCell;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::rc::Rc;

use super::Format;
use super::decompress::Compression;
use super::spool::pipe_of;
use crate::{Error, Result};

/// What the first bytes of a file show it to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Compressed(Compression),
    Parquet,
    Arrow,
    /// Neither text nor a compression that is read; its name and what to do.
    Other(&'static str, &'static str),
}

const UNPACK: &str = "unpack it and name its files";

/// Bytes at the beginning of a file.
const MAGIC: &[(&[u8], Kind)] = &[
    (b"\x1f\x8b", Kind::Compressed(Compression::Gzip)),
    (b"\x28\xb5\x2f\xfd", Kind::Compressed(Compression::Zstandard)),
    (b"\xfd7zXZ\0", Kind::Compressed(Compression::Xz)),
    (b"PAR1", Kind::Parquet),
    (b"ARROW1\0\0", Kind::Arrow),
    (b"\xff\xff\xff\xff", Kind::Arrow),
    (b"PK\x03\x04", Kind::Other("a zip archive (or an office document)", UNPACK)),
    (b"PK\x05\x06", Kind::Other("an empty zip archive", UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Kind::Other("a 7z archive", UNPACK)),
    (b"Rar!\x1a\x07", Kind::Other("a RAR archive", UNPACK)),
    (b"\x04\x22\x4d\x18", Kind::Other("compressed with LZ4", "decompress it with `lz4 -d`")),
    (b"\x1f\x9d", Kind::Other("compressed with `compress`", "decompress it with `gunzip`")),
    (b"\x89LZO\0", Kind::Other("compressed with lzop", "decompress it with `lzop -d`")),
    (b"LZIP\x01", Kind::Other("compressed with lzip", "decompress it with `lzip -d`")),
    (b"%PDF-", Kind::Other("a PDF document", "extract its text, for example with `pdftotext`")),
    (b"SQLite format 3\0", Kind::Other("an SQLite database", "export its text")),
    (b"\x7fELF", Kind::Other("a program", "name text")),
    (b"FEA1", Kind::Other("Feather version 1", "write it again with a newer pyarrow, or as Parquet")),
    (b"PARE", Kind::Other("an encrypted Parquet file", "write it without encryption")),
    (
        b"version https://git-lfs.github.com/spec/v1",
        Kind::Other("a pointer of Git LFS, not the file itself", "run `git lfs pull` in its repository"),
    ),
    (
        b"/annex/objects/",
        Kind::Other("a pointer of git-annex, not the file itself", "run `git annex get` in its repository"),
    ),
];

/// Where the header of a tar archive has its mark.
const TAR: (usize, &[u8]) = (257, b"ustar");

/// Bytes at the head of a file that are looked at.
pub(super) const HEAD: usize = 512;

fn kind_of(head: &[u8]) -> Option<Kind> {
    let known = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)).map(|&(_, kind)| kind);
    // The mark of a block, or of the end where there is no block.
    let marks: [&[u8]; 2] = [b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90"];
    let bzip2 = head.starts_with(b"BZh") && head.get(4..10).is_some_and(|mark| marks.contains(&mark));
    let skippable = matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
    known
        .or_else(|| bzip2.then_some(Kind::Compressed(Compression::Bzip2)))
        .or_else(|| skippable.then_some(Kind::Compressed(Compression::Zstandard)))
        .or_else(|| {
            let tar = head.get(TAR.0..TAR.0 + TAR.1.len()) == Some(TAR.1);
            tar.then_some(Kind::Other("a tar archive", UNPACK))
        })
}

/// As [`kind_of`], of a file that should be text, which may begin with the same letters as Parquet
/// and Feather: "PAR1 and PAR2", "PARENTS".
fn kind_of_text(head: &[u8]) -> Option<Kind> {
    let letters: [&[u8]; 3] = [b"PAR1", b"PARE", b"FEA1"];
    let is_letters = letters.iter().any(|letters| head.starts_with(letters)) && is_text(head);
    kind_of(head).filter(|_| !is_letters)
}

/// What is wrong with the content of a pipe that should be text.
fn problem_of_pipe(kind: Kind) -> String {
    match kind {
        Kind::Compressed(found) => format!(
            "this is compressed with {}: decompress it before it enters the pipe, for example with \
             `{}`",
            found.name(),
            found.command()
        ),
        Kind::Parquet => "this is Parquet: name the file itself instead of a pipe".to_owned(),
        Kind::Arrow => "this is Arrow: name the file itself instead of a pipe".to_owned(),
        Kind::Other(what, advice) => format!("this is {what}: {advice}"),
    }
}

fn is_web_page(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head).trim_start().to_ascii_lowercase();
    text.starts_with("<!doctype html") || text.starts_with("<html")
}

/// An error if the head of a file shows that it is not in the format or compression that its name
/// says.
pub(super) fn check_file(path: &Path, head: &[u8], format: Format, compression: Compression) -> Result<()> {
    let kind = match format {
        Format::Parquet | Format::Arrow => kind_of(head),
        _ => kind_of_text(head),
    };
    let fits = match (format, compression, kind) {
        (_, _, Some(Kind::Other(what, advice))) => {
            return Err(Error::file(path, format!("this is {what}: {advice}")));
        }
        (Format::Parquet, _, kind) => kind == Some(Kind::Parquet),
        // A stream of old versions begins with a length.
        (Format::Arrow, _, kind) => matches!(kind, None | Some(Kind::Arrow)),
        (_, Compression::None, kind) => {
            // A byte order mark of UTF-16 is no Arrow stream.
            kind.is_none() || (kind == Some(Kind::Arrow) && !head.starts_with(b"ARROW1"))
        }
        (_, compression, kind) => kind == Some(Kind::Compressed(compression)),
    };
    if fits && !(format == Format::Arrow && is_web_page(head)) {
        return Ok(());
    }
    let expected = match (format, compression) {
        (Format::Parquet, _) => "Parquet",
        (Format::Arrow, _) => "Arrow",
        (_, compression) => compression.name(),
    };
    let problem = match kind {
        Some(kind) if compression == Compression::None && pipe_of(path).is_some() => problem_of_pipe(kind),
        Some(Kind::Compressed(found)) => format!(
            "this is compressed with {}, but its name does not end in {}: rename it",
            found.name(),
            found.ending()
        ),
        Some(Kind::Parquet) => "this is Parquet, but its name does not end in .parquet: rename it".to_owned(),
        Some(Kind::Arrow) => "this is Arrow, but its name does not end in .arrow: rename it".to_owned(),
        _ if is_web_page(head) => {
            format!("this is a web page (HTML), not {expected}: an error page that was saved? Fetch it again")
        }
        _ if is_text(head) => format!("this is plain text, not {expected}: rename it"),
        // The reader says in detail what is wrong.
        _ if compression == Compression::None => return Ok(()),
        _ => format!("this is not {expected}: the file is damaged, or its name is wrong"),
    };
    Err(Error::file(path, problem))
}

/// Whether bytes, perhaps cut within a character, are text.
fn is_text(head: &[u8]) -> bool {
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&head[..e.valid_up_to()]).unwrap_or(""),
        Err(_) => "",
    };
    !valid.is_empty() && !valid.chars().any(|c| c.is_control() && !c.is_whitespace())
}

/// Bytes looked at before anything is read.
const FIRST: u64 = 64 << 10;

/// A stream of text, of which every part is looked at for UTF-16 and UTF-32.
pub(super) struct Checked<R> {
    first: Cursor<Vec<u8>>,
    failed: Option<io::Error>,
    rest: R,
    /// What has come so far of a stream that is not read ahead, up to [`FIRST`] bytes.
    beginning: Option<Vec<u8>>,
    problem: Problem,
}

/// What was wrong with a [`Checked`], for a better error than the reader's.
#[derive(Clone, Default)]
pub(super) struct Problem(Rc<RefCell<Option<String>>>);

impl Problem {
    pub(super) fn take(&self) -> Option<String> {
        self.0.borrow_mut().take()
    }
}

impl<R: Read> Checked<R> {
    /// `None` if there is nothing but white space.
    pub(super) fn new(path: &Path, mut rest: R, compressed: bool) -> Result<Option<(Self, Problem)>> {
        let mut first = Vec::new();
        let failed = rest.by_ref().take(FIRST).read_to_end(&mut first).err();
        let whole = failed.is_none() && (first.len() as u64) < FIRST;
        if compressed && let Some(Kind::Other(what, advice)) = kind_of_text(&first[..first.len().min(HEAD)]) {
            return Err(Error::file(path, format!("what is compressed here is {what}: {advice}")));
        }
        if compressed && let Some(Kind::Compressed(twice)) = kind_of(&first) {
            let problem = format!("this is compressed with {} as well: decompress it once", twice.name());
            return Err(Error::file(path, problem));
        }
        if let Some(encoding) = by_mark(&first).or_else(|| by_nulls(&first)) {
            return Err(Error::file(path, wide(Some(path), encoding)));
        }
        if whole && std::str::from_utf8(&first).is_ok_and(|text| text.trim_matches(blank).is_empty()) {
            return Ok(None);
        }
        let problem = Problem::default();
        let first = Cursor::new(first);
        Ok(Some((Self { first, failed, rest, beginning: None, problem: problem.clone() }, problem)))
    }

    /// A stream that is answered line by line, such as standard input: nothing is read ahead, and
    /// every part is looked at when it comes.
    pub(super) fn of_stream(rest: R) -> (Self, Problem) {
        let (first, problem) = (Cursor::default(), Problem::default());
        (Self { first, failed: None, rest, beginning: Some(Vec::new()), problem: problem.clone() }, problem)
    }

    /// What is wrong with the bytes that came now.
    fn problem_of(&mut self, bytes: &[u8]) -> Option<String> {
        let nulls = memchr::memchr(0, bytes).is_some();
        if let Some(beginning) = self.beginning.as_mut().filter(|seen| (seen.len() as u64) < FIRST) {
            let known = beginning.len();
            beginning.extend_from_slice(bytes);
            if known < HEAD
                && let Some(kind) = kind_of_text(&beginning[..beginning.len().min(HEAD)])
            {
                return Some(problem_of_pipe(kind));
            }
            let encoding = by_mark(beginning).or_else(|| nulls.then(|| by_nulls(beginning)).flatten());
            return encoding.map(|encoding| wide(None, encoding));
        }
        // Text in UTF-16 may have been appended to text in UTF-8.
        let encoding = nulls.then(|| by_nulls(bytes)).flatten()?;
        Some(format!(
            "a part of this text looks like {encoding}, the beginning does not: convert the parts \
             to UTF-8 one by one"
        ))
    }
}

fn blank(c: char) -> bool {
    c.is_whitespace() || c == '\u{feff}'
}

/// What to do with text in another encoding: in a file, or in a pipe.
fn wide(file: Option<&Path>, encoding: &str) -> String {
    let code = encoding.split(' ').next().unwrap_or(encoding);
    let file = file.filter(|file| pipe_of(file).is_none()).and_then(Path::file_name);
    let names = file.map(|name| name.to_string_lossy()).map(|name| format!(" {name} > utf8-{name}"));
    let names = names.unwrap_or_default();
    format!(
        "this looks like {encoding}, expected UTF-8: convert it, for example with \
         `iconv -f {code} -t UTF-8{names}`"
    )
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = self.first.read(to)?;
        if read > 0 || to.is_empty() {
            return Ok(read);
        }
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let read = self.rest.read(to)?;
        match self.problem_of(&to[..read]) {
            None => Ok(read),
            Some(problem) => {
                *self.problem.0.borrow_mut() = Some(problem.clone());
                Err(io::Error::other(problem))
            }
        }
    }
}

/// The encoding that a byte order mark names.
fn by_mark(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] => Some("UTF-32 (by its byte order mark)"),
        [0, 0, 0xfe, 0xff, ..] => Some("UTF-32 (by its byte order mark)"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16 (by its byte order mark)"),
        _ => None,
    }
}

/// Splits a pair of bytes.
type HighAndLow = fn(&[u8]) -> (u8, u8);

/// The encoding of bytes with NULs in the places where UTF-16 or UTF-32 have them.
fn by_nulls(bytes: &[u8]) -> Option<&'static str> {
    let (first, last) = (memchr::memchr(0, bytes)?, memchr::memrchr(0, bytes)?);
    // Only the part with NULs: what is before it may be UTF-8.
    let from = first.saturating_sub(3);
    let part = &bytes[from..bytes.len().min(last + 4)];
    for phase in 0..4 {
        let units = || part.get(phase..).unwrap_or_default().chunks_exact(4);
        let valid = |read: fn([u8; 4]) -> u32| {
            let fits = |unit: &&[u8]| matches!(read([unit[0], unit[1], unit[2], unit[3]]), 1..0x11_0000);
            units().filter(fits).count()
        };
        let enough = (units().count() * 9).div_ceil(10);
        if enough >= 2 && valid(u32::from_le_bytes) >= enough {
            return Some("UTF-32LE");
        }
        if enough >= 2 && valid(u32::from_be_bytes) >= enough {
            return Some("UTF-32BE");
        }
    }
    // The first pair begins at an even place of the whole, as far as is known.
    let even = from.next_multiple_of(2);
    let pairs = || bytes[even.min(bytes.len())..bytes.len().min(last + 2)].chunks_exact(2);
    let orders: [(&str, HighAndLow); 2] =
        [("UTF-16LE", |pair| (pair[1], pair[0])), ("UTF-16BE", |pair| (pair[0], pair[1]))];
    orders.into_iter().find(|(_, split)| is_utf16(bytes, pairs().map(split))).map(|(name, _)| name)
}

/// Whether pairs of a high and a low byte are UTF-16 rather than UTF-8.
fn is_utf16(bytes: &[u8], pairs: impl Iterator<Item = (u8, u8)>) -> bool {
    let (mut count, mut high_nulls, mut low_nulls, mut alphabetic, mut ideographic) = (0, 0, 0, 0, 0);
    for (high, low) in pairs {
        count += 1;
        high_nulls += usize::from(high == 0 && low != 0);
        low_nulls += usize::from(low == 0);
        // The high bytes of all alphabets are control characters.
        alphabetic += usize::from(high < 0x20 && low != 0);
        // Kana, ideographs, Hangul, full-width forms, and ASCII between them.
        ideographic += usize::from(matches!(high, 0 | 0x20 | 0x30..=0x9f | 0xac..=0xd7 | 0xff));
    }
    let most = |part: usize| 10 * part >= 9 * count;
    let nulls = high_nulls > 0 && 20 * low_nulls <= high_nulls.max(20);
    let alphabets = nulls && high_nulls >= 2 && most(alphabetic);
    alphabets
        || (nulls && most(ideographic) && std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, big: bool) -> Vec<u8> {
        text.encode_utf16().flat_map(|u| if big { u.to_be_bytes() } else { u.to_le_bytes() }).collect()
    }

    fn utf32(text: &str, big: bool) -> Vec<u8> {
        text.chars()
            .map(u32::from)
            .flat_map(|u| if big { u.to_be_bytes() } else { u.to_le_bytes() })
            .collect()
    }

    #[test]
    fn wide_encodings_are_recognized_without_a_mark() {
        for text in [
            "the man said\r\na row\r\n",
            "Последняя тёплая весть\nвторая строка\n",
            "η τρίτη γραμμή είναι εδώ\n",
            "השורה השלישית כאן\n",
            "السطر الثالث هنا\n",
            "हम सब साथ हैं\n",
            "天地玄黃，宇宙洪荒。\n日月盈昃，辰宿列張。\n",
            "わたしは ねこ です。\n",
            "안녕하세요 세계\n",
            "id,text\n1,naïve\n",
        ] {
            assert_eq!(by_nulls(&utf16(text, false)), Some("UTF-16LE"), "{text}");
            assert_eq!(by_nulls(&utf16(text, true)), Some("UTF-16BE"), "{text}");
            assert_eq!(by_nulls(&utf32(text, false)), Some("UTF-32LE"), "{text}");
            assert_eq!(by_nulls(&utf32(text, true)), Some("UTF-32BE"), "{text}");
            assert_eq!(by_nulls(text.as_bytes()), None);
            let tail = [text.repeat(9).as_bytes(), &utf16("the man\n", false)].concat();
            assert!(by_nulls(&tail).is_none_or(|name| name.starts_with("UTF-16")));
        }
        let appended = [&b"some text in UTF-8.\n"[..], &utf16("and more of it\n", false)].concat();
        assert_eq!(by_nulls(&appended), Some("UTF-16LE"));
    }

    #[test]
    fn text_with_nulls_is_text() {
        for text in [
            "one\0two\0three\0",
            "a single \0 in a line of text\n",
            "\0\0\0\0\0\0\0\0\0\0\0\0",
            "padded\0\0\0\0\0\0\0\0and padded\0\0\0\0\0\0",
            "日本\0語\0",
            "a\0",
        ] {
            assert_eq!(by_nulls(text.as_bytes()), None, "{text:?}");
        }
    }
}
