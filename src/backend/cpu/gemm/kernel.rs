//! The inner loops of a matrix product on one thread, for whatever vector instructions the processor has.
//!
//! After Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): B is packed into panels as
//! wide as two vectors, A is read a few rows at a time, and the tile of C where both meet stays in registers for
//! [`DEPTH`] terms. A transposed A is packed too: read where it lies, at a stride of some KiB, it would fall into few
//! sets of the cache. A panel of B stays in the first-level cache meanwhile, [`ROWS`] rows of A in the second.
// Counted loops unroll; an iterator's method that happens not to be inlined would lose the vector instructions.
#![allow(clippy::needless_range_loop)]

use bytemuck::cast_slice;
use pulp::{Simd, WithSimd};

use super::super::real::Real;
use super::super::working::{Full, Working};
use super::factor::Factor;
use super::pack::{Pack, pack};
use super::{Mat, MatMut, prefetch};

/// Factors of a row of A summed in registers: a panel of f32 for AVX2 is then 16 KiB.
pub(super) const DEPTH: usize = 256;
/// Rows of A that are packed at once, a multiple of every tile's, and of the f32 in a line: of a transposed A rows lie side by side.
pub(in super::super) const ROWS: usize = 48;
/// No panel of B is wider: two vectors of f32 for AVX-512.
pub(super) const WIDEST: usize = 32;
/// Factors of scratch memory that A takes.
pub(super) const SCRATCH_A: usize = ROWS * DEPTH;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Terms in one turn of the innermost loop.
const UNROLLED: usize = 4;

/// Columns of a panel of B.
#[inline(always)]
pub(super) fn panel_width<S: Simd, R: Real>() -> usize {
    2 * size_of::<R::Vector<S>>() / size_of::<R>()
}

/// The left-hand operand.
#[derive(Clone, Copy)]
pub(in super::super) enum Left<'a, X, E> {
    /// As it lies.
    Plain(Mat<'a, X>),
    /// As factors of the transposed matrix: those of a term side by side, `stride` (a multiple of [`ROWS`], or more than that) from term to term.
    Turned { factors: &'a [E], stride: usize, rows: usize, terms: usize },
}

impl<X: Copy, E> Left<'_, X, E> {
    /// (rows, terms)
    pub(super) fn shape(&self) -> (usize, usize) {
        match *self {
            Self::Plain(a) => (a.rows, a.cols),
            Self::Turned { rows, terms, .. } => (rows, terms),
        }
    }
}

/// The right-hand operand.
#[derive(Clone, Copy)]
pub(super) enum Right<'a, X, E> {
    /// As it lies, to be packed by the product.
    Plain(Mat<'a, X>),
    /// In panels: all of the first [`DEPTH`] factors of each column, then those of the next.
    Packed {
        panels: &'a [E],
        /// Columns, rounded up to a multiple of [`WIDEST`].
        padded: usize,
    },
}

/// C = α · A · B or C += α · A · B, multiplied as factors `E`.
pub(super) struct Product<'p, 'c, X: Working, E> {
    pub(super) c: &'p mut MatMut<'c, Full<X>>,
    pub(super) add: bool,
    pub(super) alpha: Full<X>,
    pub(super) a: Left<'p, X, E>,
    pub(super) b: Right<'p, X, E>,
    /// [`SCRATCH_A`] factors, and for a plain B [`DEPTH`] more for each of its columns, rounded up to [`WIDEST`].
    pub(super) scratch: &'p mut [E],
}

impl<X: Working, E: Factor<X>> WithSimd for Product<'_, '_, X, E> {
    type Output = ();

    /// Sixteen registers hold a tile of 6 rows, two vectors of B and one of A; thirty-two hold 12 rows.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT < 32 { self.run::<S, 6>(simd) } else { self.run::<S, 12>(simd) }
    }
}

