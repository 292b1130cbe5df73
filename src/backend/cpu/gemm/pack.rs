//! Copies of operands in the order in which the inner loop reads them.

use bytemuck::cast_slice;
use pulp::{Simd, WithSimd};

use super::super::real::Real;
use super::{Mat, prefetch};

/// Side of a square of f32 that is transposed in registers.
const SIDE: usize = 8;
/// Terms of a cache line of f32: a line is read to its end before the next one.
const LINE: usize = 16;
/// Terms that are fetched ahead where every term is a line of its own.
const AHEAD: usize = 8;

/// Packs columns of B into the panels of `out`, for the vectors of the processor at hand.
pub(super) struct Pack<'a, 'o, R> {
    pub(super) b: Mat<'a, R>,
    pub(super) out: &'o mut [R],
}

impl<R: Real> WithSimd for Pack<'_, '_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        match super::kernel::panel_width::<S, R>() {
            32 => pack::<R, 32>(self.b, self.out),
            16 => pack::<R, 16>(self.b, self.out),
            8 => pack::<R, 8>(self.b, self.out),
            4 => pack::<R, 4>(self.b, self.out),
            2 => pack::<R, 2>(self.b, self.out),
            width => unreachable!("panels of {width} columns"),
        }
    }
}

/// Copies a matrix of terms × columns to panels of `W` columns, one behind the other, each term by term; beyond the
/// last column are zeros.
#[inline(always)]
pub(super) fn pack<R: Real, const W: usize>(from: Mat<'_, R>, out: &mut [R]) {
    let (terms, whole, rest) = (from.rows, from.cols / W, from.cols % W);
    let (panels, last) = out.split_at_mut(whole * terms * W);
    if from.col_stride == 1 {
        copy::<R, W>(from, panels);
    } else {
        for (index, panel) in panels.chunks_exact_mut(terms * W).enumerate() {
            let columns = from.block(0, terms, index * W, W);
            for term in turn::<R, W>(columns, panel)..terms {
                (0..W).for_each(|col| panel[term * W + col] = columns.at(term, col));
            }
        }
    }
    if rest > 0 {
        for (term, out) in last[..terms * W].chunks_exact_mut(W).enumerate() {
            out.fill(R::ZERO);
            (0..rest).for_each(|col| out[col] = from.at(term, whole * W + col));
        }
    }
}

/// Packs whole panels of a matrix whose columns lie side by side.
#[inline(always)]
fn copy<R: Real, const W: usize>(from: Mat<'_, R>, panels: &mut [R]) {
    let (terms, whole) = (from.rows, from.cols / W);
    assert!(panels.len() >= whole * terms * W, "panels do not fit into their slice");
    if whole == 0 {
        return;
    }
    for term in 0..terms {
        let row = from.row(term).as_ptr();
        for panel in 0..whole {
            prefetch(row.wrapping_add(AHEAD * from.row_stride + panel * W));
            // SAFETY: within the matrix's row and, by the assertion, within the panels. Slices would be checked for
            // each of these short copies, which then took twice as long.
            unsafe {
                let out = panels.as_mut_ptr().add((panel * terms + term) * W);
                row.add(panel * W).copy_to_nonoverlapping(out, W);
            }
        }
    }
}

/// Packs one panel whose terms lie side by side; returns how many of its terms that covered.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(clippy::needless_range_loop)] // see `transposed`
fn turn<R: Real, const W: usize>(from: Mat<'_, R>, panel: &mut [R]) -> usize {
    use bytemuck::{cast_slice_mut, pod_read_unaligned};
    let (true, Some(simd)) = (size_of::<R>() == size_of::<f32>(), pulp::x86::V3::try_new()) else {
        return 0;
    };
    let terms = from.rows / LINE * LINE;
    let (data, panel): (&[f32], &mut [f32]) = (cast_slice(from.data), cast_slice_mut(panel));
    for start in (0..terms).step_by(LINE) {
        for col in (0..W).step_by(SIDE) {
            let width = SIDE.min(W - col);
            for term in (start..start + LINE).step_by(SIDE) {
                let mut lines = [pod_read_unaligned(&[0; 32]); SIDE];
                for i in 0..width {
                    let at = (col + i) * from.col_stride + term;
                    if term == start {
                        // The next panel's.
                        prefetch(data.as_ptr().wrapping_add(at + W * from.col_stride));
                    }
                    lines[i] = pod_read_unaligned(cast_slice(&data[at..][..SIDE]));
                }
                let lines: [[f32; SIDE]; SIDE] = bytemuck::cast(transposed(simd, lines));
                for i in 0..SIDE {
                    panel[(term + i) * W + col..][..width].copy_from_slice(&lines[i][..width]);
                }
            }
        }
    }
    terms
}

/// Elsewhere the plain loop does all.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn turn<R: Real, const W: usize>(_: Mat<'_, R>, _: &mut [R]) -> usize {
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
