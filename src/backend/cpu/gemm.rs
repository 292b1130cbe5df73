//! Matrix products, cut into tiles whose borders depend on the shape alone.
//!
//! Each tile is one single-threaded call, so results do not depend on the number of threads, and whatever follows the
//! product (bias, activation) runs on the tile while it is in the cache. The call goes to `private-gemm-x86`, the
//! engine of `faer`, where the processor has AVX2 or AVX-512, and to the `gemm` crate elsewhere. The first is 3 to
//! 15 % faster where an operand is transposed; `benches/records` has both, and the tile sizes tried.
//!
//! Neither engine packs the left operand. A transposed one (of a weight gradient) is read at a stride of some KiB, which falls
//! into few sets of a cache: with AVX2 that costs a third of the speed, so it is turned round first.

use std::cell::Cell;

use rayon::prelude::*;

use super::real::Real;
use super::turn::{par_turn, turned_stride};

/// A strided matrix to read.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a, R> {
    pub(super) data: &'a [R],
    pub(super) rows: usize,
    pub(super) cols: usize,
    row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a, R: Real> Mat<'a, R> {
    /// `rows` × `cols`, consecutive rows `row_stride` apart.
    pub(super) fn strided(data: &'a [R], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(
            rows == 0 || cols == 0 || data.len() >= (rows - 1) * row_stride + cols,
            "matrix exceeds its slice"
        );
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// `rows` × `cols` without gaps.
    pub(super) fn new(data: &'a [R], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// The transposed matrix.
    pub(super) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// A part of it.
    pub(super) fn block(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        Self { data: &self.data[row * self.row_stride + col * self.col_stride..], rows, cols, ..self }
    }

    /// One element.
    #[inline(always)]
    pub(super) fn at(self, row: usize, col: usize) -> R {
        self.data[row * self.row_stride + col * self.col_stride]
    }
}

/// A row-major matrix to write, possibly a part of a wider one that other threads write elsewhere.
pub(super) struct MatMut<'a, R> {
    data: *mut R,
    rows: usize,
    cols: usize,
    row_stride: usize,
    _borrow: std::marker::PhantomData<&'a mut [R]>,
}

// SAFETY: a `MatMut` stands for an exclusive borrow of its elements, like `&mut [R]`.
unsafe impl<R: Send> Send for MatMut<'_, R> {}
// SAFETY: shared references to it give no access to the elements.
unsafe impl<R: Send> Sync for MatMut<'_, R> {}

impl<'a, R: Real> MatMut<'a, R> {
    /// `rows` × `cols` without gaps.
    pub(super) fn new(data: &'a mut [R], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// `rows` × `cols`, consecutive rows `row_stride` apart.
    pub(super) fn strided(data: &'a mut [R], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(
            rows == 0 || cols == 0 || data.len() >= (rows - 1) * row_stride + cols,
            "matrix exceeds its slice"
        );
        Self { data: data.as_mut_ptr(), rows, cols, row_stride, _borrow: std::marker::PhantomData }
    }

    /// A part of the matrix.
    ///
    /// # Safety
    /// Parts in use at the same time must not overlap.
    pub(super) unsafe fn block(&self, row: usize, rows: usize, col: usize, cols: usize) -> MatMut<'_, R> {
        assert!(row + rows <= self.rows && col + cols <= self.cols, "block exceeds its matrix");
        // SAFETY: inside the matrix by the assertion.
        let data = unsafe { self.data.add(row * self.row_stride + col) };
        MatMut { data, rows, cols, row_stride: self.row_stride, _borrow: std::marker::PhantomData }
    }

    /// Its rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// One row.
    #[inline(always)]
    pub(super) fn row(&mut self, row: usize) -> &mut [R] {
        assert!(row < self.rows, "row exceeds its matrix");
        // SAFETY: inside the matrix by the assertion; exclusive through `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.row_stride), self.cols) }
    }
}

