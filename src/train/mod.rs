//! The training loop and what surrounds it.

pub mod optim;
