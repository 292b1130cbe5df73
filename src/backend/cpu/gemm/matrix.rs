//! Matrices that lie in memory of others, rows or columns some way apart.

use std::marker::PhantomData;

use bytemuck::Pod;

/// A strided matrix to read.
#[derive(Clone, Copy)]
pub struct Mat<'a, R> {
    pub(super) data: &'a [R],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a, R: Pod> Mat<'a, R> {
    /// `rows` × `cols`, consecutive rows `row_stride` apart.
    pub(in super::super) fn strided(data: &'a [R], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(
            rows == 0 || cols == 0 || data.len() >= (rows - 1) * row_stride + cols,
            "matrix exceeds its slice"
        );
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// `rows` × `cols` without gaps.
    pub(in super::super) fn new(data: &'a [R], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// The transposed matrix.
    #[inline(always)]
    pub(in super::super) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// A part of it.
    #[inline(always)]
    pub(in super::super) fn block(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        Self { data: &self.data[row * self.row_stride + col * self.col_stride..], rows, cols, ..self }
    }

    /// Whether it is not transposed and all its rows lie in its slice.
    #[inline(always)]
    pub(super) fn fits(self) -> bool {
        let last = self.rows.saturating_sub(1) * self.row_stride;
        self.col_stride == 1 && (self.rows == 0 || self.cols == 0 || self.data.len() >= last + self.cols)
    }

    /// One row; only of a matrix that is not transposed.
    #[inline(always)]
    pub(in super::super) fn row(self, row: usize) -> &'a [R] {
        assert_eq!(self.col_stride, 1, "rows of a transposed matrix lie apart");
        &self.data[row * self.row_stride..][..self.cols]
    }

    /// One element.
    #[inline(always)]
    pub(super) fn at(self, row: usize, col: usize) -> R {
        self.data[row * self.row_stride + col * self.col_stride]
    }
}

/// A row-major matrix to write, possibly a part of a wider one that other threads write elsewhere.
pub(in super::super) struct MatMut<'a, R> {
    pub(super) data: *mut R,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    _borrow: PhantomData<&'a mut [R]>,
}

// SAFETY: a `MatMut` stands for an exclusive borrow of its elements, like `&mut [R]`.
unsafe impl<R: Send> Send for MatMut<'_, R> {}
// SAFETY: shared references to it give no access to the elements.
unsafe impl<R: Send> Sync for MatMut<'_, R> {}

impl<'a, R: Pod> MatMut<'a, R> {
    /// `rows` × `cols` without gaps.
    pub(in super::super) fn new(data: &'a mut [R], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// `rows` × `cols`, consecutive rows `row_stride` apart.
    pub(in super::super) fn strided(data: &'a mut [R], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(
            rows == 0 || cols == 0 || data.len() >= (rows - 1) * row_stride + cols,
            "matrix exceeds its slice"
        );
        Self { data: data.as_mut_ptr(), rows, cols, row_stride, _borrow: PhantomData }
    }

    /// A part of the matrix.
    ///
    /// # Safety
    /// Parts in use at the same time must not overlap.
    pub(in super::super) unsafe fn block(
        &self,
        row: usize,
        rows: usize,
        col: usize,
        cols: usize,
    ) -> MatMut<'_, R> {
        assert!(row + rows <= self.rows && col + cols <= self.cols, "block exceeds its matrix");
        // SAFETY: inside the matrix by the assertion.
        let data = unsafe { self.data.add(row * self.row_stride + col) };
        MatMut { data, rows, cols, row_stride: self.row_stride, _borrow: PhantomData }
    }

    /// Its rows.
    pub(in super::super) fn rows(&self) -> usize {
        self.rows
    }

    /// Its columns.
    pub(in super::super) fn cols(&self) -> usize {
        self.cols
    }

    /// One row.
    #[inline(always)]
    pub(in super::super) fn row(&mut self, row: usize) -> &mut [R] {
        assert!(row < self.rows, "row exceeds its matrix");
        // SAFETY: inside the matrix by the assertion; exclusive through `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.row_stride), self.cols) }
    }
}
