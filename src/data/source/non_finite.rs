//! JSON as Python writes it: NaN, Infinity and -Infinity, which the standard does not know, become
//! null.

use std::io::{self, BufRead, Read};

/// The names, and how much of one has been read.
const NAMES: [&[u8]; 2] = [b"NaN", b"Infinity"];

/// The state of replacing numbers within JSON.
#[derive(Default)]
struct Filter {
    in_string: bool,
    escaped: bool,
    /// A minus sign that is held back.
    minus: bool,
    /// Bytes of a name that are still to come.
    name: &'static [u8],
    replaced: bool,
}

impl Filter {
    fn pass(&mut self, bytes: &[u8], to: &mut Vec<u8>) {
        for &byte in bytes {
            if self.in_string {
                self.in_string = self.escaped || byte != b'"';
                self.escaped = !self.escaped && byte == b'\\';
                to.push(byte);
                continue;
            }
            if let Some((&next, rest)) = self.name.split_first() {
                self.name = rest;
                if byte == next {
                    continue;
                }
                // Not the name after all: what was passed on must not be JSON either.
                self.name = &[];
                to.push(b'!');
            }
            if let Some(name) = NAMES.iter().find(|name| name[0] == byte) {
                (self.minus, self.name, self.replaced) = (false, &name[1..], true);
                to.extend_from_slice(b"null");
                continue;
            }
            self.flush(to);
            self.in_string = byte == b'"';
            self.minus = byte == b'-';
            if !self.minus {
                to.push(byte);
            }
        }
    }

    fn flush(&mut self, to: &mut Vec<u8>) {
        if std::mem::take(&mut self.minus) {
            to.push(b'-');
        }
    }
}

/// The text with null in place of such numbers; `None` if there are none.
pub(super) fn without_non_finite(json: &str) -> Option<String> {
    let (mut filter, mut to) = (Filter::default(), Vec::with_capacity(json.len() + 8));
    filter.pass(json.as_bytes(), &mut to);
    filter.flush(&mut to);
    // A name that is cut short must not become a whole null.
    let whole = filter.replaced && filter.name.is_empty();
    whole.then(|| String::from_utf8(to).ok()).flatten()
}

/// The same of a stream.
pub(super) struct NonFinite<R> {
    input: R,
    filter: Filter,
    ready: Vec<u8>,
    at: usize,
}

impl<R: BufRead> NonFinite<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, filter: Filter::default(), ready: Vec::new(), at: 0 }
    }
}

impl<R: BufRead> Read for NonFinite<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.at == self.ready.len() {
            self.ready.clear();
            self.at = 0;
            let bytes = self.input.fill_buf()?;
            let read = bytes.len();
            if read == 0 {
                // A name that was cut short must not have become a null.
                if !std::mem::take(&mut self.filter.name).is_empty() {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the text ends within a number",
                    ));
                }
                self.filter.flush(&mut self.ready);
                if self.ready.is_empty() {
                    return Ok(0);
                }
                break;
            }
            self.filter.pass(bytes, &mut self.ready);
            self.input.consume(read);
        }
        let read = (&self.ready[self.at..]).read(to)?;
        self.at += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_become_null() {
        for (json, want) in [
            (r#"{"a":NaN,"b":-Infinity,"c":[Infinity,-1]}"#, Some(r#"{"a":null,"b":null,"c":[null,-1]}"#)),
            (r#"{"NaN":"-Infinity \\\" NaN","b":NaN}"#, Some(r#"{"NaN":"-Infinity \\\" NaN","b":null}"#)),
            (r#"{"a":"NaN","b":-5}"#, None),
            (r#"{"a":Na}"#, Some(r#"{"a":null!}"#)),
            (r#"{"a":NaN"#, Some(r#"{"a":null"#)),
            (r#"{"a":Inf"#, None),
        ] {
            assert_eq!(without_non_finite(json).as_deref(), want, "{json}");
            for chunk in [1, 2, 5, 100] {
                let input = io::BufReader::with_capacity(chunk, json.as_bytes());
                let mut out = String::new();
                let read = NonFinite::new(input).read_to_string(&mut out);
                match json.ends_with("Inf") {
                    true => assert!(read.is_err()),
                    false => assert_eq!(out, want.unwrap_or(json), "{json} by {chunk}"),
                }
            }
        }
    }
}
