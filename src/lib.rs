//! Elektron pre-trains ELECTRA: replaced token detection with hand-written forward and backward passes.
//!
//! [`data`] turns text into packed batches, [`model`] is generator, discriminator and their joint objective over a
//! [`backend`], [`train`] the loop around it, [`cli`] the program. Dependencies point one way: `cli → train → model →
//! backend`; `data` and `model` meet in [`data::Batch`] alone.
//!
//! ```no_run
//! use elektron::model::hf::Checkpoint;
//! use elektron::model::{PaddedInput, TokenDetection};
//!
//! # fn main() -> elektron::Result<()> {
//! let (generator, discriminator) = (Checkpoint::load("g".as_ref())?, Checkpoint::load("d".as_ref())?);
//! let mut model = TokenDetection::new(generator, discriminator, None, 50.0)?;
//! let (input_ids, labels) = (vec![2, 4, 17, 3], vec![-100, 9, -100, -100]);
//! let output = model.forward(&PaddedInput { batch: 1, seq_len: 4, input_ids, labels, ..Default::default() })?;
//! model.backward()?;
//! println!("{} {}", output.loss, model.named_gradients()?.len());
//! model.save_pretrained("out".as_ref())
//! # }
//! ```

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod backend;
pub mod cli;
pub mod config;
pub mod console;
pub mod data;
pub mod error;
pub mod fsutil;
mod git_lfs;
pub mod hub;
pub mod model;
pub mod report;
pub mod rng;
pub mod suggest;
pub mod train;

pub use error::{Error, Result};

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
