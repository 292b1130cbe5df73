//! A device that does nothing but count: what a step launches and moves, without a GPU.

use std::cell::Cell;

use super::{Driver, Gemm, Launch, Region};
use crate::Result;

/// What was asked of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Kernels, products and fills.
    pub kernels: u64,
    /// Device memory read and written.
    pub bytes: u64,
    /// Floating-point operations of matrix products.
    pub flops: u64,
}

/// The device.
#[derive(Debug, Default)]
pub struct Counter {
    tally: Cell<Tally>,
    next: Cell<u64>,
}

impl Counter {
    /// What was asked for since the last call.
    pub fn take(&self) -> Tally {
        self.tally.take()
    }

    fn add(&self, bytes: u64, flops: u64) {
        let t = self.tally.get();
        self.tally.set(Tally { kernels: t.kernels + 1, bytes: t.bytes + bytes, flops: t.flops + flops });
    }
}

impl Driver for Counter {
    fn alloc(&self, bytes: usize) -> Result<Region> {
        // Addresses that are never followed, apart from each other.
        let address = self.next.get() + 256;
        self.next.set(address + bytes.next_multiple_of(256) as u64);
        Ok(Region { address, bytes })
    }

    fn free(&self, _: Region) {}

    fn upload(&self, _: &[u8], _: Region) -> Result<()> {
        Ok(())
    }

    fn download(&self, _: Region, to: &mut [u8]) -> Result<()> {
        to.fill(0);
        Ok(())
    }

    fn stage(&self, _: usize, _: &[(&[u8], Region)]) -> Result<()> {
        Ok(())
    }

    fn begin(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn fetch(&self, _: Region) -> Result<u64> {
        Ok(0)
    }

    fn collect(&self, _: u64, to: &mut [u8]) -> Result<()> {
        to.fill(0);
        Ok(())
    }

    fn fill(&self, region: Region, _: u8) -> Result<()> {
        self.add(region.bytes as u64, 0);
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.add(launch.bytes, 0);
        Ok(())
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        self.add(gemm.bytes(), gemm.flops());
        Ok(())
    }

    fn description(&self) -> String {
        "a device that only counts".to_owned()
    }
}
