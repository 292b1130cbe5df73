//! Philox4x32-7, the counter-based random number generator of Salmon et al., "Parallel Random Numbers: As Easy as
//! 1, 2, 3" (SC'11): seven rounds are as few as pass BigCrush, and dropout draws billions of numbers a step.
//!
//! Randomness in this project is a pure function: the run's seed is the key, and the counter says which number is
//! asked for: (index, row, site, step). Nothing is stored for a backward pass, the order of evaluation does not
//! matter, every backend draws the same numbers, and a run resumes bit-exactly from its step number alone.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 7;

/// What a stream of random numbers is used for: the third word of the counter.
///
/// Per-layer sites are spread by [`Site::layer`], so no two ops of a step share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site(pub u32);

impl Site {
    /// Initial weights; the row is the tensor's number, the step 0.
    pub const INIT: Site = Site(1);
    /// Which positions of a row are masked.
    pub const MASK_POSITION: Site = Site(2);
    /// What replaces a masked position.
    pub const MASK_TOKEN: Site = Site(3);
    /// Gumbel noise of the generator's sampler.
    pub const GUMBEL: Site = Site(4);
    /// Order of the training rows in an epoch; the step is the epoch.
    pub const SHUFFLE: Site = Site(5);
    /// Lengths and cuts of two-segment examples.
    pub const SEGMENT: Site = Site(6);
    /// Which rows of a corpus an epoch of a mixture visits; the step is the corpus's own epoch.
    pub const MIXTURE: Site = Site(7);
    /// Hash functions that compare documents.
    pub const MINHASH: Site = Site(0x20);
    /// Which text a vocabulary is trained on.
    pub const SAMPLE: Site = Site(0x21);
    /// First site of the generator's dropouts.
    pub const GENERATOR: Site = Site(0x100);
    /// First site of the discriminator's dropouts.
    pub const DISCRIMINATOR: Site = Site(0x8000);

    /// The `which`-th dropout (0..4) of encoder layer `layer`; the embedding block counts as layer 0, the encoder's
    /// first layer as 1.
    pub const fn layer(self, layer: usize, which: u32) -> Site {
        Site(self.0 + 4 * layer as u32 + which)
    }
}

/// A keyed generator: `block` maps a 128-bit counter to four independent uniform 32-bit words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The generator of a run's seed.
    pub const fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32] }
    }

    /// The seed's two halves, as kernels take them.
    pub const fn key(self) -> [u32; 2] {
        self.key
    }

    /// The four words at counter (index, row, site, step).
    #[inline]
    pub fn block(self, index: u32, row: u32, site: Site, step: u32) -> [u32; 4] {
        let mut c = [index, row, site.0, step];
        let mut k = self.key;
        for round in 0..ROUNDS {
            if round > 0 {
                k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
            }
            let p0 = u64::from(MULTIPLIER[0]) * u64::from(c[0]);
            let p1 = u64::from(MULTIPLIER[1]) * u64::from(c[2]);
            c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        }
        c
    }

    /// Word number `index` of the stream (row, site, step): word `index % 4` of block `index / 4`.
    #[inline]
    pub fn word(self, index: u32, row: u32, site: Site, step: u32) -> u32 {
        self.block(index / 4, row, site, step)[(index % 4) as usize]
    }

    /// The 16 bits that decide about element `index` of the stream (row, site, step) of a dropout: word `index / 2`, the lower half first.
    #[inline]
    pub fn half(self, index: u32, row: u32, site: Site, step: u32) -> u32 {
        self.word(index / 2, row, site, step) >> (16 * (index % 2)) & 0xffff
    }

    /// The same of attention's probabilities, where `index` counts keys: four blocks decide about 32 keys, word w of block b about keys
    /// 8w + 2b and the next, so that a lane of a tensor core's result finds all that it needs in one block.
    #[inline]
    pub fn half_of_key(self, index: u32, row: u32, site: Site, step: u32) -> u32 {
        let block = index / 32 * 4 + index % 8 / 2;
        self.block(block, row, site, step)[(index % 32 / 8) as usize] >> (16 * (index % 2)) & 0xffff
    }

    /// The words of [`LANES`] consecutive blocks from `index` on: `out[4 * lane + word]`, or `BY_KEY` those of [`half_of_key`](Self::half_of_key) in the
    /// keys' order; written so that the compiler turns each line of a round into vector instructions.
    #[inline(always)]
    pub fn blocks<const BY_KEY: bool>(
        self,
        index: u32,
        row: u32,
        site: Site,
        step: u32,
        out: &mut [u32; 4 * LANES],
    ) {
        // 64-bit lanes whose upper halves are never looked at: the widening product then needs no moves.
        const LOW: u64 = 0xffff_ffff;
        let (mut c0, mut c1) = ([0u64; LANES], [u64::from(row); LANES]);
        let (mut c2, mut c3) = ([u64::from(site.0); LANES], [u64::from(step); LANES]);
        for (lane, c) in c0.iter_mut().enumerate() {
            *c = u64::from(index.wrapping_add(lane as u32));
        }
        let mut k = self.key;
        for round in 0..ROUNDS {
            if round > 0 {
                k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
            }
            let [k0, k1] = k.map(u64::from);
            for lane in 0..LANES {
                let p0 = u64::from(MULTIPLIER[0]) * (c0[lane] & LOW);
                let p1 = u64::from(MULTIPLIER[1]) * (c2[lane] & LOW);
                c0[lane] = (p1 >> 32) ^ c1[lane] ^ k0;
                c1[lane] = p1;
                c2[lane] = (p0 >> 32) ^ c3[lane] ^ k1;
                c3[lane] = p0;
            }
        }
        for lane in 0..LANES {
            let place =
                |word: usize| if BY_KEY { lane / 4 * 16 + 4 * word + lane % 4 } else { 4 * lane + word };
            out[place(0)] = c0[lane] as u32;
            out[place(1)] = c1[lane] as u32;
            out[place(2)] = c2[lane] as u32;
            out[place(3)] = c3[lane] as u32;
        }
    }
}

