//! Products by `kernels/gemm.cu`: for machines without cuBLASLt, and shapes that it refuses.

use super::{Driver, Gemm, Launch};
use crate::{Error, Result};

const TILE: usize = 64;
const STEP: usize = 32;

/// Multiplies on `driver` with the project's own kernel.
pub fn own_gemm<D: Driver>(driver: &D, g: &Gemm) -> Result<()> {
    let size = |n: usize| {
        u32::try_from(n)
            .map_err(|_| Error::device(format!("a matrix of {n} rows exceeds what the kernels count")))
    };
    let flags = u32::from(g.a.transposed)
        | u32::from(g.b.transposed) << 1
        | u32::from(g.exact) << 2
        | u32::from(g.accumulate) << 3;
    let grid = [size(g.n.div_ceil(TILE))?, size(g.m.div_ceil(TILE))?, 1];
    if grid[1] > 65_535 {
        return Err(Error::device(format!("a product of {} rows exceeds a grid: use a smaller batch", g.m)));
    }
    let shared_bytes = 2 * TILE * (STEP * g.precision.bytes() + 16);
    driver.launch(&Launch {
        file: "gemm",
        kernel: "gemm",
        precision: g.precision,
        grid,
        threads: 128,
        shared_bytes: size(shared_bytes)?,
        arguments: &[
            g.a.at.into(),
            g.b.at.into(),
            g.c.into(),
            g.bias.into(),
            size(g.m)?.into(),
            size(g.n)?.into(),
            size(g.k)?.into(),
            flags.into(),
        ],
        bytes: g.bytes(),
    })
}
