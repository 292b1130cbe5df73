//! The one integration-test binary; a module a subject.
#![allow(missing_docs)]

mod benches;
mod checkpoint;
mod cli;
mod corpus;
mod corpus_runs;
mod data;
mod device;
#[cfg(feature = "simt")]
mod emulated;
#[cfg(unix)]
mod faults;
mod golden;
mod hostile;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "simt")]
mod kernels;
mod memory;
#[cfg(unix)]
mod micro_batch;
mod models;
#[cfg(unix)]
mod numbers;
mod nvrtc;
mod ops;
mod outputs;
#[cfg(unix)]
mod place;
mod prepare;
mod recorded;
mod report;
mod starting_points;
mod steps;
mod support;
mod whole;
