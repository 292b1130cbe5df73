//! What is in files: encodings, line ends, compressions, files of other kinds, files without text.

use std::fs;
use std::io::{Read, Write};

use elektron::data::source::read_stream;

use super::{Corpus, has, read};

fn utf16(text: &str, mark: bool) -> Vec<u8> {
    let mark = if mark { "\u{feff}" } else { "" };
    format!("{mark}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn wide_encodings_are_refused_in_every_format() {
    let corpus = Corpus::new();
    let rows = "id,text\n1,последняя тёплая весть\n2,вторая строка\n";
    let records = "{\"text\": \"последняя тёплая весть\"}\n{\"text\": \"вторая строка\"}\n";
    for (name, text) in [
        ("a.txt", rows),
        ("a.csv", rows),
        ("a.tsv", rows),
        ("a.jsonl", records),
        ("a.json", records),
        ("a.md", rows),
    ] {
        for mark in [false, true] {
            let error = read(&corpus.write(name, utf16(text, mark))).unwrap_err();
            has(&error, &[name, "UTF-16", "iconv"]);
        }
        let error = read(&corpus.write(&format!("{name}.gz"), gzip(&utf16(text, false)))).unwrap_err();
        has(&error, &[name, "UTF-16LE"]);
        let wide: Vec<u8> = text.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect();
        has(&read(&corpus.write(name, wide)).unwrap_err(), &[name, "UTF-32BE"]);
    }
    // As `>>` of an old PowerShell appends it, after more than is looked at first.
    let appended = [rows.repeat(2000).as_bytes(), &utf16(rows, false)].concat();
    has(&read(&corpus.write("b.txt", appended)).unwrap_err(), &["b.txt", "UTF-16LE", "part"]);
}

/// Gives as many bytes at a time as a slow writer would.
struct Slow<'a>(&'a [u8], usize);

impl Read for Slow<'_> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let most = self.1.min(to.len());
        self.0.read(&mut to[..most])
    }
}

