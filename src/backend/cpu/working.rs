//! What activations and the copy of the weights that the ops read are stored as.
//!
//! Ops read and write working values and compute on [`Working::Full`] ones: `f32` for `bf16`, each other type its own. What an op stores is
//! rounded once, as by the GPU's kernels.

use half::bf16;

use super::gemm::{Factor, Pair};
use super::native;
use super::real::Real;
use crate::backend::Float;

/// A number that the CPU backend stores.
pub trait Working: Float {
    /// What it computes with.
    type Full: Real;
    /// What products multiply; `NATIVE` where the processor has instructions for that.
    type Factor<const NATIVE: bool>: Factor<Self>;
    /// Exact.
    fn full(self) -> Self::Full;
    /// The nearest one; of two the even one.
    fn round(x: Self::Full) -> Self;
    /// The same for all of `from`: faster than number by number where the processor has an instruction for it.
    fn narrow(from: &[Self::Full], to: &mut [Self]);
    /// Rounded numbers to read: in `place`, or where they are if there is nothing to round.
    fn narrowed<'a>(from: &'a [Self::Full], place: &'a mut [Self]) -> &'a [Self];
}

/// What an op on working values `X` computes with.
pub type Full<X> = <X as Working>::Full;

/// Numbers that are stored as they are.
macro_rules! stored_in_full {
    ($($number:ty),*) => {$(
        impl Working for $number {
            type Full = $number;
            type Factor<const NATIVE: bool> = $number;
            #[inline(always)]
            fn full(self) -> $number {
                self
            }
            #[inline(always)]
            fn round(x: $number) -> $number {
                x
            }
            #[inline(always)]
            fn narrow(from: &[$number], to: &mut [$number]) {
                to.copy_from_slice(from);
            }
            #[inline(always)]
            fn narrowed<'a>(from: &'a [$number], _: &'a mut [$number]) -> &'a [$number] {
                from
            }
        }
    )*};
}
stored_in_full!(f32, f64);

impl Working for bf16 {
    type Full = f32;
    type Factor<const NATIVE: bool> = Pair<NATIVE>;
    #[inline(always)]
    fn full(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    /// Without a branch, so that loops around it become vector instructions.
    #[inline(always)]
    fn round(x: f32) -> bf16 {
        /// Makes a NaN quiet, and keeps it one when its lower bits go.
        const QUIET: u32 = 0x0040;
        let bits = x.to_bits();
        let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let bits = if x.is_nan() { bits >> 16 | QUIET } else { nearest };
        bf16::from_bits(bits as u16)
    }
    #[inline(always)]
    fn narrow(from: &[f32], to: &mut [bf16]) {
        if native::available() {
            // SAFETY: the processor has these instructions.
            unsafe { native::narrow(from, to) }
        } else {
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = Self::round(from));
        }
    }
    #[inline(always)]
    fn narrowed<'a>(from: &'a [f32], place: &'a mut [bf16]) -> &'a [bf16] {
        Self::narrow(from, place);
        place
    }
}

/// All of `from`, exact.
#[inline(always)]
pub(super) fn widen<X: Working>(from: &[X], to: &mut [Full<X>]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.full());
}

/// The same in memory of their own.
pub(super) fn widened<X: Working>(from: &[X]) -> Vec<Full<X>> {
    from.iter().map(|x| x.full()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let upper = (0..=u16::MAX).map(|upper| u32::from(upper) << 16);
        let numbers: Vec<f32> = upper
            .flat_map(|upper| {
                [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|lower| f32::from_bits(upper | lower))
            })
            .collect();
        let mut all = vec![bf16::ZERO; numbers.len()];
        bf16::narrow(&numbers, &mut all);
        for (&x, together) in numbers.iter().zip(all) {
            let (got, want) = (<bf16 as Working>::round(x), bf16::from_f32(x));
            assert_eq!(got.to_bits(), want.to_bits(), "{:08x}", x.to_bits());
            assert_eq!(got.full().to_bits(), got.to_f32().to_bits(), "{:08x}", x.to_bits());
            // The processor's own instruction takes what is not normal for zero.
            let zero = x.is_subnormal() && together.to_f32() == 0.0;
            assert!(zero || together.to_bits() == want.to_bits(), "{:08x}", x.to_bits());
        }
        for n in 0..70 {
            let mut some = vec![bf16::ONE; n];
            bf16::narrow(&vec![0.3; n], &mut some);
            assert!(some.iter().all(|&x| x == bf16::from_f32(0.3)), "{n}");
        }
    }
}
