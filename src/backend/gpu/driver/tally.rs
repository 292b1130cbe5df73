//! A device that does nothing but count: what a step launches and moves, without a GPU.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::{Driver, Gemm, Launch, Region};
use crate::Result;

/// What was asked of the device under one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Launches: kernels, products and fills.
    pub kernels: u64,
    /// Device memory read and written.
    pub bytes: u64,
    /// Floating-point operations of matrix products.
    pub flops: u64,
}

/// What was asked of the device, by kernel; the library's products are called `product`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(pub BTreeMap<&'static str, Asked>);

impl Tally {
    /// All of it.
    pub fn total(&self) -> Asked {
        self.0.values().fold(Asked::default(), |sum, one| Asked {
            kernels: sum.kernels + one.kernels,
            bytes: sum.bytes + one.bytes,
            flops: sum.flops + one.flops,
        })
    }
}

/// The device.
#[derive(Debug, Default)]
pub struct Counter {
    tally: RefCell<Tally>,
    next: Cell<u64>,
}

impl Counter {
    /// What was asked for since the last call.
    pub fn take(&self) -> Tally {
        self.tally.take()
    }

    fn add(&self, name: &'static str, bytes: u64, flops: u64) {
        let mut tally = self.tally.borrow_mut();
        let asked = tally.0.entry(name).or_default();
        asked.kernels += 1;
        asked.bytes += bytes;
        asked.flops += flops;
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
        self.add("fill", region.bytes as u64, 0);
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.add(launch.kernel, launch.bytes, 0);
        Ok(())
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        self.add("product", gemm.bytes(), gemm.flops());
        Ok(())
    }

    fn has_library(&self) -> bool {
        true
    }

    fn description(&self) -> String {
        "a device that only counts".to_owned()
    }
}