/// Counters that [`Philox::blocks`] advances at once: one 512-bit vector of 32-bit words.
pub const LANES: usize = 16;

/// A uniform number in the open interval (0, 1) from 23 bits of a word; exact in f32.
#[inline(always)]
pub fn open_unit(word: u32) -> f32 {
    ((word >> 9) as f32 + 0.5) * (1.0 / (1 << 23) as f32)
}

/// The integer threshold of probability `p`: a uniform word is below it with probability `p`, to 2⁻³².
pub fn threshold(p: f64) -> u32 {
    (p * 4_294_967_296.0).round().clamp(0.0, f64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors of the authors' Random123 distribution (`kat_vectors`, philox4x32 7).
    #[test]
    fn philox_matches_published_vectors() {
        let zero = Philox::new(0).block(0, 0, Site(0), 0);
        assert_eq!(zero, [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]);
        let ones = Philox::new(u64::MAX).block(u32::MAX, u32::MAX, Site(u32::MAX), u32::MAX);
        assert_eq!(ones, [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662]);
        let pi = Philox::new(0x299f_31d0_a409_3822).block(
            0x243f_6a88,
            0x85a3_08d3,
            Site(0x1319_8a2e),
            0x0370_7344,
        );
        assert_eq!(pi, [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a]);
    }

    #[test]
    fn lanes_equal_single_blocks() {
        let philox = Philox::new(0x1234_5678_9abc_def0);
        let mut lanes = [0; 4 * LANES];
        philox.blocks::<false>(u32::MAX - 3, 7, Site::GUMBEL, 9, &mut lanes);
        for lane in 0..LANES {
            let single = philox.block((u32::MAX - 3).wrapping_add(lane as u32), 7, Site::GUMBEL, 9);
            assert_eq!(single, lanes[4 * lane..4 * lane + 4], "lane {lane}");
        }
        philox.blocks::<true>(4, 7, Site(3), 9, &mut lanes);
        for (key, pair) in (32u32..).step_by(2).zip(lanes) {
            let halves = [pair & 0xffff, pair >> 16];
            assert_eq!([key, key + 1].map(|key| philox.half_of_key(key, 7, Site(3), 9)), halves, "key {key}");
        }
    }

    #[test]
    fn uniform_numbers_never_touch_the_ends() {
        assert!(open_unit(0) > 0.0);
        assert!(open_unit(u32::MAX) < 1.0);
        assert_eq!(threshold(0.0), 0);
        assert_eq!(threshold(0.5), 1 << 31);
        assert_eq!(threshold(1.0), u32::MAX);
    }
}
