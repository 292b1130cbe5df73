//! Text to batches: source → tokenizer → shard → split → pack → order → mask → loader.

mod batch;
pub mod loader;
pub mod mask;
pub mod order;
pub mod pack;
pub mod shard;
pub mod source;
pub mod split;
pub mod tokenizer;

pub use batch::Batch;