#[test]
fn streams_are_looked_at_as_they_come() {
    let stream = |bytes: &[u8], chunk: usize| {
        let mut lines = Vec::new();
        let read = read_stream("standard input", Slow(bytes, chunk), &mut |p| {
            lines.push(p.text.to_owned());
            Ok(())
        });
        (lines, read.map_err(|e| e.to_string()))
    };
    let rows = "последняя тёплая весть, 1\nвторая строка\n";
    let english = "the man said\na row of it\n";
    for chunk in [1, 3, 1 << 16] {
        for text in [rows, english] {
            for mark in [false, true] {
                let (lines, read) = stream(&utf16(text, mark), chunk);
                has(&read.unwrap_err(), &["standard input: ", "UTF-16", "iconv"]);
                assert!(lines.is_empty(), "{lines:?}");
            }
            let wide: Vec<u8> = text.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect();
            let (lines, read) = stream(&wide, chunk);
            has(&read.unwrap_err(), &["standard input: ", "UTF-32BE"]);
            assert!(lines.is_empty(), "{lines:?}");
            assert_eq!(stream(text.as_bytes(), chunk).1, Ok(()));
        }
        has(&stream(&gzip(english.as_bytes()), chunk).1.unwrap_err(), &["gzip", "`zcat`"]);
        has(&stream(b"PK\x03\x04\x14\0\0\0", chunk).1.unwrap_err(), &["zip archive"]);
        let nulls = "one\0two\0three\n";
        assert_eq!(stream(nulls.as_bytes(), chunk), (vec![nulls.trim().to_owned()], Ok(())));
    }
    let appended = [english.repeat(4000).as_bytes(), &utf16(english, false)].concat();
    has(&stream(&appended, 1 << 12).1.unwrap_err(), &["UTF-16LE", "part"]);
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

#[test]
fn lines_end_as_python_reads_them() {
    let corpus = Corpus::new();
    let lines = |text: &str| read(&corpus.write("a.txt", text)).unwrap();
    assert_eq!(lines("one\rtwo\rthree"), ["one", "+two", "+three"]);
    assert_eq!(lines("one\rtwo\nthree\r\nfour\r\rfive\r"), ["one", "+two", "+three", "+four", "five"]);
    assert_eq!(lines("one\r\r\ntwo\r\r\n\r\r\nthree"), ["one", "+two", "three"], "converted twice");
    assert_eq!(lines("one\u{2028}still\u{85}one"), ["one\u{2028}still\u{85}one"]);
    // Ends that lie where the reader's buffer ends.
    for length in (1 << 16) - 2..(1 << 16) + 2 {
        let long = "x".repeat(length);
        for (end, want) in [("\r\n", "+y"), ("\r", "+y"), ("\r\r", "y"), ("\r\r\n", "+y")] {
            assert_eq!(lines(&format!("{long}{end}y")), [&long, want], "{length} {end:?}");
        }
    }
    assert_eq!(read(&corpus.write("a.jsonl", "{\"text\":\"a\"}\r{\"text\":\"b\"}\r")).unwrap(), ["a", "b"]);
}

#[test]
fn gzip_may_be_padded_and_concatenated() {
    let corpus = Corpus::new();
    let (one, two) = (gzip(b"one\n"), gzip(b"two\n"));
    let zeros = vec![0; 70_000];
    for bytes in [[&one[..], &two].concat(), [&one[..], &zeros, &two, &zeros].concat()] {
        assert_eq!(read(&corpus.write("a.txt.gz", bytes)).unwrap(), ["one", "+two"]);
    }
    has(&read(&corpus.write("a.txt.gz", [&one[..], b"tail"].concat())).unwrap_err(), &["a.txt.gz"]);
    has(&read(&corpus.write("a.txt.gz", &one[..one.len() - 3])).unwrap_err(), &["a.txt.gz", "cut short"]);
}

#[test]
fn files_are_called_what_they_are() {
    let corpus = Corpus::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    let mut tar = vec![b'x'; 600];
    tar[257..262].copy_from_slice(b"ustar");
    let zip = b"PK\x03\x04\x14\x00\x00\x00\x08\x00rest of it";
    let cases: &[(&str, &[u8], &[&str])] = &[
        ("a.txt", pointer.as_bytes(), &["Git LFS", "git lfs pull"]),
        ("a.parquet", pointer.as_bytes(), &["Git LFS"]),
        ("a.jsonl.gz", pointer.as_bytes(), &["Git LFS"]),
        ("a.json.zst", b"/annex/objects/SHA256E-s1--0.json\n", &["git annex get"]),
        ("a.txt.gz", zip, &["zip archive"]),
        ("a.jsonl", zip, &["zip archive"]),
        ("a.parquet", zip, &["zip archive"]),
        ("a.txt", b"7z\xbc\xaf\x27\x1c\0\x04", &["7z archive"]),
        ("a.csv", &tar, &["tar archive"]),
        ("b.txt.gz", &gzip(&tar), &["tar archive"]),
        ("c.txt.gz", &gzip(&gzip(b"x")), &["gzip", "as well"]),
        ("a.txt", &gzip(b"text\n"), &["gzip", ".gz", "rename"]),
        ("a.txt.xz", &gzip(b"text\n"), &["gzip", ".gz", "rename"]),
        ("a.txt.gz", b"just text\n", &["plain text", "gzip"]),
        ("a.txt.bz2", b"\xff\xd8\xff\xe0nonsense", &["not bzip2"]),
        ("a.parquet", b"<!DOCTYPE html><html>404", &["web page"]),
        ("a.arrow", b"<html>404", &["web page"]),
        ("a.txt", b"%PDF-1.5\n%\xd0\xd4", &["PDF"]),
        ("a.csv", b"PAR1\x15\x04\x15\x10", &["Parquet", "rename"]),
        ("a.arrow", b"PAR1\x15\x04\x15\x10", &["Parquet", "rename"]),
        ("a.parquet", b"ARROW1\0\0\xff\xff\xff\xff", &["Arrow", "rename"]),
    ];
    for (name, bytes, words) in cases {
        let error = read(&corpus.write(name, bytes)).unwrap_err();
        has(&error, &[&[*name], *words].concat());
    }
    // Text may begin with the letters that Parquet and Feather begin with.
    for text in ["PAR1 and PAR2 are receptors", "PARENTS are named here", "FEA1", "LZIP packs files"] {
        assert_eq!(read(&corpus.write("b.txt", text)).unwrap(), [text]);
        assert_eq!(read(&corpus.write("b.txt.gz", gzip(text.as_bytes()))).unwrap(), [text]);
    }
    assert_eq!(read(&corpus.write("a.html.txt", "<html>text</html>")).unwrap(), ["<html>text</html>"]);
}

#[test]
fn files_without_text_are_left_out_with_a_warning() {
    let corpus = Corpus::new();
    // What Python's `bz2` and `lzma` make of no bytes.
    let no_bytes_bz2 = b"BZh9\x17\x72\x45\x38\x50\x90\0\0\0\0";
    let no_bytes_xz = b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4F\0\0\0\0\x1c\xdfD!\x1f\xb6\xf3}\x01\0\0\0\0\x04YZ";
    corpus.write("c/a.txt", "the man said");
    for (name, bytes) in [
        ("b.txt", &b""[..]),
        ("c.csv", b"id,text\n"),
        ("d.csv", b" \n\n"),
        ("e.jsonl", b"\n\n"),
        ("f.json", b"[]"),
        ("g.json", b" "),
        ("h.txt", b"\xef\xbb\xbf \r\n\t\n"),
        ("i.txt", b"\0\0\0\0\0\0\0\0\n\0\0"),
        ("j.txt", "\u{200b}\u{feff}\n\u{2060}\n".as_bytes()),
        ("k.txt.gz", b""),
        ("l.txt.gz", &gzip(b"")),
        ("m.parquet", b""),
        ("n.jsonl", b"{\"text\":null}\n{\"text\":\"\"}\n"),
        ("o.tsv", b""),
        ("p.txt.xz", b""),
        ("q.txt.bz2", no_bytes_bz2),
        ("r.csv.xz", no_bytes_xz),
    ] {
        has(&read(&corpus.write(&format!("c/{name}"), bytes)).unwrap_err(), &[name, "no text"]);
    }
    let source = corpus.source("c");
    let mut seen = 0;
    source
        .for_each(|p| {
            seen += usize::from(p.text == "the man said");
            Ok(())
        })
        .unwrap();
    assert_eq!((seen, source.without_text().len()), (1, 17));
    has(&source.warning().unwrap(), &["17 of 18 files", "b.txt", "c.csv", "and 14 more"]);
    fs::remove_file(corpus.path("c/a.txt")).unwrap();
    let source = corpus.source("c");
    has(&source.for_each(|_| Ok(())).unwrap_err().to_string(), &["b.txt", "17 files"]);
}

