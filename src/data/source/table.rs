//! Tables of text with a header: a record is a document.

use std::io::Read;
use std::path::Path;

use super::Document;
use super::decompress::Budget;
use crate::{Error, Result};

pub(super) fn read_csv(
    path: &Path,
    input: impl Read,
    columns: &[String],
    document: &mut Document<'_>,
) -> Result<()> {
    read(path, input, columns, document, "csv", &csv::ReaderBuilder::new())
}

/// As IANA describes it: nothing is quoted, so a quotation mark is only that.
pub(super) fn read_tsv(
    path: &Path,
    input: impl Read,
    columns: &[String],
    document: &mut Document<'_>,
) -> Result<()> {
    read(path, input, columns, document, "tsv", csv::ReaderBuilder::new().delimiter(b'\t').quoting(false))
}

/// Line ends that no field ends with.
const TAIL: &str = "\n\r\r\n\r\r\r\n\n\r";

fn read(
    path: &Path,
    input: impl Read,
    columns: &[String],
    document: &mut Document<'_>,
    name: &str,
    builder: &csv::ReaderBuilder,
) -> Result<()> {
    // A quotation mark that is never closed makes all the rest of a file one record, whose last
    // field then ends with these line ends; otherwise they are blank lines, which are passed over.
    let input = input.chain(TAIL.as_bytes());
    let (input, budget) = Budget::new(input);
    let mut reader = builder.from_reader(input);
    let line_of = |e: &csv::Error| e.position().map_or(1, csv::Position::line);
    let broken = |e: csv::Error| {
        let problem = format!("this is not valid {name} in UTF-8 ({e}): mend or remove the record");
        Error::line(path, line_of(&e), problem)
    };
    let unclosed = |record: &csv::StringRecord, line: u64| {
        let problem = "a quotation mark is never closed from here on: close it, or double those \
                       within a field";
        match name == "csv" && record.iter().next_back().is_some_and(|field| field.ends_with(TAIL)) {
            true => Err(Error::line(path, line, problem)),
            false => Ok(()),
        }
    };
    let header = reader.headers().map_err(broken)?.clone();
    unclosed(&header, 1)?;
    if header.iter().all(|title| title.trim().is_empty()) {
        // Blank lines alone.
        return Ok(());
    }
    let expected = if name == "csv" { "csv needs commas" } else { "tsv needs tabs" };
    let column = |name: &String| {
        header.iter().position(|title| title == name).ok_or_else(|| {
            let titles: Vec<&str> = header.iter().collect();
            let problem = match other_delimiter(&titles, columns) {
                Some((found, advice)) => format!(
                    "there is no column `{name}`, since the whole header is one column, {titles:?}: \
                     this file seems to be separated by {found}, and {expected}: {advice}"
                ),
                None => {
                    format!("there is no column `{name}`; the header has {titles:?}: choose with --columns")
                }
            };
            Error::line(path, 1, problem)
        })
    };
    let columns = columns.iter().map(column).collect::<Result<Vec<_>>>()?;
    let mut record = csv::StringRecord::new();
    loop {
        budget.renew();
        if !reader.read_record(&mut record).map_err(broken)? {
            return Ok(());
        }
        unclosed(&record, record.position().map_or(0, csv::Position::line))?;
        for (number, &column) in columns.iter().enumerate() {
            document.column(number);
            document.text(record.get(column).unwrap_or_default())?;
        }
        document.close()?;
    }
}

/// The delimiter that seems to separate a header of a single column, and what to do, if the wanted
/// columns are parts of that column.
fn other_delimiter(titles: &[&str], columns: &[String]) -> Option<(&'static str, &'static str)> {
    const DELIMITERS: [(char, &str, &str); 4] = [
        (';', "semicolons (`;`)", "write it again, separated by commas"),
        ('\t', "tabs", "let its name end in .tsv"),
        ('|', "vertical bars (`|`)", "write it again, separated by commas"),
        (',', "commas", "let its name end in .csv"),
    ];
    let [title] = titles else { return None };
    let is_part = |delimiter: char, name: &String| {
        title.split(delimiter).any(|part| part.trim().trim_matches('"') == name)
    };
    let fits = |&(delimiter, ..): &(char, _, _)| {
        title.contains(delimiter) && columns.iter().all(|name| is_part(delimiter, name))
    };
    DELIMITERS.into_iter().find(fits).map(|(_, name, advice)| (name, advice))
}
