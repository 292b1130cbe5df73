//! Record batches as paragraphs, from either format.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use arrow_schema::{DataType, Field, FieldRef, Fields, Schema};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::Compression;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};

use super::super::Document;
use super::buffers::{check_buffers, stream_of};
use super::pages::check_pages;
use crate::model::hf::map_file;
use crate::{Error, Result};

/// Rows of a Parquet file decoded at once.
const ROWS: usize = 256;

pub(in super::super) fn read_parquet(
    path: &Path,
    columns: &[String],
    document: &mut Document<'_>,
) -> Result<()> {
    guarded(path, || {
        let broken =
            |e| Error::file(path, format!("this is not a whole Parquet file that can be read ({e})"));
        let file = Bytes::from_owner(map_file(path)?);
        // The writer's own Arrow schema would only name other ways to lay out the same texts.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let plain = ArrowReaderMetadata::load(&file, options.clone()).map_err(broken)?;
        check_codecs(path, plain.metadata())?;
        let chosen = text_columns(path, plain.schema(), columns)?;
        let fields = plain.schema().fields().iter().enumerate();
        let views: Fields =
            fields.map(|(i, f)| if chosen.contains(&i) { as_view(f) } else { f.clone() }).collect();
        let options = options.with_schema(Arc::new(Schema::new(views)));
        let metadata = ArrowReaderMetadata::try_new(plain.metadata().clone(), options).map_err(broken)?;
        let mask = ProjectionMask::roots(metadata.parquet_schema(), chosen);
        check_pages(&file, metadata.metadata(), &mask).map_err(|problem| {
            Error::file(path, format!("this Parquet file is damaged ({problem}): copy or write it again"))
        })?;
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata)
            .with_projection(mask)
            .with_batch_size(ROWS)
            .build()
            .map_err(broken)?;
        for batch in reader {
            let batch =
                batch.map_err(|e| Error::file(path, format!("this Parquet file is damaged ({e})")))?;
            // The reader gives columns in the order of the file.
            rows(path, &batch, &text_columns(path, &batch.schema(), columns)?, document)?;
        }
        Ok(())
    })
}

pub(in super::super) fn read_arrow(
    path: &Path,
    columns: &[String],
    document: &mut Document<'_>,
) -> Result<()> {
    guarded(path, || {
        let file = Bytes::from_owner(map_file(path)?);
        let broken = |e| Error::file(path, format!("this is not whole Arrow data that can be read ({e})"));
        let stream = stream_of(&file).map_err(|problem| {
            Error::file(path, format!("this Arrow file is damaged ({problem}): copy or write it again"))
        })?;
        check_buffers(&file[stream.clone()]).map_err(|problem| {
            Error::file(path, format!("this Arrow data cannot be read ({problem}): write it again"))
        })?;
        let (mut decoder, mut rest) = (StreamDecoder::new(), Buffer::from(file.slice(stream)));
        let mut chosen = None;
        while !rest.is_empty() {
            let batch = decoder.decode(&mut rest).map_err(broken)?;
            if let (None, Some(schema)) = (&chosen, decoder.schema()) {
                chosen = Some(text_columns(path, &schema, columns)?);
            }
            if let (Some(batch), Some(chosen)) = (batch, &chosen) {
                rows(path, &batch, chosen, document)?;
            }
        }
        decoder.finish().map_err(broken)
    })
}

/// An error that names a compression that cannot be read.
fn check_codecs(path: &Path, metadata: &ParquetMetaData) -> Result<()> {
    let mut chunks = metadata.row_groups().iter().flat_map(RowGroupMetaData::columns);
    match chunks.any(|chunk| chunk.compression() == Compression::LZO) {
        false => Ok(()),
        true => Err(Error::file(
            path,
            "this Parquet file is compressed with LZO, which is not supported: write it with zstd \
             or snappy, for example by `pyarrow.parquet.write_table(table, path, compression=\"zstd\")`",
        )),
    }
}

/// The libraries report damage as errors. Where one of their assertions is met first, that is an error too, since a
/// file from elsewhere must not end the program; nothing that was being read is used afterwards.
fn guarded(path: &Path, read: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(Error::file(path, "this file is damaged: copy or write it again")))
}

