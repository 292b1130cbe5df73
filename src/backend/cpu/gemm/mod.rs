//! Matrix products, cut into parts whose borders depend on the shapes alone.
//!
//! Each part is one single-threaded call, so results do not depend on the number of threads, and whatever follows the
//! product (bias, activation) runs on the part while it is in the cache. `benches/records` has the speed of this and
//! of the engines of other crates.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::Pod;
use rayon::prelude::*;

use super::real::Real;

mod factor;
mod kernel;
mod matrix;
mod pack;
mod scratch;

pub(super) use factor::{Factor, Pair};
use kernel::{DEPTH, Product, Right, SCRATCH_A, WIDEST};
pub(super) use kernel::{Left, ROWS};
pub(super) use matrix::{Mat, MatMut};
use pack::{LINE, Lay, Pack};
pub(super) use scratch::Scratch;

/// What products multiply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Factors {
    /// The numbers themselves.
    #[default]
    Full,
    /// Pairs of numbers rounded to bf16, by the processor's own instructions.
    NativePairs,
    /// The same taken apart and multiplied in f32.
    PortablePairs,
}

impl Factors {
    /// Pairs of bf16 as this processor does them best.
    pub(super) fn pairs() -> Self {
        if factor::has_native_pairs() { Self::NativePairs } else { Self::PortablePairs }
    }

    /// For a log.
    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Full => "products of full precision",
            Self::NativePairs => "products in bf16 by AVX512_BF16",
            Self::PortablePairs => "products in bf16 without AVX512_BF16: no faster than fp32",
        }
    }
}

/// Calls a function of the number type and the type of factors that are to be multiplied.
macro_rules! by_factors {
    ($factors:expr, $function:ident::<$real:ident>($($argument:expr),*)) => {
        match $factors {
            Factors::Full => $function::<$real, $real>($($argument),*),
            Factors::NativePairs => $function::<$real, <$real as Real>::Pair<true>>($($argument),*),
            Factors::PortablePairs => $function::<$real, <$real as Real>::Pair<false>>($($argument),*),
        }
    };
}
pub(super) use by_factors;

/// Asks for a line of memory that is about to be used; a hint, so any address will do.
#[inline(always)]
fn prefetch<R>(at: *const R) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction accesses nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Whether there is anything to multiply; an empty sum is 0.
fn is_product<R: Real>(
    c: &mut MatMut<'_, R>,
    add: bool,
    (rows, terms): (usize, usize),
    b: (usize, usize),
) -> bool {
    assert!(c.rows == rows && (terms, c.cols) == b, "matrix shapes do not fit");
    if terms == 0 && !add {
        (0..c.rows).for_each(|row| c.row(row).fill(R::ZERO));
    }
    c.rows > 0 && c.cols > 0 && terms > 0
}

/// C = α · A · B, or C += α · A · B, on this thread.
fn multiply<R: Real, E: Factor<R>>(c: &mut MatMut<'_, R>, add: bool, alpha: R, a: Mat<'_, R>, b: Mat<'_, R>) {
    if is_product(c, add, (a.rows, a.cols), (b.rows, b.cols)) {
        let panels = DEPTH.min(b.rows.div_ceil(E::TERMS)) * b.cols.next_multiple_of(WIDEST);
        let scratch = &mut Scratch::<E>::new(SCRATCH_A + panels);
        E::dispatch(Product { c, add, alpha, a: Left::Plain(a), b: Right::Plain(b), scratch });
    }
}

/// A right-hand operand of several products on this thread, packed once.
pub(super) struct Panels<E> {
    factors: Scratch<E>,
    terms: usize,
    cols: usize,
}

impl<E: Pod> Panels<E> {
    pub(super) fn new<R: Real>(b: Mat<'_, R>) -> Self
    where
        E: Factor<R>,
    {
        let padded = b.cols.next_multiple_of(WIDEST);
        let mut factors = Scratch::new(b.rows.div_ceil(E::TERMS) * padded);
        for (block, out) in factors.chunks_mut(padded * DEPTH).enumerate() {
            let from = block * DEPTH * E::TERMS;
            let terms = (DEPTH * E::TERMS).min(b.rows - from);
            E::dispatch(Pack { b: b.block(from, terms, 0, b.cols), out });
        }
        Self { factors, terms: b.rows, cols: b.cols }
    }

    /// C = α · A · B, or C += α · A · B.
    pub(super) fn multiply<R: Real>(&self, c: &mut MatMut<'_, R>, add: bool, alpha: R, a: Left<'_, R, E>)
    where
        E: Factor<R>,
    {
        if is_product(c, add, a.shape(), (self.terms, self.cols)) {
            let b = Right::Packed { panels: &self.factors, padded: self.cols.next_multiple_of(WIDEST) };
            E::dispatch(Product { c, add, alpha, a, b, scratch: &mut Scratch::new(SCRATCH_A) });
        }
    }
}

/// A left-hand operand that is the transpose of a matrix whose rows become known a few at a time.
pub(super) struct Turned<E> {
    factors: Scratch<E>,
    /// Factors from term to term: an odd number of lines, as those of an even one would fall into few sets of the cache.
    stride: usize,
    cols: usize,
}

impl<E: Pod> Turned<E> {
    /// Room for so many terms of all columns.
    pub(super) fn new<R: Real>(terms: usize, cols: usize) -> Self
    where
        E: Factor<R>,
    {
        let stride = (cols.next_multiple_of(ROWS).div_ceil(LINE) | 1) * LINE;
        Self { factors: Scratch::new(terms.div_ceil(E::TERMS) * stride), stride, cols }
    }

