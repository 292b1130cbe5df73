//! Matrix products, cut into parts whose borders depend on the shapes alone.
//!
//! Operands are working values, products full ones. Each part is one single-threaded call, so results do not depend on
//! the number of threads, and whatever follows the product (bias, activation, rounding) takes the part from the cache.
//! `benches/records` has the speed of this and of the engines of other crates.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::Pod;
use rayon::prelude::*;

use super::real::Real;
use super::working::{Full, Working};

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

/// Calls a function of a working type and of what products of it multiply here.
macro_rules! by_factors {
    ($function:ident::<$x:ident>($($argument:expr),*)) => {
        if $crate::backend::cpu::native::available() {
            $function::<$x, <$x as Working>::Factor<true>>($($argument),*)
        } else {
            $function::<$x, <$x as Working>::Factor<false>>($($argument),*)
        }
    };
}
pub(super) use by_factors;

/// Asks for a line of memory that is about to be used; a hint, so any address will do.
#[inline(always)]
fn prefetch<T>(at: *const T) {
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
fn multiply<X: Working, E: Factor<X>>(
    c: &mut MatMut<'_, Full<X>>,
    add: bool,
    alpha: Full<X>,
    a: Mat<'_, X>,
    b: Mat<'_, X>,
) {
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
    pub(super) fn new<X: Working>(b: Mat<'_, X>) -> Self
    where
        E: Factor<X>,
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
    pub(super) fn multiply<X: Working>(
        &self,
        c: &mut MatMut<'_, Full<X>>,
        add: bool,
        alpha: Full<X>,
        a: Left<'_, X, E>,
    ) where
        E: Factor<X>,
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
    pub(super) fn new<X: Working>(terms: usize, cols: usize) -> Self
    where
        E: Factor<X>,
    {
        let stride = (cols.next_multiple_of(ROWS).div_ceil(LINE) | 1) * LINE;
        Self { factors: Scratch::new(terms.div_ceil(E::TERMS) * stride), stride, cols }
    }

    /// Takes the terms from `first` on, a multiple of [`Factor::TERMS`], as rows of a matrix.
    pub(super) fn set<X: Working>(&mut self, first: usize, rows: Mat<'_, X>)
    where
        E: Factor<X>,
    {
        assert_eq!(rows.cols, self.cols, "matrix shapes do not fit");
        let out = &mut self.factors[first / E::TERMS * self.stride..];
        E::dispatch(Lay { from: rows, out, stride: self.stride });
    }

    /// Columns × the first `terms`.
    pub(super) fn left<X: Working>(&self, terms: usize) -> Left<'_, X, E> {
        Left::Turned { factors: &self.factors, stride: self.stride, rows: self.cols, terms }
    }
}

/// B, packed by all threads.
fn par_pack<X: Working, E: Factor<X>>(b: Mat<'_, X>, panels: &mut [E]) {
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

/// A function that takes a part of a product, its first row and its first column.
pub(super) type Finish<'a, R> = &'a (dyn Fn(&mut MatMut<'_, R>, usize, usize) + Sync);

/// Where a product A · B goes.
pub(super) enum To<'a, R> {
    /// It is added to this.
    Sum(MatMut<'a, R>),
    /// To this function, part by part.
    Parts(Finish<'a, R>),
}

/// A product to make.
pub(super) struct Job<'a, X: Working> {
    pub(super) a: Mat<'a, X>,
    pub(super) b: Mat<'a, X>,
    pub(super) to: To<'a, Full<X>>,
}

impl<X: Working> Job<'_, X> {
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
            self.b.cols.div_ceil(2).next_multiple_of(WIDEST).min(Self::COLUMNS)
        }
    }

    fn parts(&self) -> usize {
        match (self.a.rows, self.b.cols) {
            (0, _) | (_, 0) => 0,
            (rows, cols) => (if self.by_rows() { rows } else { cols }).div_ceil(self.step()),
        }
    }

    /// Makes one part. No part may be made by two threads at once.
    fn make<E: Factor<X>>(&self, part: usize, panels: &[E]) {
        let (Self { a, b, to }, from) = (self, part * self.step());
        let (row, rows, col, cols) = if self.by_rows() {
            (from, self.step().min(a.rows - from), 0, b.cols)
        } else {
            (0, a.rows, from, self.step().min(b.cols - from))
        };
        let mut own;
        let (mut c, add) = match to {
            // SAFETY: parts do not overlap.
            To::Sum(c) => (unsafe { c.block(row, rows, col, cols) }, true),
            To::Parts(_) => {
                own = Scratch::new(rows * cols);
                (MatMut::new(&mut own, rows, cols), false)
            }
        };
        if a.cols == 0 {
            // There are no terms: the sum is 0.
            if !add {
                (0..rows).for_each(|row| c.row(row).fill(Full::<X>::ZERO));
            }
        } else if !self.by_rows() {
            multiply::<X, E>(&mut c, add, Full::<X>::ONE, *a, b.block(0, b.rows, col, cols));
        } else {
            let b = Right::Packed { panels, padded: cols.next_multiple_of(WIDEST) };
            let (a, alpha) = (Left::Plain(a.block(row, rows, 0, a.cols)), Full::<X>::ONE);
            E::dispatch(Product { c: &mut c, add, alpha, a, b, scratch: &mut Scratch::new(SCRATCH_A) });
        }
        if let To::Parts(finish) = to {
            finish(&mut c, row, col);
        }
    }
}

/// Several products over all threads, which so wait for each other only once.
pub(super) fn par_matmuls<X: Working>(jobs: Vec<Job<'_, X>>) {
    by_factors!(par_multiply::<X>(jobs));
}

fn par_multiply<X: Working, E: Factor<X>>(mut jobs: Vec<Job<'_, X>>) {
    for Job { a, b, to } in &jobs {
        let fits = if let To::Sum(c) = to { (c.rows, c.cols) == (a.rows, b.cols) } else { true };
        assert!(fits && a.cols == b.rows, "matrix shapes do not fit");
    }
    jobs.retain(|job| job.parts() > 0);
    // Large parts first.
    jobs.sort_by_key(|job| std::cmp::Reverse(job.a.rows * job.b.cols * job.a.cols / job.parts()));
    let parts: Vec<_> =
        (0..jobs.len()).flat_map(|job| (0..jobs[job].parts()).map(move |part| (job, part))).collect();
    let mut scratch = Scratch::<E>::new(jobs.iter().map(|job| job.panels(E::TERMS)).sum());
    let (mut rest, mut panels) = (&mut *scratch, Vec::with_capacity(jobs.len()));
    for job in &jobs {
        let own;
        (own, rest) = rest.split_at_mut(job.panels(E::TERMS));
        panels.push(own);
    }
    panels.par_iter_mut().zip(&jobs).for_each(|(panels, job)| par_pack::<X, E>(job.b, panels));
    par_in_order(parts.len(), |index| {
        let (job, part) = parts[index];
        jobs[job].make(part, panels[job]);
    });
}

/// A · B over all threads, to a function part by part.
pub(super) fn par_matmul<X: Working>(a: Mat<'_, X>, b: Mat<'_, X>, finish: Finish<'_, Full<X>>) {
    par_matmuls(vec![Job { a, b, to: To::Parts(finish) }]);
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::backend::Float;

    /// The numbers of two operands, each to be taken as it lies or transposed.
    pub(super) struct Operands<X> {
        a: Vec<X>,
        b: Vec<X>,
        shape: (usize, usize, usize),
    }

    impl<X: Working> Operands<X> {
        pub(super) fn new(rows: usize, cols: usize, terms: usize) -> Self {
            let number = |i: usize| X::from_f64(f64::from((i * 7919 % 1013) as u32) / 506.5 - 1.0);
            let a = (0..rows * terms).map(number).collect();
            Self { a, b: (0..terms * cols).map(|i| number(i + 5)).collect(), shape: (rows, cols, terms) }
        }

        pub(super) fn every_way(&self) -> [(Mat<'_, X>, Mat<'_, X>); 4] {
            let (rows, cols, terms) = self.shape;
            let (a, turned_a) = (Mat::new(&self.a, rows, terms), Mat::new(&self.a, terms, rows).t());
            let (b, turned_b) = (Mat::new(&self.b, terms, cols), Mat::new(&self.b, cols, terms).t());
            [(a, b), (a, turned_b), (turned_a, b), (turned_a, turned_b)]
        }
    }

    /// Compares with sums in f64, within what a sum of so many rounded products can be off (Higham 2002, eq. 3.5).
    pub(super) fn within<X: Working>(
        got: &[Full<X>],
        start: impl Fn(usize) -> f64,
        alpha: f64,
        a: Mat<'_, X>,
        b: Mat<'_, X>,
    ) {
        let epsilon = if size_of::<Full<X>>() == 4 { f64::from(f32::EPSILON) } else { f64::EPSILON };
        for (i, got) in got.iter().enumerate() {
            let (row, col, start) = (i / b.cols, i % b.cols, start(i));
            let products = (0..a.cols).map(|k| alpha * a.at(row, k).to_f64() * b.at(k, col).to_f64());
            let (sum, size) = products.fold((start, start.abs()), |(sum, size), x| (sum + x, size + x.abs()));
            let off = (got.to_f64() - sum).abs();
            assert!(off <= (a.cols + 2) as f64 * epsilon * size, "{row}, {col}: {} for {sum}", got.to_f64());
        }
    }

    /// Every operand either way round, at sizes on either side of each block's border.
    fn check<X: Working, E: Factor<X>>() {
        let large = Job::<X>::LARGE;
        let shapes = [
            (1, 1, 1),
            (5, 17, 9),
            (13, 31, 257),
            (97, 33, 8),
            (200, 300, 70),
            (50, 600, 513),
            (3, 2, 0),
            (2 * ROWS + 1, 3, 0),
            (0, 5, 7),
            (5, 0, 7),
            (2, large / 8 + 5, 8),
            (1, 1, large + 1),
        ];
        for (rows, cols, terms) in shapes {
            let operands = Operands::<X>::new(rows, cols, terms);
            for (index, (a, b)) in operands.every_way().into_iter().enumerate() {
                let add = index % 2 == 1;
                let old = |i: usize| f64::from((i % 101) as u32) / 64.0 - 1.0;
                let start: Vec<Full<X>> = (0..rows * cols).map(|i| Full::<X>::of(old(i))).collect();
                let start_of = |i| if add { old(i) } else { 0.0 };
                let (mut alone, mut sum, mut parts) = (start.clone(), start.clone(), start);
                let c = &mut MatMut::new(&mut alone, rows, cols);
                multiply::<X, E>(c, add, Full::<X>::of(0.5), a, b);
                within(&alone, start_of, 0.5, a, b);
                par_multiply::<X, E>(vec![Job { a, b, to: To::Sum(MatMut::new(&mut sum, rows, cols)) }]);
                within(&sum, old, 1.0, a, b);
                let whole = MatMut::new(&mut parts, rows, cols);
                let finish: Finish<'_, Full<X>> = &|part, row, col| {
                    // SAFETY: parts do not overlap.
                    let mut place = unsafe { whole.block(row, part.rows, col, part.cols) };
                    (0..part.rows).for_each(|row| place.row(row).copy_from_slice(part.row(row)));
                };
                par_multiply::<X, E>(vec![Job { a, b, to: To::Parts(finish) }]);
                within(&parts, |_| 0.0, 1.0, a, b);
            }
        }
    }

    /// C = ½ A · B from operands packed beforehand, A a few terms at a time where it is transposed.
    fn from_packed<X: Working, E: Factor<X>>(
        c: &mut MatMut<'_, Full<X>>,
        add: bool,
        a: Mat<'_, X>,
        b: Mat<'_, X>,
    ) {
        let panels = Panels::<E>::new(b);
        if a.row_stride != 1 {
            return panels.multiply(c, add, Full::<X>::of(0.5), Left::Plain(a));
        }
        let mut turned = Turned::<E>::new(a.cols, a.rows);
        for from in (0..a.cols).step_by(10) {
            turned.set(from, a.t().block(from, 10.min(a.cols - from), 0, a.rows));
        }
        panels.multiply(c, add, Full::<X>::of(0.5), turned.left(a.cols));
    }

    fn check_packed<X: Working, E: Factor<X>>() {
        for (rows, cols, terms) in [(1, 1, 1), (5, 17, 9), (97, 33, 8), (50, 70, 1061), (3, 2, 0)] {
            let operands = Operands::<X>::new(rows, cols, terms);
            for (index, (a, b)) in operands.every_way().into_iter().enumerate() {
                let (add, mut out) = (index % 2 == 1, vec![Full::<X>::of(0.75); rows * cols]);
                from_packed::<X, E>(&mut MatMut::new(&mut out, rows, cols), add, a, b);
                within(&out, |_| if add { 0.75 } else { 0.0 }, 0.5, a, b);
            }
        }
    }

    #[test]
    fn operands_packed_beforehand_give_the_product() {
        check_packed::<f32, f32>();
        check_packed::<bf16, Pair<false>>();
        by_factors!(check_packed::<bf16>());
    }

    #[test]
    fn products_match_plain_sums() {
        check::<f32, f32>();
        check::<f64, f64>();
        check::<bf16, Pair<false>>();
        // The processor's own pairs, where it has them.
        by_factors!(check::<bf16>());
    }

    fn check_no_numbers<X: Working, E: Factor<X>>() {
        // An even number of terms, and an odd one, whose last pair has one.
        for (terms, bad, row) in
            [(40, f64::NAN, 0), (40, f64::INFINITY, 1), (39, f64::NAN, 1), (39, f64::NAN, 0)]
        {
            let (mut a, b) = (vec![X::from_f64(1.0); 2 * terms], vec![X::from_f64(1.0); terms * 3]);
            a[terms * row] = X::from_f64(bad);
            let mut c = [Full::<X>::ZERO; 6];
            let (a, b) = (Mat::new(&a, 2, terms), Mat::new(&b, terms, 3));
            multiply::<X, E>(&mut MatMut::new(&mut c, 2, 3), false, Full::<X>::ONE, a, b);
            assert!(c[3 * row..][..3].iter().all(|x| !x.to_f64().is_finite()), "{c:?}");
            assert_eq!(c[3 * (1 - row)..][..3], [Full::<X>::of(terms as f64); 3]);
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        check_no_numbers::<f32, f32>();
        check_no_numbers::<bf16, Pair<false>>();
        by_factors!(check_no_numbers::<bf16>());
    }
}
