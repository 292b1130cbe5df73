//! The two number types of the CPU backend and the elementary functions its loops need.
//!
//! `f32` trains: its functions are short polynomials without a branch, so that the compiler turns the loops around
//! them into vector instructions with fused multiply-adds (about 1e-7 relative error each). `f64` is the oracle: its functions come from the
//! standard library and `libm`.

use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

use pulp::{Simd, WithSimd};

use super::working::Working;

/// A number the CPU backend computes with.
pub trait Real:
    Working<Full = Self>
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + std::iter::Sum
{
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// -∞
    const NEG_INFINITY: Self;
    /// As many as fill a register.
    type Vector<S: Simd>: bytemuck::Pod;
    /// x in every place.
    fn splat<S: Simd>(simd: S, x: Self) -> Self::Vector<S>;
    /// a · b + c, rounded once where the processor has an instruction for it.
    fn mul_add<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;
    /// Rounds.
    fn of(x: f64) -> Self;
    /// Exact: only 23-bit uniform numbers and small integers come this way.
    fn of_f32(x: f32) -> Self;
    /// eˣ
    fn exp(self) -> Self;
    /// ln x for positive normal x.
    fn ln(self) -> Self;
    /// √x
    fn sqrt(self) -> Self;
    /// |x|
    fn abs(self) -> Self;
    /// The larger.
    fn max(self, other: Self) -> Self;
    /// tanh x
    fn tanh(self) -> Self;
    /// (Φ(x), φ(x)): distribution function and density of the standard normal distribution.
    fn normal(self) -> (Self, Self);
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
    type Vector<S: Simd> = S::f64s;
    #[inline(always)]
    fn splat<S: Simd>(simd: S, x: Self) -> S::f64s {
        simd.splat_f64s(x)
    }
    #[inline(always)]
    fn mul_add<S: Simd>(simd: S, a: S::f64s, b: S::f64s, c: S::f64s) -> S::f64s {
        simd.mul_add_e_f64s(a, b, c)
    }
    fn of(x: f64) -> Self {
        x
    }
    fn of_f32(x: f32) -> Self {
        f64::from(x)
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn ln(self) -> Self {
        f64::ln(self)
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn abs(self) -> Self {
        f64::abs(self)
    }
    fn max(self, other: Self) -> Self {
        f64::max(self, other)
    }
    fn tanh(self) -> Self {
        f64::tanh(self)
    }
    fn normal(self) -> (Self, Self) {
        let density = (-0.5 * self * self).exp() * FRAC_1_SQRT_2PI;
        (0.5 * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2), density)
    }
}

const FRAC_1_SQRT_2PI: f64 = 0.398_942_280_401_432_7;

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
    type Vector<S: Simd> = S::f32s;
    #[inline(always)]
    fn splat<S: Simd>(simd: S, x: Self) -> S::f32s {
        simd.splat_f32s(x)
    }
    #[inline(always)]
    fn mul_add<S: Simd>(simd: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
        simd.mul_add_e_f32s(a, b, c)
    }
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn of_f32(x: f32) -> Self {
        x
    }
    /// 2ᵏ · eʳ with |r| ≤ ln 2 / 2 and the Taylor polynomial of degree 7 (remainder 5e-9). A NaN stays one.
    #[inline(always)]
    fn exp(self) -> Self {
        /// Adding it to a small number rounds that to an integer, left in the low bits of the sum.
        const ROUND: f32 = 12_582_912.0;
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        let x = if self < -87.3 { -87.3 } else { self };
        let x = if x > 88.3 { 88.3 } else { x };
        let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
        let k = shifted - ROUND;
        let r = k.mul_add(-LN2_LOW, k.mul_add(-LN2_HIGH, x));
        let series = 1.0f32 / 5040.0;
        let series = series.mul_add(r, 1.0 / 720.0);
        let series = series.mul_add(r, 1.0 / 120.0);
        let series = series.mul_add(r, 1.0 / 24.0);
        let series = series.mul_add(r, 1.0 / 6.0);
        let series = series.mul_add(r, 0.5);
        let series = (series * r).mul_add(r, r + 1.0);
        let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
        series * power
    }
    /// k · ln 2 + ln m with m in \[√½, √2), and ln m = 2 artanh((m-1)/(m+1)) by its series (remainder 1e-9).
    #[inline(always)]
    fn ln(self) -> Self {
        const SQRT_HALF: u32 = 0x3f35_04f3;
        let bits = self.to_bits().wrapping_sub(SQRT_HALF);
        let k = ((bits as i32) >> 23) as f32;
        let m = f32::from_bits((bits & 0x007f_ffff).wrapping_add(SQRT_HALF));
        let s = (m - 1.0) / (m + 1.0);
        let q = s * s;
        let series = 2.0f32 / 9.0;
        let series = series.mul_add(q, 2.0 / 7.0);
        let series = series.mul_add(q, 2.0 / 5.0);
        let series = series.mul_add(q, 2.0 / 3.0);
        k.mul_add(std::f32::consts::LN_2, (series * q).mul_add(s, 2.0 * s))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f32::abs(self)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        let e = Real::exp(-2.0 * Real::abs(self));
        ((1.0 - e) / (1.0 + e)).copysign(self)
    }
    /// Φ(-|x|) = ½ e^(-x²/2) · t · P(t), t = 1 / (1 + 0.42 |x| / √2): a least-squares fit of the scaled complementary
    /// error function with relative error 5e-8, which shares its exponential with the density.
    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        let z = Real::abs(self) * std::f32::consts::FRAC_1_SQRT_2;
        let gauss = Real::exp(-z * z);
        let t = 1.0 / z.mul_add(0.42, 1.0);
        let series = 0.074_936_435f32;
        let series = series.mul_add(t, -0.340_421_48);
        let series = series.mul_add(t, 0.476_579_15);
        let series = series.mul_add(t, -0.164_872_57);
        let series = series.mul_add(t, 0.287_754_75);
        let series = series.mul_add(t, 0.188_650_13);
        let series = series.mul_add(t, 0.240_621_95);
        let series = series.mul_add(t, 0.236_751_59);
        let tail = 0.5 * gauss * t * series;
        let cdf = if self < 0.0 { tail } else { 1.0 - tail };
        (cdf, gauss * FRAC_1_SQRT_2PI as f32)
    }
}