    /// Takes the terms from `first` on, a multiple of [`Factor::TERMS`], as rows of a matrix.
    pub(super) fn set<R: Real>(&mut self, first: usize, rows: Mat<'_, R>)
    where
        E: Factor<R>,
    {
        assert_eq!(rows.cols, self.cols, "matrix shapes do not fit");
        let out = &mut self.factors[first / E::TERMS * self.stride..];
        E::dispatch(Lay { from: rows, out, stride: self.stride });
    }

    /// Columns × the first `terms`.
    pub(super) fn left<R: Real>(&self, terms: usize) -> Left<'_, R, E> {
        Left::Turned { factors: &self.factors, stride: self.stride, rows: self.cols, terms }
    }
}

/// B, packed by all threads.
fn par_pack<R: Real, E: Factor<R>>(b: Mat<'_, R>, panels: &mut [E]) {
    /// Columns that a thread packs at a time.
    const COLUMNS: usize = 128;
    let padded = b.cols.next_multiple_of(WIDEST);
    panels.par_chunks_mut(padded * DEPTH).enumerate().for_each(|(index, block)| {
        let from = index * DEPTH * E::TERMS;
        let terms = (DEPTH * E::TERMS).min(b.rows - from);
        block.par_chunks_mut(COLUMNS * terms.div_ceil(E::TERMS)).enumerate().for_each(|(index, out)| {
            let b = b.block(from, terms, index * COLUMNS, COLUMNS.min(b.cols - index * COLUMNS));
            E::dispatch(Pack { b, out });
        });
    });
}

/// Runs `f` on 0 to `count - 1` over all threads; each takes the next number when it is free, so the last ones should
/// be small.
fn par_in_order(count: usize, f: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    (0..rayon::current_num_threads().min(count)).into_par_iter().with_max_len(1).for_each(|_| {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            f(index);
        }
    });
}

/// A product to make: C = A · B or C += A · B.
pub(super) struct Job<'a, R> {
    pub(super) c: MatMut<'a, R>,
    pub(super) a: Mat<'a, R>,
    pub(super) b: Mat<'a, R>,
}

impl<R: Real> Job<'_, R> {
    /// Elements of B beyond which each part of the product packs its own share: as a whole it would not stay in the
    /// cache.
    const LARGE: usize = 1 << 21;
    /// Columns of such a part.
    const COLUMNS: usize = 256;

    /// Whether B is packed once for all parts, which are rows of C; otherwise they are columns.
    fn by_rows(&self) -> bool {
        self.b.rows * self.b.cols <= Self::LARGE
    }

    /// Factors that packed B takes, of so many terms each.
    fn panels(&self, terms: usize) -> usize {
        if self.by_rows() { self.b.rows.div_ceil(terms) * self.b.cols.next_multiple_of(WIDEST) } else { 0 }
    }

    /// Rows or columns of a part.
    fn step(&self) -> usize {
        if self.by_rows() {
            ROWS
        } else {
            self.c.cols.div_ceil(2).next_multiple_of(WIDEST).min(Self::COLUMNS)
        }
    }

    fn parts(&self) -> usize {
        let whole = if self.by_rows() { self.c.rows } else { self.c.cols };
        whole.div_ceil(self.step())
    }

    /// Makes one part. No part may be made by two threads at once.
    fn make<E: Factor<R>>(
        &self,
        part: usize,
        add: bool,
        panels: &[E],
        finish: &impl Fn(&mut MatMut<'_, R>, usize, usize),
    ) {
        let (Self { c, a, b }, from) = (self, part * self.step());
        if self.by_rows() {
            let rows = self.step().min(c.rows - from);
            // SAFETY: rows of different parts do not overlap.
            let mut part = unsafe { c.block(from, rows, 0, c.cols) };
            let b = Right::Packed { panels, padded: c.cols.next_multiple_of(WIDEST) };
            let (c, a) = (&mut part, Left::Plain(a.block(from, rows, 0, a.cols)));
            let scratch = &mut Scratch::new(SCRATCH_A);
            E::dispatch(Product { c, add, alpha: R::ONE, a, b, scratch });
            finish(&mut part, from, 0);
        } else {
            let cols = self.step().min(c.cols - from);
            // SAFETY: columns of different parts do not overlap.
            let mut part = unsafe { c.block(0, c.rows, from, cols) };
            multiply::<R, E>(&mut part, add, R::ONE, *a, b.block(0, b.rows, from, cols));
            finish(&mut part, 0, from);
        }
    }
}