/// C = α · A · B, or C += α · A · B, on this thread.
pub(super) fn matmul<R: Real>(c: &mut MatMut<'_, R>, add: bool, alpha: R, a: Mat<'_, R>, b: Mat<'_, R>) {
    assert!(c.rows == a.rows && c.cols == b.cols && a.cols == b.rows, "matrix shapes do not fit");
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    if a.cols == 0 {
        if !add {
            (0..c.rows).for_each(|row| c.row(row).fill(R::ZERO));
        }
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(instructions) = x86::instructions() {
        return x86::matmul(instructions, c, add, alpha, a, b);
    }
    // SAFETY: constructors and `block` keep every index within its slice; C is exclusively borrowed. The crate's
    // formula is dst = alpha · dst + beta · lhs · rhs.
    unsafe {
        gemm::gemm(
            c.rows,
            c.cols,
            a.cols,
            c.data,
            1,
            c.row_stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            R::ONE,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::ptr::null;

    use private_gemm_x86::{Accum, DType, DstKind, IType, InstrSet, gemm};

    use super::{Mat, MatMut, Real};

    /// The widest instructions of this processor that the crate knows.
    pub(super) fn instructions() -> Option<InstrSet> {
        if is_x86_feature_detected!("avx512f") {
            Some(InstrSet::Avx512)
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            Some(InstrSet::Avx256)
        } else {
            None
        }
    }

    /// C = α · A · B or C += α · A · B. The crate stores by columns, so it is given Cᵀ = Bᵀ · Aᵀ.
    pub(super) fn matmul<R: Real>(
        instructions: InstrSet,
        c: &mut MatMut<'_, R>,
        add: bool,
        alpha: R,
        a: Mat<'_, R>,
        b: Mat<'_, R>,
    ) {
        let number = if size_of::<R>() == 4 { DType::F32 } else { DType::F64 };
        // SAFETY: constructors and `block` keep every index within its slice; C is exclusively borrowed; `Real` is
        // f32 or f64; the processor has the instructions; null index lists and diagonals are unused.
        unsafe {
            gemm(
                number,
                IType::U64,
                instructions,
                c.cols,
                c.rows,
                a.cols,
                c.data.cast(),
                1,
                c.row_stride as isize,
                null(),
                null(),
                DstKind::Full,
                if add { Accum::Add } else { Accum::Replace },
                b.data.as_ptr().cast(),
                b.col_stride as isize,
                b.row_stride as isize,
                false,
                null(),
                0,
                a.data.as_ptr().cast(),
                a.col_stride as isize,
                a.row_stride as isize,
                false,
                (&raw const alpha).cast(),
                1,
            );
        }
    }
}

/// Rows and columns of a tile, functions of the result's shape alone.
fn tile(rows: usize, cols: usize) -> (usize, usize) {
    (rows.clamp(1, 256), (cols / 4).next_multiple_of(64).clamp(64, 256))
}

thread_local! {
    /// Where operands are turned, kept from product to product. A thread that waits in one product may begin another, which
    /// then finds nothing and brings its own.
    static SCRATCH: Cell<Vec<u64>> = const { Cell::new(Vec::new()) };
}

/// Runs `f` on `len` elements of unspecified values.
fn with_scratch<R: Real>(len: usize, f: impl FnOnce(&mut [R])) {
    let mut words = SCRATCH.take();
    let wanted = (len * size_of::<R>()).div_ceil(size_of::<u64>());
    if words.len() < wanted {
        words = vec![0; wanted];
    }
    f(&mut bytemuck::cast_slice_mut(&mut words)[..len]);
    SCRATCH.set(words);
}

/// Rows beyond which a transposed A is read where it lies: a copy of it would go through memory, not the cache.
const TURNED_ROWS: usize = 8192;

/// Whether turning A round first is worth its cost here.
fn better_turned<R: Real>(a: Mat<'_, R>) -> bool {
    #[cfg(target_arch = "x86_64")]
    let strides_are_slow = !is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    let strides_are_slow = false;
    strides_are_slow && a.col_stride > 1 && a.rows <= TURNED_ROWS
}

/// C = A · B or C += A · B over all threads; `finish(tile, first row, first column)` runs on each tile when it is done.
pub(super) fn par_matmul<R: Real>(
    c: MatMut<'_, R>,
    add: bool,
    a: Mat<'_, R>,
    b: Mat<'_, R>,
    finish: impl Fn(&mut MatMut<'_, R>, usize, usize) + Sync,
) {
    if better_turned(a) {
        let stride = turned_stride(a.cols);
        with_scratch(a.rows * stride, |rows| {
            par_turn(a, rows);
            by_tiles(c, add, Mat::strided(rows, a.rows, a.cols, stride), b, finish);
        });
    } else {
        by_tiles(c, add, a, b, finish);
    }
}

fn by_tiles<R: Real>(
    c: MatMut<'_, R>,
    add: bool,
    a: Mat<'_, R>,
    b: Mat<'_, R>,
    finish: impl Fn(&mut MatMut<'_, R>, usize, usize) + Sync,
) {
    let (tile_rows, tile_cols) = tile(c.rows, c.cols);
    let (down, across) = (c.rows.div_ceil(tile_rows), c.cols.div_ceil(tile_cols));
    (0..down * across).into_par_iter().with_max_len(1).for_each(|index| {
        let (row, col) = (index / across * tile_rows, index % across * tile_cols);
        let (rows, cols) = (tile_rows.min(c.rows - row), tile_cols.min(c.cols - col));
        // SAFETY: tiles of a grid do not overlap.
        let mut part = unsafe { c.block(row, rows, col, cols) };
        matmul(&mut part, add, R::ONE, a.block(row, rows, 0, a.cols), b.block(0, b.rows, col, cols));
        finish(&mut part, row, col);
    });
}
