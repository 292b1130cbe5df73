//! Elektron pre-trains ELECTRA.

pub mod backend;
pub mod cli;
pub mod config;
pub mod data;
pub mod error;
pub mod fsutil;
pub mod model;
pub mod rng;
pub mod train;

pub use error::{Error, Result};
