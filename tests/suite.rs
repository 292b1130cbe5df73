//! The one integration-test binary; a module a subject.
#![allow(missing_docs)]

mod checkpoint;
mod cli;
mod corpus;
mod corpus_runs;
mod data;
mod device;
#[cfg(feature = "simt")]
mod emulated;
mod golden;
#[cfg(feature = "simt")]
mod kernels;
mod memory;
mod nvrtc;
mod ops;
mod steps;
mod support;
mod whole;