/// Where the chosen columns stand.
fn text_columns(path: &Path, schema: &Schema, columns: &[String]) -> Result<Vec<usize>> {
    let position = |name: &String| {
        let found = schema.fields().iter().position(|field| field.name() == name);
        let problem = match found {
            Some(index) if is_text(schema.field(index).data_type()) => return Ok(index),
            Some(index) => format!("column `{name}` holds {}, not text", schema.field(index).data_type()),
            None => format!("there is no column `{name}`"),
        };
        let all: Vec<String> =
            schema.fields().iter().map(|f| format!("{} ({})", f.name(), f.data_type())).collect();
        Err(Error::file(path, format!("{problem}; the file has {}: choose with --columns", all.join(", "))))
    };
    columns.iter().map(position).collect()
}

fn is_text(kind: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Dictionary, FixedSizeList, LargeBinary, LargeList, LargeUtf8, List, Null, Utf8,
        Utf8View,
    };
    match kind {
        // Nothing but null: of no column can be said more where every row is empty.
        Null => true,
        // Some writers do not mark bytes as text.
        Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView => true,
        Dictionary(_, values) => is_text(values),
        List(item) | LargeList(item) | FixedSizeList(item, _) => is_text(item.data_type()),
        _ => false,
    }
}

/// A field whose texts are views of the pages that hold them.
fn as_view(field: &FieldRef) -> FieldRef {
    let kind = match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary => DataType::BinaryView,
        DataType::List(item) => DataType::List(as_view(item)),
        other => other.clone(),
    };
    Arc::new(Field::clone(field).with_data_type(kind))
}

fn rows(path: &Path, batch: &RecordBatch, chosen: &[usize], document: &mut Document<'_>) -> Result<()> {
    for row in 0..batch.num_rows() {
        for (number, &column) in chosen.iter().enumerate() {
            document.column(number);
            texts(path, batch.column(column), row, document)?;
        }
        document.close()?;
    }
    Ok(())
}

/// The text or texts of a row; nothing where it is null.
fn texts(path: &Path, array: &dyn Array, row: usize, document: &mut Document<'_>) -> Result<()> {
    if array.is_null(row) {
        return Ok(());
    }
    let mut bytes = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => document.text(text),
        Err(_) => Err(Error::file(path, "a text column holds bytes that are not UTF-8: convert the file")),
    };
    match array.data_type() {
        DataType::Null => Ok(()),
        DataType::Utf8 => document.text(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => document.text(array.as_string::<i64>().value(row)),
        DataType::Utf8View => document.text(array.as_string_view().value(row)),
        DataType::Binary => bytes(array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => bytes(array.as_binary::<i64>().value(row)),
        DataType::BinaryView => bytes(array.as_binary_view().value(row)),
        DataType::List(_) => each(path, &array.as_list::<i32>().value(row), document),
        DataType::LargeList(_) => each(path, &array.as_list::<i64>().value(row), document),
        DataType::FixedSizeList(..) => each(path, &array.as_fixed_size_list().value(row), document),
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            match key(dictionary.keys(), row).filter(|&key| key < dictionary.values().len()) {
                Some(key) => texts(path, dictionary.values(), key, document),
                None => Err(Error::file(path, "a dictionary has no such key: the file is damaged")),
            }
        }
        other => Err(Error::file(path, format!("a text column holds {other}"))),
    }
}

fn each(path: &Path, items: &dyn Array, document: &mut Document<'_>) -> Result<()> {
    (0..items.len()).try_for_each(|item| texts(path, items, item, document))
}

fn key(keys: &dyn Array, row: usize) -> Option<usize> {
    match keys.data_type() {
        DataType::Int8 => keys.as_primitive::<Int8Type>().value(row).try_into().ok(),
        DataType::Int16 => keys.as_primitive::<Int16Type>().value(row).try_into().ok(),
        DataType::Int32 => keys.as_primitive::<Int32Type>().value(row).try_into().ok(),
        DataType::Int64 => keys.as_primitive::<Int64Type>().value(row).try_into().ok(),
        DataType::UInt8 => Some(keys.as_primitive::<UInt8Type>().value(row).into()),
        DataType::UInt16 => Some(keys.as_primitive::<UInt16Type>().value(row).into()),
        DataType::UInt32 => keys.as_primitive::<UInt32Type>().value(row).try_into().ok(),
        DataType::UInt64 => keys.as_primitive::<UInt64Type>().value(row).try_into().ok(),
        _ => None,
    }
}