/// Several products over all threads, which so wait for each other only once; `finish(part, first row, first column)`
/// runs on each part when it is done.
pub(super) fn par_matmuls<R: Real>(
    factors: Factors,
    jobs: Vec<Job<'_, R>>,
    add: bool,
    finish: impl Fn(&mut MatMut<'_, R>, usize, usize) + Sync,
) {
    by_factors!(factors, par_multiply::<R>(jobs, add, finish));
}

fn par_multiply<R: Real, E: Factor<R>>(
    mut jobs: Vec<Job<'_, R>>,
    add: bool,
    finish: impl Fn(&mut MatMut<'_, R>, usize, usize) + Sync,
) {
    jobs.retain_mut(|Job { c, a, b }| is_product(c, add, (a.rows, a.cols), (b.rows, b.cols)));
    // Large parts first.
    jobs.sort_by_key(|job| std::cmp::Reverse(job.c.rows * job.c.cols * job.a.cols / job.parts()));
    let parts: Vec<_> =
        (0..jobs.len()).flat_map(|job| (0..jobs[job].parts()).map(move |part| (job, part))).collect();
    let mut scratch = Scratch::<E>::new(jobs.iter().map(|job| job.panels(E::TERMS)).sum());
    let (mut rest, mut panels) = (&mut *scratch, Vec::with_capacity(jobs.len()));
    for job in &jobs {
        let own;
        (own, rest) = rest.split_at_mut(job.panels(E::TERMS));
        panels.push(own);
    }
    panels.par_iter_mut().zip(&jobs).for_each(|(panels, job)| par_pack::<R, E>(job.b, panels));
    par_in_order(parts.len(), |index| {
        let (job, part) = parts[index];
        jobs[job].make(part, add, panels[job], &finish);
    });
}

/// C = A · B or C += A · B over all threads, with `finish` as in [`par_matmuls`].
pub(super) fn par_matmul<R: Real>(
    factors: Factors,
    c: MatMut<'_, R>,
    add: bool,
    a: Mat<'_, R>,
    b: Mat<'_, R>,
    finish: impl Fn(&mut MatMut<'_, R>, usize, usize) + Sync,
) {
    par_matmuls(factors, vec![Job { c, a, b }], add, finish);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of two operands, each to be taken as it lies or transposed.
    pub(super) struct Operands<R> {
        a: Vec<R>,
        b: Vec<R>,
        shape: (usize, usize, usize),
    }

    impl<R: Real> Operands<R> {
        pub(super) fn new(rows: usize, cols: usize, terms: usize) -> Self {
            let number = |i: usize| R::of(f64::from((i * 7919 % 1013) as u32) / 506.5 - 1.0);
            let a = (0..rows * terms).map(number).collect();
            Self { a, b: (0..terms * cols).map(|i| number(i + 5)).collect(), shape: (rows, cols, terms) }
        }

        pub(super) fn every_way(&self) -> [(Mat<'_, R>, Mat<'_, R>); 4] {
            let (rows, cols, terms) = self.shape;
            let (a, turned_a) = (Mat::new(&self.a, rows, terms), Mat::new(&self.a, terms, rows).t());
            let (b, turned_b) = (Mat::new(&self.b, terms, cols), Mat::new(&self.b, cols, terms).t());
            [(a, b), (a, turned_b), (turned_a, b), (turned_a, turned_b)]
        }
    }

    /// Compares with sums in f64 of the numbers, or of what bf16 makes of them, within what a sum of so many rounded products can be off (Higham 2002, eq. 3.5).
    pub(super) fn within<R: Real>(
        got: &[R],
        start: impl Fn(usize) -> R,
        alpha: f64,
        a: Mat<'_, R>,
        b: Mat<'_, R>,
        pairs: bool,
    ) {
        let number = |x: R| if pairs { half::bf16::from_f64(x.to_f64()).to_f64() } else { x.to_f64() };
        let epsilon = if size_of::<R>() == 4 { f64::from(f32::EPSILON) } else { f64::EPSILON };
        for (i, got) in got.iter().enumerate() {
            let start = start(i).to_f64();
            let (row, col) = (i / b.cols, i % b.cols);
            let products = (0..a.cols).map(|k| alpha * number(a.at(row, k)) * number(b.at(k, col)));
            let (sum, size) = products.fold((start, start.abs()), |(sum, size), x| (sum + x, size + x.abs()));
            let off = (got.to_f64() - sum).abs();
            assert!(off <= (a.cols + 2) as f64 * epsilon * size, "{row}, {col}: {} for {sum}", got.to_f64());
        }
    }

    /// Every operand either way round, at sizes on either side of each block's border.
    fn check<R: Real>(factors: Factors) {
        let pairs = factors != Factors::Full;
        let large = Job::<R>::LARGE;
        let shapes = [
            (1, 1, 1),
            (5, 17, 9),
            (13, 31, 257),
            (97, 33, 8),
            (200, 300, 70),
            (50, 600, 513),
            (3, 2, 0),
            (2, large / 8 + 5, 8),
            (1, 1, large + 1),
        ];
        for (rows, cols, terms) in shapes {
            let operands = Operands::<R>::new(rows, cols, terms);
            for (index, (a, b)) in operands.every_way().into_iter().enumerate() {
                let add = index % 2 == 1;
                let old = |i: usize| R::of(f64::from((i % 101) as u32) / 50.0 - 1.0);
                let start: Vec<R> = (0..rows * cols).map(old).collect();
                let start_of = |i| if add { old(i) } else { R::ZERO };
                let (mut alone, mut shared) = (start.clone(), start);
                let c = &mut MatMut::new(&mut alone, rows, cols);
                by_factors!(factors, multiply::<R>(c, add, R::of(0.5), a, b));
                within(&alone, start_of, 0.5, a, b, pairs);
                par_matmul(factors, MatMut::new(&mut shared, rows, cols), add, a, b, |_, _, _| {});
                within(&shared, start_of, 1.0, a, b, pairs);
            }
        }
    }

    /// C = ½ A · B from operands packed beforehand, A a few terms at a time where it is transposed.
    fn from_packed<R: Real, E: Factor<R>>(c: &mut MatMut<'_, R>, add: bool, a: Mat<'_, R>, b: Mat<'_, R>) {
        let panels = Panels::<E>::new(b);
        if a.row_stride != 1 {
            return panels.multiply(c, add, R::of(0.5), Left::Plain(a));
        }
        let mut turned = Turned::<E>::new(a.cols, a.rows);
        for from in (0..a.cols).step_by(10) {
            turned.set(from, a.t().block(from, 10.min(a.cols - from), 0, a.rows));
        }
        panels.multiply(c, add, R::of(0.5), turned.left(a.cols));
    }

    #[test]
    fn operands_packed_beforehand_give_the_product() {
        for factors in [Factors::Full, Factors::PortablePairs, Factors::pairs()] {
            for (rows, cols, terms) in [(1, 1, 1), (5, 17, 9), (97, 33, 8), (50, 70, 1061), (3, 2, 0)] {
                let operands = Operands::<f32>::new(rows, cols, terms);
                for (index, (a, b)) in operands.every_way().into_iter().enumerate() {
                    let (add, mut out) = (index % 2 == 1, vec![0.75; rows * cols]);
                    let c = &mut MatMut::new(&mut out, rows, cols);
                    by_factors!(factors, from_packed::<f32>(c, add, a, b));
                    let start = if add { 0.75 } else { 0.0 };
                    within(&out, |_| start, 0.5, a, b, factors != Factors::Full);
                }
            }
        }
    }

    #[test]
    fn products_match_plain_sums() {
        check::<f32>(Factors::Full);
        check::<f64>(Factors::Full);
    }

    #[test]
    fn products_of_pairs_match_sums_of_rounded_numbers() {
        check::<f32>(Factors::PortablePairs);
        // The processor's own, where it has them.
        check::<f32>(Factors::pairs());
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for factors in [Factors::Full, Factors::PortablePairs, Factors::pairs()] {
            for (bad, row) in [(f32::NAN, 0), (f32::INFINITY, 1)] {
                let (mut a, b) = ([1.0f32; 2 * 40], [1.0f32; 40 * 3]);
                a[40 * row + 7] = bad;
                let mut c = [0.0f32; 6];
                let (a, b) = (Mat::new(&a, 2, 40), Mat::new(&b, 40, 3));
                let out = &mut MatMut::new(&mut c, 2, 3);
                by_factors!(factors, multiply::<f32>(out, false, 1.0, a, b));
                assert!(c[3 * row..][..3].iter().all(|x| !x.is_finite()), "{factors:?} {c:?}");
                assert_eq!(c[3 * (1 - row)..][..3], [40.0; 3], "{factors:?}");
            }
        }
    }
}
