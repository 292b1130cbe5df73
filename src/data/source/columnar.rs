//! Parquet files and Arrow's streams and files: a row is a document, a text column or list of texts
//! its paragraphs.
//!
//! The file is memory-mapped and read a few hundred rows at a time; texts are views of pages, so a dictionary's are
//! not copied for every row. The libraries check what headers say against the bytes there are, except the sizes of
//! what is compressed, which [`pages`] and [`buffers`] bound before they are believed.

#[cfg(feature = "parquet")]
mod buffers;
#[cfg(feature = "parquet")]
mod pages;
#[cfg(feature = "parquet")]
mod read;

#[cfg(feature = "parquet")]
pub(super) use read::{read_arrow, read_parquet};

#[cfg(not(feature = "parquet"))]
pub(super) use absent::{read_arrow, read_parquet};

#[cfg(not(feature = "parquet"))]
mod absent {
    use std::path::Path;

    use super::super::Document;
    use crate::{Error, Result};

    pub(in super::super) fn read_parquet(path: &Path, _: &[String], _: &mut Document<'_>) -> Result<()> {
        Err(Error::file(path, "this elektron was built without the feature `parquet`: build it with"))
    }

    pub(in super::super) use read_parquet as read_arrow;
}
