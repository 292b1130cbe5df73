//! The one integration-test binary.
#![allow(missing_docs)]
