//! The fused training ops.
