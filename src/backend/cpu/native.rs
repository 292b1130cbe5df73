//! What processors with AVX512_BF16 have instructions for (Intel Architecture Instruction Set Extensions Programming
//! Reference, VDPBF16PS and VCVTNE2PS2BF16). Numbers too small to be normal count as zero there.

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m256bh, __m512bh, _mm256_maskz_loadu_epi16, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh,
        _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_mask_storeu_epi32, _mm512_or_si512,
        _mm512_slli_epi32,
    };

    use half::bf16;
    use pulp::WithSimd;
    use pulp::x86::V4;

    use super::super::working::Working;

    /// Numbers in a register.
    const LANES: usize = 16;

    /// Whether this processor has them.
    #[inline(always)]
    pub(in super::super) fn available() -> bool {
        V4::try_new().is_some() && std::is_x86_feature_detected!("avx512bf16")
    }

    /// Runs a job with these instructions.
    ///
    /// It is called for `Pair<true>` alone, a type that `by_factors!` chooses after it has asked
    /// [`available`]. So the `expect` cannot fail, whatever a user does. It guards against a mistake in this
    /// crate, which would otherwise execute instructions that the processor may not have.
    #[inline(always)]
    pub(in super::super) fn dispatch<J: WithSimd>(job: J) -> J::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16")]
        fn run<J: WithSimd>(simd: V4, job: J) -> J::Output {
            job.with_simd(simd)
        }
        let simd = V4::try_new().filter(|_| available()).expect("`by_factors!` asks for the instructions");
        // SAFETY: the processor has these instructions, as was just seen.
        unsafe { run(simd, job) }
    }

    /// c + a · b, in each lane of c the products of a pair.
    #[inline(always)]
    pub(in super::super) fn add_product<I: Copy, F: Copy>(a: I, b: I, c: F) -> F {
        assert!(size_of::<I>() == 64 && size_of::<F>() == 64, "native pairs want registers of 512 bits");
        // SAFETY: registers of the same size, whatever their lanes are called; only `dispatch` comes here.
        unsafe {
            let (a, b): (__m512bh, __m512bh) = (std::mem::transmute_copy(&a), std::mem::transmute_copy(&b));
            std::mem::transmute_copy(&_mm512_dpbf16_ps(std::mem::transmute_copy(&c), a, b))
        }
    }

    /// Pairs of one number of `first`, in the lower half, with the one of `second` below it.
    ///
    /// # Safety
    /// Called within [`dispatch`]; all three have `width` elements.
    #[inline(always)]
    pub(in super::super) unsafe fn interleave(
        first: *const bf16,
        second: *const bf16,
        out: *mut u32,
        width: usize,
    ) {
        for start in (0..width).step_by(LANES) {
            let mask = (u16::MAX as u32 >> (LANES - (width - start).min(LANES))) as u16;
            // SAFETY: within all three, by the mask; instructions as the caller promises.
            unsafe {
                let first = _mm256_maskz_loadu_epi16(mask, first.add(start).cast());
                let second = _mm256_maskz_loadu_epi16(mask, second.add(start).cast());
                let second = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(second));
                let pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(first), second);
                _mm512_mask_storeu_epi32(out.add(start).cast(), mask, pairs);
            }
        }
    }

    /// Rounds all of `from`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(in super::super) fn narrow(from: &[f32], to: &mut [bf16]) {
        assert_eq!(from.len(), to.len(), "numbers do not fit into their slice");
        let chunks = from.len() / LANES;
        let (source, target) = (from.as_ptr(), to.as_mut_ptr());
        for chunk in (1..chunks).step_by(2) {
            let start = LANES * (chunk - 1);
            // SAFETY: chunks `chunk - 1` and `chunk` are within both slices.
            unsafe {
                let first = _mm512_loadu_ps(source.add(start));
                let rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(source.add(start + LANES)), first);
                target.add(start).cast::<__m512bh>().write_unaligned(rounded);
            }
        }
        if chunks % 2 == 1 {
            let start = LANES * (chunks - 1);
            // SAFETY: as above, of the last chunk.
            unsafe {
                let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(source.add(start)));
                target.add(start).cast::<__m256bh>().write_unaligned(rounded);
            }
        }
        for (to, &from) in to[LANES * chunks..].iter_mut().zip(&from[LANES * chunks..]) {
            *to = bf16::round(from);
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use avx512::{add_product, available, dispatch, interleave, narrow};

/// Elsewhere there are none.
#[cfg(not(target_arch = "x86_64"))]
mod elsewhere {
    use half::bf16;
    use pulp::WithSimd;

    pub(in super::super) fn available() -> bool {
        false
    }

    pub(in super::super) fn dispatch<J: WithSimd>(_: J) -> J::Output {
        unreachable!("no native pairs here")
    }

    pub(in super::super) fn add_product<I, F>(_: I, _: I, c: F) -> F {
        c
    }

    /// # Safety
    /// Does nothing; nothing comes here.
    pub(in super::super) unsafe fn interleave(_: *const bf16, _: *const bf16, _: *mut u32, _: usize) {}

    /// # Safety
    /// The same.
    pub(in super::super) unsafe fn narrow(_: &[f32], _: &mut [bf16]) {}
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) use elsewhere::{add_product, available, dispatch, interleave, narrow};
