//! Copies of operands in the order in which the inner loop reads them.

use pulp::{Simd, WithSimd};

use super::super::working::{Full, Working};
use super::factor::Factor;
use super::{Mat, prefetch};

/// Side of a square of 32-bit factors that is transposed in registers.
pub(super) const SIDE: usize = 8;
/// Numbers of f32 in a cache line.
pub(super) const LINE: usize = 16;

/// Packs columns of B into the panels of `out`, for the vectors of the processor at hand.
pub(super) struct Pack<'a, 'o, X, E> {
    pub(super) b: Mat<'a, X>,
    pub(super) out: &'o mut [E],
}

impl<X: Working, E: Factor<X>> WithSimd for Pack<'_, '_, X, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        match super::kernel::panel_width::<S, Full<X>>() {
            32 => pack::<X, E, 32>(self.b, self.out),
            16 => pack::<X, E, 16>(self.b, self.out),
            8 => pack::<X, E, 8>(self.b, self.out),
            4 => pack::<X, E, 4>(self.b, self.out),
            2 => pack::<X, E, 2>(self.b, self.out),
            width => unreachable!("panels of {width} columns"),
        }
    }
}

/// Copies rows of terms × columns one by one, as factors.
pub(super) struct Lay<'a, 'o, X, E> {
    pub(super) from: Mat<'a, X>,
    pub(super) out: &'o mut [E],
    pub(super) stride: usize,
}

impl<X: Working, E: Factor<X>> WithSimd for Lay<'_, '_, X, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        E::lay_rows(self.from, self.out, self.stride);
    }
}

/// Copies a matrix of terms × columns to panels of `W` columns, one behind the other, each factor by factor; beyond the
/// last column are zeros.
#[inline(always)]
pub(super) fn pack<X: Working, E: Factor<X>, const W: usize>(from: Mat<'_, X>, out: &mut [E]) {
    let (factors, whole, rest) = (from.rows.div_ceil(E::TERMS), from.cols / W, from.cols % W);
    let (panels, last) = out.split_at_mut(whole * factors * W);
    if from.col_stride == 1 {
        E::pack_rows::<W>(from, panels);
    } else {
        for (index, panel) in panels.chunks_exact_mut(factors * W).enumerate() {
            let columns = from.block(0, from.rows, index * W, W);
            for factor in turn::<X, E, W>(columns, panel)..factors {
                (0..W).for_each(|col| panel[factor * W + col] = E::at(columns, factor, col));
            }
        }
    }
    if rest > 0 {
        for (factor, out) in last[..factors * W].chunks_exact_mut(W).enumerate() {
            out.fill(E::zeroed());
            (0..rest).for_each(|col| out[col] = E::at(from, factor, whole * W + col));
        }
    }
}

/// Packs one panel whose terms lie side by side; returns how many factors of each column that covered.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn turn<X: Working, E: Factor<X>, const W: usize>(from: Mat<'_, X>, panel: &mut [E]) -> usize {
    use bytemuck::cast_slice_mut;
    let (true, Some(simd)) = (size_of::<E>() == size_of::<f32>(), pulp::x86::V3::try_new()) else {
        return 0;
    };
    let factors = from.rows / E::TERMS / SIDE * SIDE;
    let panel: &mut [f32] = cast_slice_mut(panel);
    for col in (0..W / SIDE * SIDE).step_by(SIDE) {
        turn_columns::<X, E, W, SIDE>(simd, from, panel, factors, col);
    }
    // The lengths of copies must be constants: otherwise each becomes a call.
    match W % SIDE {
        0 => {}
        2 => turn_columns::<X, E, W, 2>(simd, from, panel, factors, W - 2),
        4 => turn_columns::<X, E, W, 4>(simd, from, panel, factors, W - 4),
        6 => turn_columns::<X, E, W, 6>(simd, from, panel, factors, W - 6),
        rest => unreachable!("panels of {W} columns leave {rest}"),
    }
    factors
}

/// A few columns, from the first factor to the last: the processor foresees as many streams.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(clippy::needless_range_loop)] // see `transposed`
fn turn_columns<X: Working, E: Factor<X>, const W: usize, const WIDTH: usize>(
    simd: pulp::x86::V3,
    from: Mat<'_, X>,
    panel: &mut [f32],
    factors: usize,
    col: usize,
) {
    for factor in (0..factors).step_by(SIDE) {
        let mut lines = [bytemuck::cast([0f32; SIDE]); SIDE];
        for i in 0..WIDTH {
            let at = (col + i) * from.col_stride + factor * E::TERMS;
            if factor % LINE == 0 {
                // Of the columns that are next.
                let next = from.data.as_ptr().wrapping_add(at + SIDE * from.col_stride);
                (0..E::TERMS).for_each(|line| prefetch(next.wrapping_add(line * LINE)));
            }
            lines[i] = bytemuck::cast::<[E; SIDE], _>(E::line(&from.data[at..]));
        }
        let lines: [[f32; SIDE]; SIDE] = bytemuck::cast(transposed(simd, lines));
        for i in 0..SIDE {
            panel[(factor + i) * W + col..][..WIDTH].copy_from_slice(&lines[i][..WIDTH]);
        }
    }
}

/// Elsewhere the plain loop does all.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn turn<X: Working, E: Factor<X>, const W: usize>(_: Mat<'_, X>, _: &mut [E]) -> usize {
    0
}

/// Exchanges single numbers, then pairs, then halves. Loops, not closures: those would have to be inlined to become
/// vector instructions.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed(
    simd: pulp::x86::V3,
    lines: [std::arch::x86_64::__m256; SIDE],
) -> [std::arch::x86_64::__m256; SIDE] {
    let (avx, mut singles, mut pairs, mut halves) = (simd.avx, lines, lines, lines);
    for i in [0, 2, 4, 6] {
        singles[i] = avx._mm256_unpacklo_ps(lines[i], lines[i + 1]);
        singles[i + 1] = avx._mm256_unpackhi_ps(lines[i], lines[i + 1]);
    }
    for i in [0, 4] {
        pairs[i] = avx._mm256_shuffle_ps::<0x44>(singles[i], singles[i + 2]);
        pairs[i + 1] = avx._mm256_shuffle_ps::<0xee>(singles[i], singles[i + 2]);
        pairs[i + 2] = avx._mm256_shuffle_ps::<0x44>(singles[i + 1], singles[i + 3]);
        pairs[i + 3] = avx._mm256_shuffle_ps::<0xee>(singles[i + 1], singles[i + 3]);
    }
    for i in [0, 1, 2, 3] {
        halves[i] = avx._mm256_permute2f128_ps::<0x20>(pairs[i], pairs[i + 4]);
        halves[i + 4] = avx._mm256_permute2f128_ps::<0x31>(pairs[i], pairs[i + 4]);
    }
    halves
}
