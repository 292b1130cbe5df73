//! Text to batches: source → tokenizer → shard → pack → mask → loader.

mod batch;
pub mod loader;
pub mod mask;
pub mod pack;
pub mod shard;
pub mod source;
pub mod tokenizer;

pub use batch::{Batch, Masking};
