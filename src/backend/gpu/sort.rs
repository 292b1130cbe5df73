//! Launches `kernels/sort.cu`.

use super::driver::{Argument, Driver, Region};
use super::{Gpu, Working, blocks, size};
use crate::Result;

const THREADS: u32 = 256;
const SCAN_THREADS: u32 = 1024;
/// Keys of a block.
const BLOCK: u32 = 2048;
/// Bits that a pass orders by, and what they can be.
const DIGIT_BITS: u32 = 8;
const DIGITS: usize = 1 << DIGIT_BITS;

/// Words of scratch for `n` keys.
pub(super) fn sort_counts(n: usize) -> usize {
    DIGITS * n.div_ceil(BLOCK as usize)
}

impl<D: Driver, W: Working> Gpu<D, W> {
    /// `n` keys below `below` in ascending order, and with each the place it had; of equal keys the earlier first. The keys are in the first of
    /// `keys`; which of the two, and which of `numbers`, holds the result is returned. `counts`: [`sort_counts`] words.
    pub(super) fn sort(
        &self,
        mut keys: [Region; 2],
        mut numbers: [Region; 2],
        counts: Region,
        (n, below): (usize, usize),
    ) -> Result<(Region, Region)> {
        let bits = usize::BITS - below.saturating_sub(1).leading_zeros();
        let grid = [blocks(n, BLOCK)?, 1, 1];
        let words = sort_counts(n);
        for pass in 0..bits.div_ceil(DIGIT_BITS).max(1) {
            let (length, shift) = (size(n)?, DIGIT_BITS * pass);
            let digits = DIGITS * 4;
            let arguments = [keys[0].into(), counts.into(), length.into(), shift.into()];
            self.launch(("sort", "sort_count"), grid, THREADS, digits, 4 * n, &arguments)?;
            let arguments = [counts.into(), size(words)?.into()];
            self.launch(("sort", "sort_scan"), [1, 1, 1], SCAN_THREADS, 128, 12 * words, &arguments)?;
            let before = (pass > 0).then_some(numbers[0]);
            let arguments = [
                keys[0].into(),
                Argument::from(before),
                counts.into(),
                keys[1].into(),
                numbers[1].into(),
                length.into(),
                shift.into(),
            ];
            let shared_bytes = THREADS as usize / 32 * digits;
            self.launch(("sort", "sort_place"), grid, THREADS, shared_bytes, 16 * n, &arguments)?;
            keys.swap(0, 1);
            numbers.swap(0, 1);
        }
        Ok((keys[0], numbers[0]))
    }
}