#[test]
fn other_fields_of_json_do_not_matter() {
    let corpus = Corpus::new();
    let record = |text: &str, more: &str| format!("{{\"text\": \"{text}\", {more}}}");
    for more in [
        "\"score\": NaN",
        "\"score\": [-Infinity, Infinity, {\"a\": NaN}]",
        "\"name\": \"\\udc00\"",
        "\"name\": \"\\ud800 and \\\\\\\"NaN\"",
        "\"n\": 123456789012345678901234567890e999, \"m\": -1",
    ] {
        let lines = format!(
            "{}\n{{\"id\": 2}}\n{{\"text\": NaN}}\n{}\n",
            record("the man", more),
            record("a row", more)
        );
        for name in ["a.jsonl", "a.json"] {
            assert_eq!(read(&corpus.write(name, &lines)).unwrap(), ["the man", "a row"], "{name} {more}");
        }
        let array = format!("[{},\n{}]", record("the man", more), record("a row", more));
        assert_eq!(read(&corpus.write("b.json", array)).unwrap(), ["the man", "a row"], "{more}");
    }
    // Lists of strings are paragraphs, as those of Parquet; an array of strings is a column `text`.
    let lists = "{\"text\": [\"one\", null, \"two\"]}\n{\"text\": []}\n{\"text\": \"three\"}\n";
    for name in ["a.jsonl", "a.json"] {
        assert_eq!(read(&corpus.write(name, lists)).unwrap(), ["one", "+two", "three"]);
    }
    assert_eq!(read(&corpus.write("b.json", "[\"one\", \"two\"]")).unwrap(), ["one", "two"]);
    for (text, words) in [
        ("{\"body\":\"x\"}\n{\"title\":1}\n", &["no record", "`text`", "body", "title", "--columns"][..]),
        ("{\"text\":5}\n", &["`text`", "string"]),
        ("{\"text\":[\"a\", 5]}\n", &["`text`", "string"]),
        ("{\"text\":\"\\udc00\"}\n", &["surrogate"]),
        ("{\"text\":\"a\",\"b\":Nan}\n", &["JSON object"]),
        ("{\"text\":\"a\",\"b\":--Infinity}\n", &["JSON object"]),
        ("{\"text\":\"a\"\n", &["JSON object"]),
    ] {
        has(&read(&corpus.write("a.jsonl", text)).unwrap_err(), words);
        let _ = read(&corpus.write("a.json", text)).unwrap_err();
    }
}
