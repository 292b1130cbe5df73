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
use super::pack::{Pack, pack};
use super::{Mat, MatMut, prefetch};

/// Terms summed in registers: a panel of f32 for AVX2 is then 16 KiB.
pub(super) const DEPTH: usize = 256;
/// Rows of A that are packed at once, a multiple of every tile's.
pub(super) const ROWS: usize = 24;
/// No panel of B is wider: two vectors of f32 for AVX-512.
pub(super) const WIDEST: usize = 32;
/// Elements of scratch memory that A takes.
pub(super) const SCRATCH_A: usize = ROWS * DEPTH;
/// Terms in one turn of the innermost loop.
const UNROLLED: usize = 4;

/// Columns of a panel of B.
#[inline(always)]
pub(super) fn panel_width<S: Simd, R: Real>() -> usize {
    2 * size_of::<R::Vector<S>>() / size_of::<R>()
}

/// The right-hand operand.
#[derive(Clone, Copy)]
pub(super) enum Right<'a, R> {
    /// As it lies, to be packed by the product.
    Plain(Mat<'a, R>),
    /// In panels: all of the first [`DEPTH`] terms, then those of the next.
    Packed {
        panels: &'a [R],
        /// Columns, rounded up to a multiple of [`WIDEST`].
        padded: usize,
    },
}

/// C = α · A · B or C += α · A · B.
pub(super) struct Product<'p, 'c, R> {
    pub(super) c: &'p mut MatMut<'c, R>,
    pub(super) add: bool,
    pub(super) alpha: R,
    pub(super) a: Mat<'p, R>,
    pub(super) b: Right<'p, R>,
    /// [`SCRATCH_A`] elements, and for a plain B [`DEPTH`] more for each of its columns, rounded up to [`WIDEST`].
    pub(super) scratch: &'p mut [R],
}

impl<R: Real> WithSimd for Product<'_, '_, R> {
    type Output = ();

    /// Sixteen registers hold a tile of 6 rows, two vectors of B and one of A; thirty-two hold 12 rows.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT < 32 { self.run::<S, 6>(simd) } else { self.run::<S, 12>(simd) }
    }
}

impl<R: Real> Product<'_, '_, R> {
    #[inline(always)]
    fn run<S: Simd, const MR: usize>(self, simd: S) {
        let (c, all) = (self.c, self.a);
        let (packed_a, packed_b) = self.scratch.split_at_mut(SCRATCH_A);
        let width = panel_width::<S, R>();
        for from in (0..all.cols).step_by(DEPTH) {
            let terms = DEPTH.min(all.cols - from);
            let add = self.add || from > 0;
            let panels = match self.b {
                Right::Plain(b) => {
                    Pack { b: b.block(from, terms, 0, b.cols), out: packed_b }.with_simd(simd);
                    &*packed_b
                }
                Right::Packed { panels, padded } => &panels[padded * from..],
            };
            for top in (0..all.rows).step_by(ROWS) {
                let rows = ROWS.min(all.rows - top);
                let a = all.block(top, rows, from, terms);
                let beside = a.row_stride == 1;
                if beside {
                    pack::<R, MR>(a.t(), packed_a);
                } else if rows % MR > 0 {
                    // So that all of its rows can be read.
                    let last = rows / MR * MR;
                    pack::<R, MR>(a.block(last, rows - last, 0, terms).t(), &mut packed_a[terms * last..]);
                }
                let tiles = c.cols.div_ceil(width) * rows.div_ceil(MR);
                let mut ahead = Ahead::of(all, a, (top, from), tiles);
                for (col, panel) in (0..c.cols).step_by(width).zip(panels.chunks_exact(terms * width)) {
                    for row in (0..rows).step_by(MR) {
                        let height = MR.min(rows - row);
                        (0..height).for_each(|i| prefetch(c.row(top + row + i)[col..].as_ptr()));
                        ahead.fetch();
                        let tile = if beside || height < MR {
                            tile::<S, R, MR>(simd, &packed_a[terms * row..], (1, MR), panel)
                        } else {
                            let rows = &a.data[row * a.row_stride..];
                            tile::<S, R, MR>(simd, rows, (a.row_stride, 1), panel)
                        };
                        store(simd, tile, self.alpha, add, c, (top + row, height), col);
                    }
                }
            }
        }
    }
}

type Registers<S, R, const MR: usize> = [[<R as Real>::Vector<S>; 2]; MR];