impl<X: Working, E: Factor<X>> Product<'_, '_, X, E> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self, simd: S) {
        let c = self.c;
        let (all_rows, all_terms) = self.a.shape();
        let (packed_a, packed_b) = self.scratch.split_at_mut(SCRATCH_A);
        let width = panel_width::<S, Full<X>>();
        for from in (0..all_terms).step_by(DEPTH * E::TERMS) {
            let terms = (DEPTH * E::TERMS).min(all_terms - from);
            let factors = terms.div_ceil(E::TERMS);
            let add = self.add || from > 0;
            let panels = match self.b {
                Right::Plain(b) => {
                    Pack { b: b.block(from, terms, 0, b.cols), out: packed_b }.with_simd(simd);
                    &*packed_b
                }
                Right::Packed { panels, padded } => &panels[padded * (from / E::TERMS)..],
            };
            for top in (0..all_rows).step_by(ROWS) {
                let rows = ROWS.min(all_rows - top);
                // The first rows may be read where they lie; the others are packed.
                let (lying, steps, direct, packed_steps) = match self.a {
                    Left::Turned { factors, stride, .. } => {
                        (&factors[from / E::TERMS * stride + top..], (1, stride), rows, (0, 0))
                    }
                    Left::Plain(all) => {
                        let a = all.block(top, rows, from, terms);
                        let beside = a.row_stride == 1;
                        let whole = terms % E::TERMS == 0 && a.row_stride % E::TERMS == 0;
                        let numbers = if whole && !beside { E::as_factors(a.data) } else { None };
                        // Up to the last whole tile.
                        let direct = if numbers.is_some() { rows / MR * MR } else { 0 };
                        if beside {
                            pack::<X, E, MR>(a.t(), packed_a);
                        } else if numbers.is_none() {
                            for (row, packed) in packed_a.chunks_exact_mut(factors).take(rows).enumerate() {
                                E::convert(a.row(row), packed);
                            }
                        } else if direct < rows {
                            let rest = a.block(direct, rows - direct, 0, terms);
                            pack::<X, E, MR>(rest.t(), &mut packed_a[factors * direct..]);
                        }
                        let packed_steps = if beside || numbers.is_some() { (1, MR) } else { (factors, 1) };
                        (numbers.unwrap_or_default(), (a.row_stride / E::TERMS, 1), direct, packed_steps)
                    }
                };
                let tiles = c.cols.div_ceil(width) * rows.div_ceil(MR);
                let mut ahead = match self.a {
                    Left::Plain(all) => Ahead::of(all, (top, rows), (from, terms), tiles),
                    Left::Turned { .. } => Ahead::nothing(),
                };
                for (col, panel) in (0..c.cols).step_by(width).zip(panels.chunks_exact(factors * width)) {
                    for row in (0..rows).step_by(MR) {
                        let height = MR.min(rows - row);
                        let at = c.data.wrapping_add((top + row) * c.row_stride + col);
                        // What is not added to is scratch memory, and in the cache.
                        for i in 0..if add { height } else { 0 } {
                            for j in (0..width).step_by(LINE / size_of::<Full<X>>()) {
                                prefetch(at.wrapping_add(i * c.row_stride + j));
                            }
                        }
                        ahead.fetch();
                        // One loop for all: with one of these steps a constant, the compiler spills the tile.
                        let (left, steps) = if row < direct {
                            (&lying[row * steps.0..], steps)
                        } else {
                            (&packed_a[factors * row..], packed_steps)
                        };
                        let tile = tile::<S, X, E, MR>(simd, left, steps, panel);
                        store(simd, tile, self.alpha, add, c, (top + row, height), col);
                    }
                }
            }
        }
    }
}

type Registers<S, R, const MR: usize> = [[<R as Real>::Vector<S>; 2]; MR];

/// A · B of one tile, consecutive rows of A and consecutive factors of a row as far apart as given.
#[inline(always)]
fn tile<S: Simd, X: Working, E: Factor<X>, const MR: usize>(
    simd: S,
    a: &[E],
    (row_step, term_step): (usize, usize),
    b: &[E],
) -> Registers<S, Full<X>, MR> {
    let b: &[[E::Vector<S>; 2]] = cast_slice(b);
    assert!(
        b.is_empty() || a.len() > (MR - 1) * row_step + (b.len() - 1) * term_step,
        "A has too few elements"
    );
    let mut tile = [[Full::<X>::splat(simd, Full::<X>::ZERO); 2]; MR];
    let (turns, last) = b.as_chunks::<UNROLLED>();
    let mut a = a.as_ptr();
    for b in turns {
        for i in 0..UNROLLED {
            // SAFETY: MR rows of as many terms as B has, by the assertion.
            unsafe { add_term::<S, X, E, MR>(simd, &mut tile, a.add(i * term_step), row_step, &b[i]) };
        }
        a = a.wrapping_add(UNROLLED * term_step);
    }
    for b in last {
        // SAFETY: as above.
        unsafe { add_term::<S, X, E, MR>(simd, &mut tile, a, row_step, b) };
        a = a.wrapping_add(term_step);
    }
    tile
}

/// # Safety
/// `a` points to MR factors, `row_step` apart.
#[inline(always)]
unsafe fn add_term<S: Simd, X: Working, E: Factor<X>, const MR: usize>(
    simd: S,
    tile: &mut Registers<S, Full<X>, MR>,
    a: *const E,
    row_step: usize,
    b: &[E::Vector<S>; 2],
) {
    for i in 0..MR {
        // SAFETY: the caller's duty.
        let a = E::spread(simd, unsafe { *a.add(i * row_step) });
        tile[i][0] = E::add_product(simd, a, b[0], tile[i][0]);
        tile[i][1] = E::add_product(simd, a, b[1], tile[i][1]);
    }
}

