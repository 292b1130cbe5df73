//! How many rows of a step are computed at a time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `--micro-batch N|auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Value", try_from = "Value")]
pub enum MicroBatch {
    /// So many.
    Rows(usize),
    /// What the device does fastest.
    Auto,
}

impl FromStr for MicroBatch {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(rows)) => Ok(Self::Rows(rows)),
            _ => Err(format!("`{text}` is neither a number of rows nor `auto`")),
        }
    }
}

impl fmt::Display for MicroBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows(rows) => rows.fmt(f),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl From<MicroBatch> for Value {
    fn from(value: MicroBatch) -> Self {
        match value {
            MicroBatch::Rows(rows) => rows.into(),
            MicroBatch::Auto => "auto".into(),
        }
    }
}

impl TryFrom<Value> for MicroBatch {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        match &value {
            Value::String(text) => text.parse(),
            other => other.to_string().parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written() {
        for (text, value) in [("auto", MicroBatch::Auto), ("16", MicroBatch::Rows(16))] {
            assert_eq!(text.parse(), Ok(value));
            assert_eq!(value.to_string(), text);
            let json = serde_json::to_string(&value).unwrap();
            assert_eq!(serde_json::from_str::<MicroBatch>(&json).unwrap(), value, "{json}");
        }
        for wrong in ["", "-1", "2.5", "all"] {
            assert!(wrong.parse::<MicroBatch>().is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<MicroBatch>("2.5").is_err());
    }
}
