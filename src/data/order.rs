//! Which row comes when: a function of seed and epoch alone, in constant memory, whoever asks.

use crate::rng::{Philox, Site};

/// Place `at` of epoch `epoch`'s order of `len` rows: a bijection.
pub fn shuffled(philox: Philox, len: u64, epoch: u32, at: u64) -> u64 {
    permuted(philox, Site::SHUFFLE, 0, len, epoch, at)
}

/// As [`shuffled`], with an order of its own for every `site` and `lane`: a four-round Feistel network on the next
/// power of four, walked until it falls below `len` (Black & Rogaway 2002).
pub(super) fn permuted(philox: Philox, site: Site, lane: u32, len: u64, epoch: u32, at: u64) -> u64 {
    let half_bits = (64 - len.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half_bits) - 1;
    let mut x = at;
    loop {
        let (mut left, mut right) = (x >> half_bits, x & mask);
        for round in 0..4 {
            let word = u64::from(philox.block(right as u32, 4 * lane + round, site, epoch)[0]);
            (left, right) = (right, left ^ (word & mask));
        }
        x = left << half_bits | right;
        if x < len {
            return x;
        }
    }
}
