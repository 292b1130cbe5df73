//! JSON: an object is a document.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::{Deserializer, Map, Value};

use super::Document;
use super::decompress::{Allowance, Budget};
use super::text::for_each_line;
use crate::{Error, Result};

type Object = Map<String, Value>;

/// An object a line.
pub(super) fn read_lines(
    path: &Path,
    input: impl BufRead,
    columns: &[String],
    document: &mut Document<'_>,
) -> Result<()> {
    for_each_line(path, input, |number, line| {
        if line.trim().is_empty() {
            return Ok(());
        }
        let object: Object = serde_json::from_str(line).map_err(|e| {
            let problem = format!("this is not a JSON object ({e}): mend or remove the line");
            Error::line(path, number, problem)
        })?;
        take(&object, columns, document, |problem| Error::line(path, number, problem))
    })
}

/// One array of objects, or objects one after the other, each over any number of lines.
pub(super) fn read(
    path: &Path,
    mut input: impl BufRead,
    columns: &[String],
    document: &mut Document<'_>,
) -> Result<()> {
    let (first, skipped) = first_byte(&mut input).map_err(Error::io("read", path))?;
    let (input, allowance) = Budget::new(input);
    let input = BufReader::new(input);
    let broken = |e: serde_json::Error| {
        let line = skipped + e.line().max(1) as u64;
        Error::line(
            path,
            line,
            format!("this is not an array of JSON objects, or objects one after the other ({e})"),
        )
    };
    let mut json = Deserializer::from_reader(input);
    let mut reader = Objects { path, columns, document, allowance, number: 0, failure: None };
    if first == Some(b'[') {
        let read = json.deserialize_seq(&mut reader);
        return match reader.failure {
            Some(failure) => Err(failure),
            None => read.and_then(|()| json.end()).map_err(broken),
        };
    }
    json.into_iter::<Object>().try_for_each(|object| reader.object(&object.map_err(broken)?))
}

/// The first byte that is neither white space nor a byte order mark, left unread, and the lines before it.
fn first_byte(input: &mut impl BufRead) -> std::io::Result<(Option<u8>, u64)> {
    let mut lines = 0;
    loop {
        let byte = input.fill_buf()?.first().copied();
        match byte {
            Some(b'\n') => lines += 1,
            Some(b' ' | b'\t' | b'\r' | 0xef | 0xbb | 0xbf) => {}
            other => return Ok((other, lines)),
        }
        input.consume(1);
    }
}

/// Hands on the objects of an array one by one.
struct Objects<'a, 'd> {
    path: &'a Path,
    columns: &'a [String],
    document: &'a mut Document<'d>,
    allowance: Allowance,
    number: u64,
    /// What `serde` cannot carry.
    failure: Option<Error>,
}

impl Objects<'_, '_> {
    fn object(&mut self, object: &Object) -> Result<()> {
        self.allowance.renew();
        self.number += 1;
        let (path, number) = (self.path, self.number);
        take(object, self.columns, self.document, |p| Error::file(path, format!("object {number}: {p}")))
    }
}

impl<'de> Visitor<'de> for &mut Objects<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        while let Some(object) = array.next_element::<Object>()? {
            if let Err(error) = self.object(&object) {
                self.failure = Some(error);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

fn take(
    object: &Object,
    columns: &[String],
    document: &mut Document<'_>,
    error: impl Fn(String) -> Error,
) -> Result<()> {
    for (number, name) in columns.iter().enumerate() {
        document.column(number);
        match object.get(name) {
            Some(Value::String(text)) => document.text(text)?,
            Some(Value::Null) => {}
            Some(_) => return Err(error(format!("`{name}` is not a string"))),
            None => {
                let keys: Vec<&String> = object.keys().collect();
                return Err(error(format!(
                    "there is no field `{name}`; the object has {keys:?}: choose with --columns"
                )));
            }
        }
    }
    document.close()
}
