//! The thread that writes: tokens into shards, whole shards into the index.

use std::path::Path;
use std::sync::mpsc::Receiver;

use super::index::{Index, IndexWriter, Stamp};
use super::reader::{FileEnd, Found, shard_name};
use crate::data::rounds::Marks;
use crate::data::shard::{Header, Shard};
use crate::data::shard_writer::ShardWriter;
use crate::data::source::TextSource;
use crate::data::tokenizer::Tokenizer;
use crate::{Error, Result};

/// In the order of the text.
pub(super) enum Output {
    Found(Box<Found>),
    /// Token ids of paragraphs; what deduplication keeps and counts.
    Tokens {
        paragraphs: Vec<(Vec<u32>, Marks)>,
        keys: Vec<u64>,
        dropped: u64,
        long: u64,
    },
    Cut(Box<Header>),
    FileEnd(FileEnd),
}

/// Writes until the channel closes. Returns all shards; one that was not cut is left out.
pub(super) fn write(
    source: &TextSource,
    dir: &Path,
    tokenizer: &Tokenizer,
    index: &Index,
    outputs: &Receiver<Output>,
) -> Result<Vec<Shard>> {
    let create = || ShardWriter::create(dir, tokenizer.vocab_size() > 1 << 16, tokenizer.special().unk);
    let mut index = IndexWriter::new(dir, index);
    let (mut shards, mut names) = (Vec::new(), Vec::new());
    let mut open: Option<ShardWriter> = None;
    for output in outputs {
        match output {
            Output::Found(found) => {
                index.whole(found.name.clone(), found.stamp);
                names.push(found.name);
                shards.push(found.shard);
            }
            Output::Tokens { paragraphs, keys, dropped, long } => {
                let writer = match &mut open {
                    Some(writer) => writer,
                    None => open.insert(create()?),
                };
                for (ids, marks) in &paragraphs {
                    writer.paragraph(ids, *marks).map_err(Error::io("write a shard in", dir))?;
                }
                writer.deduplicated(&keys, dropped, long);
            }
            Output::Cut(place) => {
                let name = shard_name(&place.start, &place.end);
                let path = dir.join(&name);
                let writer = open.take().map_or_else(create, Ok)?;
                writer.finish(&path, &place)?;
                shards.push(Shard::open(&path)?);
                index.whole(name.clone(), Stamp::of(&path)?);
                index.settle();
                names.push(name);
            }
            Output::FileEnd(end) => {
                let names = std::mem::take(&mut names);
                if let Some((reading, stamp)) = end.known_as {
                    index.read(&source.files()[end.file], reading, stamp, names);
                }
            }
        }
    }
    index.settle();
    Ok(shards)
}
