//! Text to batches: source → dedup → tokenizer → shard → split → pack → order → mask → loader.

mod batch;
pub mod dedup;
pub mod inspect;
pub mod loader;
pub mod mask;
pub mod order;
pub mod pack;
pub mod prepare;
mod rounds;
pub mod shard;
mod shard_writer;
pub mod source;
pub mod split;
pub mod tokenizer;
pub mod unknown;
mod vocabulary;

pub use batch::{Batch, Masking};
