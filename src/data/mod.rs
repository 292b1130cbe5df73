//! Text to batches: source → dedup → tokenizer → shard → pack → mask → loader.

mod batch;
pub mod dedup;
pub mod inspect;
pub mod loader;
pub mod mask;
pub mod pack;
pub mod prepare;
mod rounds;
pub mod shard;
mod shard_writer;
pub mod source;
pub mod tokenizer;
mod vocabulary;

pub use batch::{Batch, Masking};
