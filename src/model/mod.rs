//! ELECTRA: generator, discriminator and the joint objective.

pub mod config;
pub mod hf;
