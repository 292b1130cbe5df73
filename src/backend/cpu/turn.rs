//! Transposition, by squares that fit into registers.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m256;

#[cfg(target_arch = "x86_64")]
use bytemuck::{cast_slice, cast_slice_mut, pod_read_unaligned};
use rayon::prelude::*;

use super::gemm::Mat;
use super::real::Real;

/// Rows of a unit of work; with f32 a source line of 64 bytes is read by one unit alone.
const ROWS: usize = 64;
/// Side of a square: a vector of f32.
const SIDE: usize = 8;
/// Squares side by side that fill a line of 64 bytes.
const LINE: usize = 2 * SIDE;

/// Elements from row to row of a turned matrix: one line more than there are columns, so that rows whose length is a power
/// of two do not all fall into the same sets of the cache.
pub(super) fn turned_stride(cols: usize) -> usize {
    cols + LINE
}

/// Copies a matrix whose columns are contiguous to one whose rows are, [`turned_stride`] apart, over all threads.
pub(super) fn par_turn<R: Real>(a: Mat<'_, R>, out: &mut [R]) {
    let stride = turned_stride(a.cols);
    out.par_chunks_mut(ROWS * stride).enumerate().for_each(|(index, out)| {
        turn(a.block(index * ROWS, out.len() / stride, 0, a.cols), out, stride);
    });
}

fn turn<R: Real>(a: Mat<'_, R>, out: &mut [R], stride: usize) {
    let done = squares(a, out, stride);
    for (row, out) in out.chunks_exact_mut(stride).enumerate() {
        let first = if row < done.0 { done.1 } else { 0 };
        (first..a.cols).for_each(|col| out[col] = a.at(row, col));
    }
}

/// Copies what whole squares of f32 cover; returns how many rows and columns that are.
#[cfg(target_arch = "x86_64")]
fn squares<R: Real>(a: Mat<'_, R>, out: &mut [R], width: usize) -> (usize, usize) {
    struct Squares<'a, 'o> {
        simd: pulp::x86::V3,
        from: &'a [f32],
        stride: usize,
        size: (usize, usize),
        out: &'o mut [f32],
        width: usize,
    }
    impl pulp::NullaryFnOnce for Squares<'_, '_> {
        type Output = ();

        #[inline(always)]
        #[allow(clippy::needless_range_loop)]
        fn call(self) {
            let (rows, cols) = self.size;
            for start in (0..cols).step_by(LINE) {
                for row in (0..rows).step_by(SIDE) {
                    for col in (start..cols.min(start + LINE)).step_by(SIDE) {
                        let mut lines = [pod_read_unaligned(&[0; 32]); SIDE];
                        for i in 0..SIDE {
                            let line = &self.from[(col + i) * self.stride + row..][..SIDE];
                            lines[i] = pod_read_unaligned(cast_slice(line));
                        }
                        let lines = transposed(self.simd, lines);
                        for i in 0..SIDE {
                            let out = &mut self.out[(row + i) * self.width + col..][..SIDE];
                            out.copy_from_slice(cast_slice(&lines[i..i + 1]));
                        }
                    }
                }
            }
        }
    }
    let (true, Some(simd)) = (size_of::<R>() == size_of::<f32>(), pulp::x86::V3::try_new()) else {
        return (0, 0);
    };
    let size = (a.rows / SIDE * SIDE, a.cols / SIDE * SIDE);
    let (from, out) = (cast_slice(a.data), cast_slice_mut(out));
    simd.vectorize(Squares { simd, from, stride: a.col_stride, size, out, width });
    size
}

/// Elsewhere the plain loop does all.
#[cfg(not(target_arch = "x86_64"))]
fn squares<R: Real>(_: Mat<'_, R>, _: &mut [R], _: usize) -> (usize, usize) {
    (0, 0)
}

/// Exchanges single numbers, then pairs, then halves. Loops, not closures: those would have to be inlined to become vector
/// instructions.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed(simd: pulp::x86::V3, lines: [__m256; SIDE]) -> [__m256; SIDE] {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check<R: Real>() {
        for (rows, cols) in [(1, 1), (7, 9), (8, 8), (64, 16), (131, 75)] {
            let from: Vec<R> = (0..rows * cols).map(|i| R::of(i as f64)).collect();
            let a = Mat::new(&from, cols, rows).t();
            let stride = turned_stride(cols);
            let mut out = vec![R::of(-1.0); rows * stride];
            par_turn(a, &mut out);
            for (row, out) in out.chunks(stride).enumerate() {
                for (col, &x) in out[..cols].iter().enumerate() {
                    assert_eq!(x, from[col * rows + row], "{rows} × {cols} at {row}, {col}");
                }
            }
        }
    }

    #[test]
    fn every_element_changes_row_and_column() {
        check::<f32>();
        check::<f64>();
    }
}
