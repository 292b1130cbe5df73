//! The one integration-test binary; a module a subject.
#![allow(missing_docs)]

mod benches;
mod checkpoint;
mod cli;
mod convention;
mod corpus;
mod corpus_runs;
mod data;
mod device;
#[cfg(feature = "simt")]
mod emulated;
mod epochs;
#[cfg(unix)]
mod faults;
mod fill;
mod folders;
mod golden;
mod hostile;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "simt")]
mod kernels;
#[cfg(unix)]
mod learning;
mod memory;
mod metrics;
#[cfg(unix)]
mod micro_batch;
mod mlm;
mod models;
mod nothing_masked;
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
mod resumes;
mod schedules;
mod starting_points;
mod steps;
#[cfg(target_os = "linux")]
mod streams;
mod support;
mod token_ids;
mod tokenizers;
mod vocabularies;
mod whole;