/// Independent running sums in [`sum`] and [`dot`]: what fills a 512-bit register with f32.
const LANES: usize = 16;

/// Σ a · b, or Σ a, over [`LANES`] running sums: the same order of additions on every machine. Compilers make poor vector
/// instructions of such a loop, so they are spelt out.
struct Sum<'a, R> {
    a: &'a [R],
    b: Option<&'a [R]>,
}

impl<R: Real> WithSimd for Sum<'_, R> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> R {
        let width = size_of::<R::Vector<S>>() / size_of::<R>();
        let (a, rest) = self.a.as_chunks::<LANES>();
        let (b, more) = self.b.map_or((&[][..], &[][..]), |b| b.as_chunks::<LANES>());
        // As many registers as hold the running sums.
        let mut sums = [R::splat(simd, R::ZERO); LANES];
        let one = R::splat(simd, R::ONE);
        for (index, a) in a.iter().enumerate() {
            for (register, sum) in sums.iter_mut().take(LANES / width).enumerate() {
                // SAFETY: a chunk has as many vectors.
                let load = |chunk: &[R; LANES]| unsafe {
                    chunk.as_ptr().cast::<R::Vector<S>>().add(register).read_unaligned()
                };
                let b = if self.b.is_some() { load(&b[index]) } else { one };
                *sum = R::mul_add(simd, load(a), b, *sum);
            }
        }
        let mut lanes = [R::ZERO; LANES];
        lanes.copy_from_slice(&bytemuck::cast_slice(&sums)[..LANES]);
        let sum = sum_of_lanes(lanes);
        match self.b {
            Some(_) => rest.iter().zip(more).fold(sum, |sum, (&a, &b)| sum + a * b),
            None => rest.iter().fold(sum, |sum, &a| sum + a),
        }
    }
}

