//! The one integration-test binary; a module a subject.
#![allow(missing_docs)]

mod checkpoint;
mod cli;
mod data;
mod device;
#[cfg(feature = "simt")]
mod emulated;
mod golden;
#[cfg(feature = "simt")]
mod kernels;
mod nvrtc;
mod ops;
mod outputs;
mod report;
mod steps;
mod support;
mod whole;