/// C = α · tile or C += α · tile for as much of it as lies within C.
#[inline(always)]
fn store<S: Simd, R: Real, const MR: usize>(
    simd: S,
    tile: Registers<S, R, MR>,
    alpha: R,
    add: bool,
    c: &mut MatMut<'_, R>,
    (row, rows): (usize, usize),
    col: usize,
) {
    let (factor, width) = (R::splat(simd, alpha), panel_width::<S, R>());
    let cols = width.min(c.cols - col);
    if rows == MR && cols == width {
        assert!(row + rows <= c.rows && col + cols <= c.cols, "tile exceeds its matrix");
        for i in 0..MR {
            for j in 0..2 {
                // SAFETY: row `row + i` of C, which is borrowed exclusively, has two vectors from `col` on.
                unsafe {
                    let at = c.data.add((row + i) * c.row_stride + col).cast::<R::Vector<S>>().add(j);
                    let old = if add { at.read_unaligned() } else { R::splat(simd, R::ZERO) };
                    at.write_unaligned(R::mul_add(simd, tile[i][j], factor, old));
                }
            }
        }
    } else {
        // A copy: the tile itself could not stay in registers if it had an address.
        let mut scaled = [[R::splat(simd, R::ZERO); 2]; MR];
        for i in 0..MR {
            for j in 0..2 {
                scaled[i][j] = R::mul_add(simd, tile[i][j], factor, scaled[i][j]);
            }
        }
        for (i, scaled) in cast_slice::<_, R>(&scaled).chunks_exact(width).take(rows).enumerate() {
            for (c, &x) in c.row(row + i)[col..].iter_mut().zip(scaled) {
                *c = if add { *c + x } else { x };
            }
        }
    }
}

/// The rows that are packed next, brought into the second-level cache bit by bit while others are multiplied. Only
/// where rows of A lie side by side: their terms are lines far apart, which the processor does not foresee.
struct Ahead<X> {
    start: *const X,
    /// Elements from term to term.
    stride: usize,
    /// Terms and lines that are left to fetch.
    terms: std::ops::Range<usize>,
    line: usize,
    lines: usize,
    /// Lines at each tile.
    step: usize,
}

impl<X: Copy> Ahead<X> {
    const LINE: usize = LINE / size_of::<X>();

    #[inline(always)]
    fn nothing() -> Self {
        Self { start: std::ptr::null(), stride: 0, terms: 0..0, line: 0, lines: 0, step: 0 }
    }

    /// Of what follows the block of A at (top, from), to be fetched in so many turns.
    #[inline(always)]
    fn of(all: Mat<'_, X>, (top, rows): (usize, usize), (from, terms): (usize, usize), turns: usize) -> Self {
        if all.row_stride != 1 {
            return Self::nothing();
        }
        let (stride, lines) = (all.col_stride, rows.div_ceil(Self::LINE) + 1);
        let next = if top + rows < all.rows {
            from * stride + top + rows
        } else if from + terms < all.cols {
            (from + terms) * stride
        } else {
            // Another product's, perhaps.
            top + rows
        };
        let step = (terms * lines).div_ceil(turns);
        Self { start: all.data.as_ptr().wrapping_add(next), stride, terms: 0..terms, line: 0, lines, step }
    }

    #[inline(always)]
    fn fetch(&mut self) {
        for _ in 0..self.step {
            if self.terms.is_empty() {
                return;
            }
            prefetch(self.start.wrapping_add(self.terms.start * self.stride + self.line * Self::LINE));
            self.line += 1;
            if self.line == self.lines {
                self.line = 0;
                self.terms.start += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::Pair;
    use super::super::tests::{Operands, within};
    use super::*;

    /// Vectors of every length and tiles of either height, though this processor has one of each.
    fn check<S: Simd, X: Working, E: Factor<X>, const MR: usize>(simd: S) {
        for (rows, cols, terms) in [(1, 1, 1), (12, 32, 16), (13, 33, 5), (31, 70, 600), (31, 70, 1201)] {
            let operands = Operands::<X>::new(rows, cols, terms);
            for (a, b) in operands.every_way() {
                let mut out = vec![Full::<X>::ONE; rows * cols];
                let mut scratch = vec![E::zeroed(); SCRATCH_A + DEPTH * cols.next_multiple_of(WIDEST)];
                let c = &mut MatMut::new(&mut out, rows, cols);
                Product {
                    c,
                    add: true,
                    alpha: Full::<X>::of(0.5),
                    a: Left::Plain(a),
                    b: Right::Plain(b),
                    scratch: &mut scratch,
                }
                .run::<S, MR>(simd);
                within(&out, |_| 1.0, 0.5, a, b);
            }
        }
    }

    #[test]
    fn every_length_of_vector_gives_the_product() {
        check::<_, f32, f32, 6>(pulp::Scalar);
        check::<_, f64, f64, 6>(pulp::Scalar);
        check::<_, f32, f32, 6>(pulp::Scalar128b);
        check::<_, f64, f64, 6>(pulp::Scalar128b);
        check::<_, f32, f32, 6>(pulp::Scalar256b);
        check::<_, f64, f64, 6>(pulp::Scalar256b);
        check::<_, f32, f32, 12>(pulp::Scalar512b);
        check::<_, f64, f64, 12>(pulp::Scalar512b);
    }

    #[test]
    fn pairs_of_bf16_do_so_too() {
        check::<_, bf16, Pair<false>, 6>(pulp::Scalar);
        check::<_, bf16, Pair<false>, 6>(pulp::Scalar128b);
        check::<_, bf16, Pair<false>, 6>(pulp::Scalar256b);
        check::<_, bf16, Pair<false>, 12>(pulp::Scalar512b);
    }
}
