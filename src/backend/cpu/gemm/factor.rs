//! What the inner loop of a product multiplies: single numbers, or pairs of bf16.
//!
//! A pair takes the place of one f32 in every panel and register, so half as many instructions and half as much
//! memory serve as many terms. Sums are f32. Where the processor has no instruction for pairs (AVX512_BF16),
//! they are taken apart again and multiplied in f32.

use bytemuck::{Pod, Zeroable};
use half::bf16;
use pulp::{Simd, WithSimd};

use super::super::native;
use super::super::real::Real;
use super::super::working::{Full, Working};
use super::pack::SIDE;
use super::{Mat, prefetch};

/// Rows that are fetched ahead where every row is a line of its own.
const AHEAD: usize = 8;

/// What one instruction multiplies, of each row of A and each column of B.
pub trait Factor<X: Working>: Pod + Send + Sync {
    /// Consecutive terms that one holds.
    const TERMS: usize;
    /// As many as there are sums in a register.
    type Vector<S: Simd>: Pod;
    /// x in every place.
    fn spread<S: Simd>(simd: S, x: Self) -> Self::Vector<S>;
    /// c + the product's terms.
    fn add_product<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: <Full<X> as Real>::Vector<S>,
    ) -> <Full<X> as Real>::Vector<S>;
    /// The factors of numbers that are consecutive terms, as they lie; none if these numbers cannot be read so.
    fn as_factors(numbers: &[X]) -> Option<&[Self]>;
    /// The factors of numbers that are terms of one sum; past their end are zeros.
    fn convert(numbers: &[X], factors: &mut [Self]);
    /// The first of them.
    fn line(numbers: &[X]) -> [Self; SIDE];
    /// The factor from term `factor` · [`Self::TERMS`] on; of terms × columns.
    fn at(from: Mat<'_, X>, factor: usize, column: usize) -> Self;
    /// All whole panels of `W` columns that lie side by side, of terms × columns; see [`super::pack::pack`].
    fn pack_rows<const W: usize>(from: Mat<'_, X>, panels: &mut [Self]);
    /// Factors of terms × columns, `stride` from one to the next of a column; see [`super::Turned`].
    fn lay_rows(from: Mat<'_, X>, out: &mut [Self], stride: usize);
    /// Runs it with the widest instructions that the processor has.
    #[inline(always)]
    fn dispatch<J: WithSimd>(job: J) -> J::Output {
        pulp::Arch::new().dispatch(job)
    }
}

impl<R: Real<Full = R>> Factor<R> for R {
    const TERMS: usize = 1;
    type Vector<S: Simd> = <R as Real>::Vector<S>;

    #[inline(always)]
    fn spread<S: Simd>(simd: S, x: R) -> R::Vector<S> {
        R::splat(simd, x)
    }

    #[inline(always)]
    fn add_product<S: Simd>(simd: S, a: R::Vector<S>, b: R::Vector<S>, c: R::Vector<S>) -> R::Vector<S> {
        R::mul_add(simd, a, b, c)
    }

    #[inline(always)]
    fn as_factors(numbers: &[R]) -> Option<&[R]> {
        Some(numbers)
    }

    #[inline(always)]
    fn convert(numbers: &[R], factors: &mut [R]) {
        factors.copy_from_slice(numbers);
    }

    #[inline(always)]
    fn line(numbers: &[R]) -> [R; SIDE] {
        bytemuck::pod_read_unaligned(bytemuck::cast_slice(&numbers[..SIDE]))
    }

    #[inline(always)]
    fn at(from: Mat<'_, R>, factor: usize, column: usize) -> R {
        from.at(factor, column)
    }

    #[inline(always)]
    fn pack_rows<const W: usize>(from: Mat<'_, R>, panels: &mut [R]) {
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

    #[inline(always)]
    fn lay_rows(from: Mat<'_, R>, out: &mut [R], stride: usize) {
        for (term, out) in out.chunks_mut(stride).take(from.rows).enumerate() {
            out[..from.cols].copy_from_slice(from.row(term));
        }
    }
}

/// Two consecutive terms, the first in the lower half. `NATIVE` where the processor multiplies them as they are: such
/// pairs must not be made elsewhere.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Pair<const NATIVE: bool>(u32);

// SAFETY: a u32.
unsafe impl<const NATIVE: bool> Zeroable for Pair<NATIVE> {}
// SAFETY: a u32.
unsafe impl<const NATIVE: bool> Pod for Pair<NATIVE> {}

impl<const NATIVE: bool> Pair<NATIVE> {
    #[inline(always)]
    fn new(first: bf16, second: bf16) -> Self {
        Self(u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16)
    }

    /// `width` pairs of row 2 · `pair` and the next, from `column` on; the row behind the last is 0.
    ///
    /// # Safety
    /// The matrix has these columns and row 2 · `pair`, it is not transposed, `out` points to `width`
    /// pairs, and native pairs are made within [`native::dispatch`].
    // SAFETY: the caller answers for what the section above says.
    #[inline(always)]
    unsafe fn interleave(from: Mat<'_, bf16>, pair: usize, column: usize, width: usize, out: *mut Self) {
        let first = from.data.as_ptr().wrapping_add(2 * pair * from.row_stride + column);
        let second = first.wrapping_add(from.row_stride);
        prefetch(first.wrapping_add(AHEAD * from.row_stride));
        prefetch(second.wrapping_add(AHEAD * from.row_stride));
        let both = 2 * pair + 1 < from.rows;
        if NATIVE && both {
            // SAFETY: so many columns of two rows; native pairs are made within `dispatch`.
            return unsafe { native::interleave(first, second, out.cast(), width) };
        }
        for i in 0..width {
            // SAFETY: the same, and of the second row only if there is one.
            unsafe {
                let second = if both { *second.add(i) } else { bf16::ZERO };
                *out.add(i) = Self::new(*first.add(i), second);
            }
        }
    }
}

impl<const NATIVE: bool> Factor<bf16> for Pair<NATIVE> {
    const TERMS: usize = 2;
    type Vector<S: Simd> = S::u32s;

    #[inline(always)]
    fn spread<S: Simd>(simd: S, x: Self) -> S::u32s {
        simd.splat_u32s(x.0)
    }

    #[inline(always)]
    fn add_product<S: Simd>(simd: S, a: S::u32s, b: S::u32s, c: S::f32s) -> S::f32s {
        if NATIVE {
            return native::add_product(a, b, c);
        }
        let (half, upper) = (simd.splat_u32s(16), simd.splat_u32s(0xffff_0000));
        let first_a = simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(a, half));
        let first_b = simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(b, half));
        let second_a = simd.transmute_f32s_u32s(simd.and_u32s(a, upper));
        let second_b = simd.transmute_f32s_u32s(simd.and_u32s(b, upper));
        simd.mul_add_e_f32s(first_a, first_b, simd.mul_add_e_f32s(second_a, second_b, c))
    }

    /// Where the machine's byte order puts the first of two in the lower half, and they begin at a multiple of four bytes.
    #[inline(always)]
    fn as_factors(numbers: &[bf16]) -> Option<&[Self]> {
        let whole = &numbers[..numbers.len() / 2 * 2];
        if cfg!(target_endian = "little") { bytemuck::try_cast_slice(whole).ok() } else { None }
    }

    #[inline(always)]
    fn convert(numbers: &[bf16], factors: &mut [Self]) {
        for (pair, numbers) in factors.iter_mut().zip(numbers.chunks(2)) {
            *pair = Self::new(numbers[0], numbers.get(1).copied().unwrap_or(bf16::ZERO));
        }
    }

    #[inline(always)]
    fn line(numbers: &[bf16]) -> [Self; SIDE] {
        let numbers = &numbers[..2 * SIDE];
        std::array::from_fn(|i| Self::new(numbers[2 * i], numbers[2 * i + 1]))
    }

    #[inline(always)]
    fn at(from: Mat<'_, bf16>, factor: usize, column: usize) -> Self {
        let second = if 2 * factor + 1 < from.rows { from.at(2 * factor + 1, column) } else { bf16::ZERO };
        Self::new(from.at(2 * factor, column), second)
    }

    #[inline(always)]
    fn pack_rows<const W: usize>(from: Mat<'_, bf16>, panels: &mut [Self]) {
        let (pairs, whole) = (from.rows.div_ceil(2), from.cols / W);
        assert!(from.fits() && panels.len() >= whole * pairs * W, "panels do not fit into their slice");
        for pair in 0..pairs {
            for panel in 0..whole {
                let out = panels.as_mut_ptr().wrapping_add((panel * pairs + pair) * W);
                // SAFETY: within the matrix and the panels, by the assertion.
                unsafe { Self::interleave(from, pair, panel * W, W, out) };
            }
        }
    }

    #[inline(always)]
    fn lay_rows(from: Mat<'_, bf16>, out: &mut [Self], stride: usize) {
        assert!(from.fits(), "matrix exceeds its slice");
        for (pair, out) in out.chunks_mut(stride).take(from.rows.div_ceil(2)).enumerate() {
            let out = &mut out[..from.cols];
            // SAFETY: within the matrix, by the assertion, and the slice.
            unsafe { Self::interleave(from, pair, 0, from.cols, out.as_mut_ptr()) };
        }
    }

    #[inline(always)]
    fn dispatch<J: WithSimd>(job: J) -> J::Output {
        if NATIVE { native::dispatch(job) } else { pulp::Arch::new().dispatch(job) }
    }
}
