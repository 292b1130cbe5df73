//! What the inner loop of a product multiplies: the numbers as they are, or pairs of them rounded to bf16.
//!
//! A pair takes the place of one f32 in every panel and register, so half as many instructions and half as much
//! memory serve as many terms. Sums stay in f32. Where the processor has no instruction for pairs (AVX512_BF16),
//! they are taken apart again and multiplied in f32.

use bytemuck::{Pod, Zeroable};
use half::bf16;
use pulp::{Simd, WithSimd};

use super::super::real::Real;
use super::pack::SIDE;
use super::{Mat, prefetch};

/// Rows that are fetched ahead where every row is a line of its own.
const AHEAD: usize = 8;

/// What one instruction multiplies, of each row of A and each column of B.
pub trait Factor<R: Real>: Pod + Send + Sync {
    /// Consecutive terms that one holds.
    const TERMS: usize;
    /// As many as there are numbers in a register.
    type Vector<S: Simd>: Pod;
    /// x in every place.
    fn spread<S: Simd>(simd: S, x: Self) -> Self::Vector<S>;
    /// c + the product's terms.
    fn add_product<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: R::Vector<S>)
    -> R::Vector<S>;
    /// Numbers that are factors already.
    fn as_factors(numbers: &[R]) -> Option<&[Self]>;
    /// The factors of numbers that are terms of one sum; past their end are zeros.
    fn convert(numbers: &[R], factors: &mut [Self]);
    /// The first of them.
    fn line(numbers: &[R]) -> [Self; SIDE];
    /// The factor from term `factor` · [`Self::TERMS`] on; of terms × columns.
    fn at(from: Mat<'_, R>, factor: usize, column: usize) -> Self;
    /// All whole panels of `W` columns that lie side by side, of terms × columns; see [`super::pack::pack`].
    fn pack_rows<const W: usize>(from: Mat<'_, R>, panels: &mut [Self]);
    /// Factors of terms × columns, `stride` from one to the next of a column; see [`super::Turned`].
    fn lay_rows(from: Mat<'_, R>, out: &mut [Self], stride: usize);
    /// Runs it with the widest instructions that the processor has.
    #[inline(always)]
    fn dispatch<J: WithSimd>(job: J) -> J::Output {
        pulp::Arch::new().dispatch(job)
    }
}

impl<R: Real> Factor<R> for R {
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

/// Two consecutive terms, rounded to bf16; the first in the lower half. `NATIVE` where the processor multiplies them
/// as they are: such pairs must not be made elsewhere.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Pair<const NATIVE: bool>(u32);

// SAFETY: a u32.
unsafe impl<const NATIVE: bool> Zeroable for Pair<NATIVE> {}
// SAFETY: a u32.
unsafe impl<const NATIVE: bool> Pod for Pair<NATIVE> {}

impl<const NATIVE: bool> Pair<NATIVE> {
    #[inline(always)]
    fn new(first: f32, second: f32) -> Self {
        Self(u32::from(bf16::from_f32(first).to_bits()) | u32::from(bf16::from_f32(second).to_bits()) << 16)
    }

    /// Two consecutive rows; behind the last is none.
    #[inline(always)]
    fn rows(from: Mat<'_, f32>, pair: usize) -> (&[f32], Option<&[f32]>) {
        (from.row(2 * pair), (2 * pair + 1 < from.rows).then(|| from.row(2 * pair + 1)))
    }

    /// Each number of `first` with the one of `second` below it, or with 0.
    #[inline(always)]
    fn interleave(first: &[f32], second: Option<&[f32]>, out: &mut [Self]) {
        match second {
            Some(second) if NATIVE => native::interleave(first, second, bytemuck::cast_slice_mut(out)),
            Some(second) => {
                for ((out, &first), &second) in out.iter_mut().zip(first).zip(second) {
                    *out = Self::new(first, second);
                }
            }
            None => out.iter_mut().zip(first).for_each(|(out, &first)| *out = Self::new(first, 0.0)),
        }
    }
}

impl<const NATIVE: bool> Factor<f32> for Pair<NATIVE> {
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

    #[inline(always)]
    fn as_factors(_: &[f32]) -> Option<&[Self]> {
        None
    }

    #[inline(always)]
    fn convert(numbers: &[f32], factors: &mut [Self]) {
        let (mut whole, rest) = (0, factors);
        if NATIVE {
            whole = native::convert(numbers, bytemuck::cast_slice_mut(rest));
        }
        for (pair, numbers) in rest[whole / 2..].iter_mut().zip(numbers[whole..].chunks(2)) {
            *pair = Self::new(numbers[0], numbers.get(1).copied().unwrap_or(0.0));
        }
    }

    #[inline(always)]
    fn line(numbers: &[f32]) -> [Self; SIDE] {
        let mut pairs = [Self(0); SIDE];
        Self::convert(&numbers[..2 * SIDE], &mut pairs);
        pairs
    }

    #[inline(always)]
    fn at(from: Mat<'_, f32>, factor: usize, column: usize) -> Self {
        let second = if 2 * factor + 1 < from.rows { from.at(2 * factor + 1, column) } else { 0.0 };
        Self::new(from.at(2 * factor, column), second)
    }

    #[inline(always)]
    fn pack_rows<const W: usize>(from: Mat<'_, f32>, panels: &mut [Self]) {
        let (pairs, whole) = (from.rows.div_ceil(2), from.cols / W);
        for pair in 0..pairs {
            let (first, second) = Self::rows(from, pair);
            for panel in 0..whole {
                let first = &first[panel * W..][..W];
                let out = &mut panels[(panel * pairs + pair) * W..][..W];
                prefetch(first.as_ptr().wrapping_add(AHEAD * from.row_stride));
                let second = second.map(|second| &second[panel * W..][..W]);
                if let Some(second) = second {
                    prefetch(second.as_ptr().wrapping_add(AHEAD * from.row_stride));
                }
                Self::interleave(first, second, out);
            }
        }
    }

    #[inline(always)]
    fn lay_rows(from: Mat<'_, f32>, out: &mut [Self], stride: usize) {
        for (pair, out) in out.chunks_mut(stride).take(from.rows.div_ceil(2)).enumerate() {
            let (first, second) = Self::rows(from, pair);
            Self::interleave(first, second, &mut out[..from.cols]);
        }
    }

    #[inline(always)]
    fn dispatch<J: WithSimd>(job: J) -> J::Output {
        if NATIVE { native::dispatch(job) } else { pulp::Arch::new().dispatch(job) }
    }
}

/// Whether this processor multiplies pairs of bf16.
pub(super) fn has_native_pairs() -> bool {
    native::available()
}

/// AVX512_BF16 (Intel Architecture Instruction Set Extensions Programming Reference, VDPBF16PS and VCVTNE2PS2BF16). Numbers
/// too small to be normal count as zero there.
#[cfg(target_arch = "x86_64")]
mod native {
    use std::arch::x86_64::{
        __m256bh, __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_cvtneps_pbh, _mm512_dpbf16_ps,
        _mm512_loadu_ps, _mm512_mask_storeu_epi32, _mm512_maskz_loadu_ps, _mm512_permutexvar_epi16,
    };

    use pulp::WithSimd;
    use pulp::x86::V4;

    pub(super) fn available() -> bool {
        V4::try_new().is_some() && std::is_x86_feature_detected!("avx512bf16")
    }

    #[inline(always)]
    pub(super) fn dispatch<J: WithSimd>(job: J) -> J::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16")]
        fn run<J: WithSimd>(simd: V4, job: J) -> J::Output {
            job.with_simd(simd)
        }
        let simd =
            V4::try_new().filter(|_| available()).expect("pairs are native where the processor has them");
        // SAFETY: the processor has these instructions, as was just seen.
        unsafe { run(simd, job) }
    }

    #[inline(always)]
    pub(super) fn add_product<I: Copy, F: Copy>(a: I, b: I, c: F) -> F {
        assert!(size_of::<I>() == 64 && size_of::<F>() == 64, "native pairs want registers of 512 bits");
        // SAFETY: registers of the same size, whatever their lanes are called; only `dispatch` comes here.
        unsafe {
            let (a, b): (__m512bh, __m512bh) = (std::mem::transmute_copy(&a), std::mem::transmute_copy(&b));
            std::mem::transmute_copy(&_mm512_dpbf16_ps(std::mem::transmute_copy(&c), a, b))
        }
    }

    /// Pairs of consecutive numbers; returns how many numbers that covered.
    #[inline(always)]
    pub(super) fn convert(numbers: &[f32], out: &mut [u32]) -> usize {
        let eights = numbers.len() / 16;
        assert!(out.len() >= 8 * eights, "pairs do not fit into their slice");
        let (from, to) = (numbers.as_ptr(), out.as_mut_ptr());
        for chunk in (1..eights).step_by(2) {
            // SAFETY: chunks `chunk - 1` and `chunk` are within both slices; only `dispatch` comes here.
            unsafe {
                let first = _mm512_loadu_ps(from.add(16 * (chunk - 1)));
                let pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from.add(16 * chunk)), first);
                to.add(8 * (chunk - 1)).cast::<__m512bh>().write_unaligned(pairs);
            }
        }
        if eights % 2 == 1 {
            // SAFETY: as above, of the last chunk.
            unsafe {
                let pairs = _mm512_cvtneps_pbh(_mm512_loadu_ps(from.add(16 * (eights - 1))));
                to.add(8 * (eights - 1)).cast::<__m256bh>().write_unaligned(pairs);
            }
        }
        16 * eights
    }

    /// Pairs of one number of `first` with the one of `second` below it.
    #[inline(always)]
    pub(super) fn interleave(first: &[f32], second: &[f32], out: &mut [u32]) {
        let width = out.len();
        assert!(first.len() == width && second.len() == width, "rows of one length");
        for start in (0..width).step_by(16) {
            let mask = (u16::MAX as u32 >> (16 - (width - start).min(16))) as u16;
            // SAFETY: within the slices, by the mask; only `dispatch` comes here.
            unsafe {
                let first = _mm512_maskz_loadu_ps(mask, first.as_ptr().add(start));
                let second = _mm512_maskz_loadu_ps(mask, second.as_ptr().add(start));
                // All of `first` in the lower half, then all of `second`.
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(second, first));
                let pairs = _mm512_permutexvar_epi16(std::mem::transmute::<[u16; 32], __m512i>(ORDER), both);
                _mm512_mask_storeu_epi32(out.as_mut_ptr().add(start).cast(), mask, pairs);
            }
        }
    }

    /// 0, 16, 1, 17, …
    const ORDER: [u16; 32] = {
        let (mut order, mut i) = ([0; 32], 0);
        while i < 16 {
            (order[2 * i], order[2 * i + 1]) = (i as u16, i as u16 + 16);
            i += 1;
        }
        order
    };
}

/// Elsewhere there are none.
#[cfg(not(target_arch = "x86_64"))]
mod native {
    use pulp::WithSimd;

    pub(super) fn available() -> bool {
        false
    }

    pub(super) fn dispatch<J: WithSimd>(_: J) -> J::Output {
        unreachable!("no native pairs here")
    }

    pub(super) fn add_product<I, F>(_: I, _: I, c: F) -> F {
        c
    }

    pub(super) fn convert(_: &[f32], _: &mut [u32]) -> usize {
        0
    }

    pub(super) fn interleave(_: &[f32], _: &[f32], _: &mut [u32]) {}
}