/// A · B of one tile, consecutive rows of A and consecutive terms as many elements apart as given.
#[inline(always)]
fn tile<S: Simd, R: Real, const MR: usize>(
    simd: S,
    a: &[R],
    (row_step, term_step): (usize, usize),
    b: &[R],
) -> Registers<S, R, MR> {
    let b: &[[R::Vector<S>; 2]] = cast_slice(b);
    assert!(
        b.is_empty() || a.len() > (MR - 1) * row_step + (b.len() - 1) * term_step,
        "A has too few elements"
    );
    let mut tile = [[R::splat(simd, R::ZERO); 2]; MR];
    let (turns, last) = b.as_chunks::<UNROLLED>();
    let mut a = a.as_ptr();
    for b in turns {
        for i in 0..UNROLLED {
            // SAFETY: MR rows of as many terms as B has, by the assertion.
            unsafe { add_term(simd, &mut tile, a.add(i * term_step), row_step, &b[i]) };
        }
        a = a.wrapping_add(UNROLLED * term_step);
    }
    for b in last {
        // SAFETY: as above.
        unsafe { add_term(simd, &mut tile, a, row_step, b) };
        a = a.wrapping_add(term_step);
    }
    tile
}

/// # Safety
/// `a` points to MR elements, `row_step` apart.
#[inline(always)]
unsafe fn add_term<S: Simd, R: Real, const MR: usize>(
    simd: S,
    tile: &mut Registers<S, R, MR>,
    a: *const R,
    row_step: usize,
    b: &[R::Vector<S>; 2],
) {
    for i in 0..MR {
        // SAFETY: the caller's duty.
        let a = R::splat(simd, unsafe { *a.add(i * row_step) });
        tile[i][0] = R::mul_add(simd, a, b[0], tile[i][0]);
        tile[i][1] = R::mul_add(simd, a, b[1], tile[i][1]);
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
struct Ahead<R> {
    start: *const R,
    /// Elements from term to term.
    stride: usize,
    /// Terms and lines that are left to fetch.
    terms: std::ops::Range<usize>,
    line: usize,
    lines: usize,
    /// Lines at each tile.
    step: usize,
}

impl<R: Real> Ahead<R> {
    const LINE: usize = 64 / size_of::<R>();

    #[inline(always)]
    fn of(all: Mat<'_, R>, now: Mat<'_, R>, (top, from): (usize, usize), tiles: usize) -> Self {
        let (stride, lines) = (now.col_stride, now.rows.div_ceil(Self::LINE) + 1);
        let next = if top + now.rows < all.rows {
            from * stride + top + now.rows
        } else if from + now.cols < all.cols {
            (from + now.cols) * stride
        } else {
            // Another product's, perhaps.
            top + now.rows
        };
        let terms = if now.row_stride == 1 { 0..now.cols } else { 0..0 };
        let step = (terms.len() * lines).div_ceil(tiles);
        Self { start: all.data.as_ptr().wrapping_add(next), stride, terms, line: 0, lines, step }
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
    use super::super::tests::{Operands, within};
    use super::*;

    /// Vectors of every length and tiles of either height, though this processor has one of each.
    fn check<S: Simd, R: Real, const MR: usize>(simd: S) {
        for (rows, cols, terms) in [(1, 1, 1), (12, 32, 16), (13, 33, 5), (31, 70, 300)] {
            let operands = Operands::<R>::new(rows, cols, terms);
            for (a, b) in operands.every_way() {
                let mut out = vec![R::ONE; rows * cols];
                let mut scratch = vec![R::ZERO; SCRATCH_A + DEPTH * cols.next_multiple_of(WIDEST)];
                let c = &mut MatMut::new(&mut out, rows, cols);
                Product { c, add: true, alpha: R::of(0.5), a, b: Right::Plain(b), scratch: &mut scratch }
                    .run::<S, MR>(simd);
                within(&out, |_| R::ONE, 0.5, a, b);
            }
        }
    }

    #[test]
    fn every_length_of_vector_gives_the_product() {
        check::<_, f32, 6>(pulp::Scalar);
        check::<_, f64, 6>(pulp::Scalar);
        check::<_, f32, 6>(pulp::Scalar128b);
        check::<_, f64, 6>(pulp::Scalar128b);
        check::<_, f32, 6>(pulp::Scalar256b);
        check::<_, f64, 6>(pulp::Scalar256b);
        check::<_, f32, 12>(pulp::Scalar512b);
        check::<_, f64, 12>(pulp::Scalar512b);
    }
}
