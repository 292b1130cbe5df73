//! Every op, with the bytes it moves, its floating-point operations, and its share of what the machine can do.
//!
//! `cargo bench --bench ops` runs the CPU backend at the sizes of `small` (N = 1,024 tokens), against bounds measured first: a large
//! matrix product, and a copy that does not fit the caches. `-- --device cuda` runs one training step of small + small (N = 16,384) on a
//! GPU instead, each kernel timed by events after the L2 cache was flushed, against 770 TFLOP/s and 4.3 TB/s (an H200).
#![allow(missing_docs)]

mod cpu;
mod cuda;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments
        .iter()
        .position(|a| a == "--device")
        .and_then(|i| arguments.get(i + 1))
        .map(String::as_str)
    {
        None | Some("cpu") => cpu::run(),
        Some("cuda") => cuda::run(),
        Some(other) => panic!("`{other}` is no device; cpu and cuda are"),
    }
}
