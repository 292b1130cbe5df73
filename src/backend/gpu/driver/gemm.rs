//! Products by `kernels/gemm.cu`: for machines without cuBLASLt, and shapes that it refuses.

use super::{Driver, Gemm, Launch, Precision};
use crate::{Error, Result};

/// Elements along k of a stage, and stages: `STEP` and `STAGES` of the kernel.
const STEP: usize = 32;

fn stages(precision: Precision) -> usize {
    if precision.bytes() == 2 { 4 } else { 2 }
}

/// What a block computes of C: a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 64 × 64, for results with few tiles.
    Small,
    /// 128 × 128: half the loads for each multiplication.
    Large,
}

impl Tile {
    /// Large tiles once there are more than this many of them: two for each multiprocessor of the largest GPUs.
    const ENOUGH: usize = 264;

    /// The tile for C (m, n). Results do not depend on it: each element is summed in the same order.
    pub fn of(m: usize, n: usize) -> Self {
        if Self::Large.count(m, n) >= Self::ENOUGH { Self::Large } else { Self::Small }
    }

    /// Rows, and columns.
    pub fn side(self) -> usize {
        match self {
            Self::Small => 64,
            Self::Large => 128,
        }
    }

    /// How many C (m, n) has.
    pub fn count(self, m: usize, n: usize) -> usize {
        m.div_ceil(self.side()) * n.div_ceil(self.side())
    }

    /// Of a kernel's two names the one for this tile.
    pub fn name(self, [small, large]: [&'static str; 2]) -> &'static str {
        match self {
            Self::Small => small,
            Self::Large => large,
        }
    }

    /// Threads of a block: two warps down, one for each 32 columns.
    pub fn threads(self) -> u32 {
        2 * self.side() as u32
    }

    /// Columns of tiles, rows of tiles.
    pub fn grid(self, m: usize, n: usize) -> Result<[u32; 3]> {
        let tiles = |len: usize| u32::try_from(len.div_ceil(self.side())).unwrap_or(u32::MAX);
        if tiles(m) > 65_535 {
            return Err(Error::device(format!("a product of {m} rows exceeds a grid: use a smaller batch")));
        }
        Ok([tiles(n), tiles(m), 1])
    }

    /// The stages, or the tile of results that takes their place: what the larger layout needs.
    pub fn shared_bytes(self, precision: Precision) -> usize {
        let bytes = precision.bytes();
        let along = self.side() * (STEP * bytes + 16);
        let across = STEP * (self.side() * bytes + 16);
        (stages(precision) * 2 * along.max(across)).max(self.side() * (self.side() + 8) * 4)
    }
}

/// Multiplies on `driver` with the project's own kernel.
pub fn own_gemm<D: Driver>(driver: &D, g: &Gemm) -> Result<()> {
    own_gemm_in(driver, g, Tile::of(g.m, g.n))
}

/// The same in tiles of one's choice.
pub fn own_gemm_in<D: Driver>(driver: &D, g: &Gemm, tile: Tile) -> Result<()> {
    let size = |n: usize| {
        u32::try_from(n)
            .map_err(|_| Error::device(format!("a matrix of {n} rows exceeds what the kernels count")))
    };
    let names = match (g.a.transposed, g.b.transposed) {
        (false, true) => ["gemm_nt_64", "gemm_nt_128"],
        (false, false) => ["gemm_nn_64", "gemm_nn_128"],
        (true, false) => ["gemm_tn_64", "gemm_tn_128"],
        (true, true) => return Err(Error::device("no kernel multiplies two transposed matrices")),
    };
    driver.launch(&Launch {
        file: "gemm",
        kernel: tile.name(names),
        precision: g.precision,
        grid: tile.grid(g.m, g.n)?,
        threads: tile.threads(),
        shared_bytes: size(tile.shared_bytes(g.precision))?,
        arguments: &[
            g.a.at.into(),
            g.b.at.into(),
            g.c.into(),
            g.bias.into(),
            size(g.m)?.into(),
            size(g.n)?.into(),
            size(g.k)?.into(),
            size(g.a.pitch)?.into(),
            size(g.b.pitch)?.into(),
            size(g.pitch)?.into(),
            (u32::from(g.exact) | u32::from(g.accumulate) << 1).into(),
        ],
        bytes: g.bytes(),
    })
}
