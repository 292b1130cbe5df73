//! Memory for packed operands and scores that a thread keeps from op to op.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// What scratch memory is aligned to: a whole vector of any kind.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

thread_local! {
    /// Memory that packed operands take, kept from product to product. A thread that waits for others may begin another
    /// product meanwhile: each takes a piece and puts it back.
    static SCRATCH: RefCell<Vec<Vec<CacheLine>>> = const { RefCell::new(Vec::new()) };
}

/// Elements of unspecified values; their memory goes back to the thread.
pub(in super::super) struct Scratch<R> {
    lines: Vec<CacheLine>,
    len: usize,
    _elements: PhantomData<R>,
}

impl<R: bytemuck::Pod> Scratch<R> {
    pub(in super::super) fn new(len: usize) -> Self {
        let mut lines = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
        let wanted = (len * size_of::<R>()).div_ceil(size_of::<CacheLine>());
        if lines.len() < wanted {
            lines = vec![CacheLine([0; 64]); wanted];
        }
        Self { lines, len, _elements: PhantomData }
    }
}

impl<R: bytemuck::Pod> Deref for Scratch<R> {
    type Target = [R];

    fn deref(&self) -> &[R] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<R: bytemuck::Pod> DerefMut for Scratch<R> {
    fn deref_mut(&mut self) -> &mut [R] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl<R> Drop for Scratch<R> {
    fn drop(&mut self) {
        // A thread that ends needs none.
        let _ = SCRATCH.try_with(|pieces| pieces.borrow_mut().push(std::mem::take(&mut self.lines)));
    }
}