/// Σ x
pub(super) fn sum<R: Real>(x: &[R]) -> R {
    pulp::Arch::new().dispatch(Sum { a: x, b: None })
}

/// Σ a · b
pub(super) fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    assert_eq!(a.len(), b.len(), "vectors of one length");
    pulp::Arch::new().dispatch(Sum { a, b: Some(b) })
}

#[inline(always)]
fn sum_of_lanes<R: Real>(mut lanes: [R; LANES]) -> R {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// eˣ⁻ᵒ of each x, o being `origin`, in its place; returns their sum, as by [`sum`].
#[inline(always)]
pub(super) fn exponentials<R: Real>(x: &mut [R], origin: R) -> R {
    let mut lanes = [R::ZERO; LANES];
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (total, x) in lanes.iter_mut().zip(chunk) {
            *x = (*x - origin).exp();
            *total += *x;
        }
    }
    rest.iter_mut().fold(sum_of_lanes(lanes), |total, x| {
        *x = (*x - origin).exp();
        total + *x
    })
}

/// The largest element; -∞ of nothing.
#[inline(always)]
pub(super) fn maximum<R: Real>(x: &[R]) -> R {
    let mut lanes = [R::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (best, &value) in lanes.iter_mut().zip(chunk) {
            *best = if value > *best { value } else { *best };
        }
    }
    lanes.iter().chain(rest).fold(R::NEG_INFINITY, |best, &value| if value > best { value } else { best })
}

/// Runs a loop compiled for the widest vector instructions of this processor.
#[inline(always)]
pub(crate) fn vectorized<T>(f: impl FnOnce() -> T) -> T {
    struct Wrap<F>(F);
    impl<T, F: FnOnce() -> T> pulp::NullaryFnOnce for Wrap<F> {
        type Output = T;
        #[inline(always)]
        fn call(self) -> T {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Wrap(f))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relative(got: f32, want: f64) -> f64 {
        (f64::from(got) - want).abs() / want.abs().max(1e-30)
    }

    #[test]
    fn fast_functions_are_accurate() {
        for i in -80_000..80_000 {
            let x = i as f32 * 1e-3;
            assert!(relative(Real::exp(x), f64::from(x).exp()) < 2.5e-7, "exp {x}");
            let (cdf, density) = x.normal();
            let (true_cdf, true_density) = f64::from(x).normal();
            // A dozen roundings, each of half a unit in the last place at the most.
            let rounding = 2.0 * f64::from(f32::EPSILON);
            assert!((f64::from(cdf) - true_cdf).abs() < rounding, "Φ({x})");
            assert!((f64::from(density) - true_density).abs() < rounding, "φ({x})");
            assert!((f64::from(Real::tanh(x)) - f64::from(x).tanh()).abs() < 2.0 * rounding, "tanh {x}");
            if x > -5.0 && x < 0.0 {
                assert!(relative(cdf, true_cdf) < 2e-6, "Φ({x}) in its tail");
            }
        }
        for i in 1..100_000 {
            for x in [i as f32 * 1e-5, i as f32 * 0.37, i as f32 * 1e-30] {
                let want = f64::from(x).ln();
                assert!((f64::from(Real::ln(x)) - want).abs() < 1.5e-7 * want.abs().max(0.5), "ln {x}");
            }
        }
        assert!(Real::exp(f32::NAN).is_nan());
        assert_eq!(Real::exp(0.0f32), 1.0);
        assert!(Real::exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn reductions_match_plain_loops() {
        let x: Vec<f64> = (0..131).map(|i| f64::from(i * 37 % 101) - 50.0).collect();
        for n in [0, 1, 15, 16, 17, 131] {
            assert_eq!(sum(&x[..n]), x[..n].iter().sum::<f64>());
            assert_eq!(dot(&x[..n], &x[131 - n..]), (0..n).map(|i| x[i] * x[131 - n + i]).sum::<f64>());
            assert_eq!(maximum(&x[..n]), x[..n].iter().copied().fold(f64::NEG_INFINITY, f64::max));
        }
    }
}
