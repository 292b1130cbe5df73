//! JSON: an object is a document. Only the columns that are asked for are looked at; what Python's
//! `json` writes and the standard does not know (NaN, Infinity) is null, and what the other fields
//! hold does not matter.

use std::cell::RefCell;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::Document;
use super::decompress::{Allowance, Budget};
use super::non_finite::{NonFinite, without_non_finite};
use super::text::for_each_line;
use crate::{Error, Result};

/// Names of other fields that an error shows.
const NAMES: usize = 50;

/// An object per line.
pub(super) fn read_lines(
    path: &Path,
    input: impl BufRead,
    columns: &[String],
    document: &mut Document<'_>,
) -> Result<()> {
    let fields = Fields::new(columns);
    let parse = |text: &str| {
        let mut json = serde_json::Deserializer::from_str(text);
        Record { fields: &fields, or_text: false }
            .deserialize(&mut json)
            .and_then(|values| json.end().map(|()| values))
    };
    for_each_line(path, input, |number, line| {
        if line.trim().is_empty() {
            return Ok(());
        }
        let values = parse(line).or_else(|e| without_non_finite(line).map_or(Err(e), |line| parse(&line)));
        let values = values.map_err(|e| {
            let problem = format!("this is not a JSON object ({e}): mend or remove the line");
            Error::line(path, number, problem)
        })?;
        fields.take(values, document, |problem| Error::line(path, number, problem))
    })?;
    fields.check(path)
}

/// One array of objects (or of texts), or objects one after the other, each over any number of
/// lines.
pub(super) fn read(
    path: &Path,
    mut input: impl BufRead,
    columns: &[String],
    document: &mut Document<'_>,
) -> Result<()> {
    let (first, skipped) = first_byte(&mut input).map_err(Error::io("read", path))?;
    let (input, allowance) = Budget::new(NonFinite::new(input));
    let input = BufReader::new(input);
    let broken = |e: serde_json::Error| {
        let line = skipped + e.line().max(1) as u64;
        Error::line(
            path,
            line,
            format!("this is not an array of JSON objects, or objects one after the other ({e})"),
        )
    };
    let fields = Fields::new(columns);
    let mut json = serde_json::Deserializer::from_reader(input);
    let mut reader = Objects { path, fields: &fields, document, allowance, number: 0, failure: None };
    if first == Some(b'[') {
        let read = json.deserialize_seq(&mut reader);
        match reader.failure {
            Some(failure) => return Err(failure),
            None => read.and_then(|()| json.end()).map_err(broken)?,
        }
    } else {
        // As `Deserializer::into_iter`, which takes no seed.
        while json.end().is_err() {
            let record = Record { fields: &fields, or_text: false };
            let values = record.deserialize(&mut json).map_err(broken)?;
            reader.object(values)?;
        }
    }
    fields.check(path)
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

/// The fields that are asked for, and whether records have them.
struct Fields<'a> {
    columns: &'a [String],
    seen: RefCell<Seen>,
}

struct Seen {
    /// Whether any record has the column.
    found: Vec<bool>,
    /// Other fields of records.
    others: Vec<String>,
    any: bool,
}

/// A value for each column; null where the record has none.
type Values = Vec<Value>;

impl<'a> Fields<'a> {
    fn new(columns: &'a [String]) -> Self {
        let seen = Seen { found: vec![false; columns.len()], others: Vec::new(), any: false };
        Self { columns, seen: RefCell::new(seen) }
    }

    /// Hands on the texts of a record.
    fn take(
        &self,
        values: Values,
        document: &mut Document<'_>,
        error: impl Fn(String) -> Error,
    ) -> Result<()> {
        for (number, (name, value)) in self.columns.iter().zip(&values).enumerate() {
            document.column(number);
            if !texts(value, document)? {
                return Err(error(format!("`{name}` is neither a string nor a list of strings")));
            }
        }
        document.close()
    }

    /// An error if no record has one of the columns.
    fn check(&self, path: &Path) -> Result<()> {
        let seen = self.seen.borrow();
        let missing = self.columns.iter().zip(&seen.found).find(|(_, found)| !**found);
        let Some((name, _)) = missing.filter(|_| seen.any) else { return Ok(()) };
        let found = self.columns.iter().zip(&seen.found).filter(|(_, found)| **found).map(|(name, _)| name);
        let all: Vec<&String> = found.chain(&seen.others).collect();
        let problem =
            format!("no record has the field `{name}`; the records have {all:?}: choose with --columns");
        Err(Error::file(path, problem))
    }
}

/// Hands on a string, or the strings of a list as `datasets` would store them; false for anything
/// else.
fn texts(value: &Value, document: &mut Document<'_>) -> Result<bool> {
    match value {
        Value::String(text) => document.text(text)?,
        Value::Null => {}
        Value::Array(items) => {
            for item in items {
                if !texts(item, document)? {
                    return Ok(false);
                }
            }
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Reads one object, of which the other fields are skipped unseen.
#[derive(Clone, Copy)]
struct Record<'a> {
    fields: &'a Fields<'a>,
    /// Whether a string may stand for an object with a field `text`, as in an array of strings.
    or_text: bool,
}

impl<'de> DeserializeSeed<'de> for Record<'_> {
    type Value = Values;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Values, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Record<'_> {
    type Value = Values;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Values, E> {
        let columns = self.fields.columns;
        if !self.or_text || columns != ["text"] {
            return Err(E::invalid_type(serde::de::Unexpected::Str(text), &self));
        }
        let mut seen = self.fields.seen.borrow_mut();
        (seen.any, seen.found) = (true, vec![true]);
        Ok(vec![Value::from(text)])
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Values, A::Error> {
        let columns = self.fields.columns;
        let mut values = vec![Value::Null; columns.len()];
        let mut seen = self.fields.seen.borrow_mut();
        seen.any = true;
        while let Some(key) = object.next_key::<String>()? {
            match columns.iter().position(|name| *name == key) {
                Some(index) => {
                    let value: Value = object.next_value()?;
                    // A column may have been asked for twice.
                    for (index, _) in columns.iter().enumerate().skip(index).filter(|(_, name)| **name == key)
                    {
                        seen.found[index] = true;
                        values[index] = value.clone();
                    }
                }
                None => {
                    object.next_value::<IgnoredAny>()?;
                    if seen.others.len() < NAMES && !seen.others.contains(&key) {
                        seen.others.push(key);
                    }
                }
            }
        }
        Ok(values)
    }
}

/// Hands on the objects of an array one by one.
struct Objects<'a, 'd> {
    path: &'a Path,
    fields: &'a Fields<'a>,
    document: &'a mut Document<'d>,
    allowance: Allowance,
    number: u64,
    /// What `serde` cannot carry.
    failure: Option<Error>,
}

impl Objects<'_, '_> {
    fn object(&mut self, values: Values) -> Result<()> {
        self.allowance.renew();
        self.number += 1;
        let (path, number) = (self.path, self.number);
        self.fields.take(values, self.document, |p| Error::file(path, format!("object {number}: {p}")))
    }
}

impl<'de> Visitor<'de> for &mut Objects<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        while let Some(values) = array.next_element_seed(Record { fields: self.fields, or_text: true })? {
            if let Err(error) = self.object(values) {
                self.failure = Some(error);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}
