//! Parquet files and Arrow's formats, as pyarrow and `datasets` write them, and damaged ones.

use std::fs;
use std::path::{Path, PathBuf};

use elektron::data::source::TextSource;

use super::{owned, read, read_columns, refuse};
use crate::support::repository;

/// What the fixtures hold in their rows `rows`: see `tests/scripts/make_columnar_fixtures.py`.
fn column(name: &str, rows: std::ops::Range<usize>) -> Vec<(String, bool)> {
    let mut all = Vec::new();
    for i in rows {
        match name {
            "text" if i % 5 != 4 => {
                all.extend([(format!("Row {i}."), true), ("It is öne of many.".to_owned(), false)]);
            }
            "parts" if i % 7 != 6 => all.extend([(format!("part {i}"), true), ("end".to_owned(), false)]),
            "kind" => all.push((["news", "prose", "verse"][i % 3].to_owned(), true)),
            _ => {}
        }
    }
    all
}

fn columnar(name: &str) -> PathBuf {
    repository("tests/fixtures/columnar").join(name)
}

#[test]
fn parquet_is_read_in_every_compression_and_encoding() {
    for name in ["plain", "gzip", "snappy-dictionary", "zstd-v2"] {
        let path = columnar(&format!("{name}.parquet"));
        for column_name in ["text", "parts", "kind"] {
            let found = read_columns(&path, &[column_name]).unwrap();
            assert_eq!(found, column(column_name, 0..40), "{name} {column_name}");
        }
    }
    for name in ["delta-byte-array", "delta-length-byte-array", "large"] {
        assert_eq!(read(&columnar(&format!("{name}.parquet"))).unwrap(), column("text", 0..40), "{name}");
    }
    assert_eq!(read_columns(&columnar("large.parquet"), &["parts"]).unwrap(), column("parts", 0..40));
    for name in ["lz4.parquet", "brotli.parquet", "lz4.arrow", "zstd.arrow", "lz4.feather", "zstd.feather"] {
        for column_name in ["text", "kind"] {
            let found = read_columns(&columnar(name), &[column_name]).unwrap();
            assert_eq!(found, column(column_name, 0..40), "{name} {column_name}");
        }
        // Of a column of nulls nothing is text, and nothing is wrong.
        let both = read_columns(&columnar(name), &["nothing", "text"]).unwrap();
        assert_eq!(both, column("text", 0..40), "{name}");
        refuse(read_columns(&columnar(name), &["nothing"]), &[name, "no text"]);
    }
    for name in ["no-rows.parquet", "no-rows.arrow"] {
        refuse(read(&columnar(name)), &[name, "no text"]);
        refuse(read_columns(&columnar(name), &["body"]), &["no column `body`", "text (Utf8)"]);
    }
    // Columns come in the order in which they were asked for, all in one document.
    let both = read_columns(&columnar("plain.parquet"), &["kind", "id"]);
    refuse(both, &["plain.parquet", "`id` holds Int64", "parts", "--columns"]);
    let both = read_columns(&columnar("plain.parquet"), &["kind", "text"]).unwrap();
    assert_eq!(both[..3], owned(&[("news", true), ("Row 0.", false), ("It is öne of many.", false)]));
    refuse(read_columns(&columnar("plain.parquet"), &["body"]), &["no column `body`", "text (Utf8)"]);
    refuse(read_columns(&columnar("plain.parquet"), &["meta"]), &["`meta` holds Struct"]);
}

#[test]
fn folders_that_datasets_saved_are_read() {
    assert_eq!(read(&columnar("saved")).unwrap(), column("text", 0..40));
    assert_eq!(read_columns(&columnar("saved"), &["parts"]).unwrap(), column("parts", 0..40));
    assert_eq!(read(&columnar("saved/data-00001-of-00002.arrow")).unwrap(), column("text", 20..40));
    assert_eq!(read(&columnar("views.arrow")).unwrap(), column("text", 0..40));
    assert_eq!(read_columns(&columnar("views.arrow"), &["kind"]).unwrap(), column("kind", 0..40));
    assert_eq!(read(&columnar("splits")).unwrap(), column("text", 0..3), "train");
    let path = columnar("splits");
    let held_out = TextSource::held_out(&[path.to_str().unwrap()], &["text".to_owned()]).unwrap();
    assert_eq!(held_out.files(), [path.join("test/data-00000-of-00001.arrow")]);
    assert_eq!(read(&columnar("file-format.arrow")).unwrap(), column("text", 0..40), "Feather");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("dataset_dict.json"), r#"{"splits": ["a", "b"]}"#).unwrap();
    refuse(read(dir.path()), &["\"a\", \"b\"", "train"]);
    fs::remove_file(dir.path().join("dataset_dict.json")).unwrap();
    fs::write(dir.path().join("state.json"), r#"{"_data_files": [{"filename": "../x.arrow"}]}"#).unwrap();
    refuse(read(dir.path()), &["state.json", "../x.arrow"]);
}

/// Whatever byte is changed, the file is read or refused; nothing ends the program, and nothing
/// needs much memory.
#[test]
fn damaged_columnar_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "plain.parquet",
        "gzip.parquet",
        "snappy-dictionary.parquet",
        "zstd-v2.parquet",
        "delta-byte-array.parquet",
        "delta-length-byte-array.parquet",
        "saved/data-00000-of-00002.arrow",
        "views.arrow",
        "lz4.arrow",
        "zstd.arrow",
        "lz4.feather",
        "lz4.parquet",
        "brotli.parquet",
    ];
    let (mut read_anyway, mut refused) = (0, 0);
    for (number, name) in names.into_iter().enumerate() {
        let bytes = fs::read(columnar(name)).unwrap();
        let path = dir.path().join(Path::new(name).file_name().unwrap());
        let mut check = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            match read(&path) {
                Ok(_) => read_anyway += 1,
                Err(error) => {
                    assert!(error.contains(path.to_str().unwrap()), "{error}");
                    refused += 1;
                }
            }
        };
        for length in (0..bytes.len()).step_by(bytes.len() / 20) {
            check(&bytes[..length]);
        }
        for (i, at) in (number % 17..bytes.len()).step_by(17).enumerate() {
            let mut other = bytes.clone();
            other[at] = [0xff, 0x7f, 0x80, 0x00, other[at] ^ 1][i % 5];
            check(&other);
        }
    }
    assert!(refused > 150 && read_anyway > 25, "{refused} refused, {read_anyway} read");
}
