//! An allocator that counts what the thread at hand holds, while it is asked to.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static COUNTS: Cell<Option<(isize, isize)>> = const { Cell::new(None) };
}

/// The most bytes that the thread held during `f`, beyond those it held before.
pub(super) fn peak<T>(f: impl FnOnce() -> T) -> (T, usize) {
    COUNTS.set(Some((0, 0)));
    let result = f();
    let (_, peak) = COUNTS.take().unwrap_or_default();
    (result, peak.max(0) as usize)
}

fn count(bytes: isize) {
    // A thread that ends has no counts any more.
    let _ = COUNTS.try_with(|counts| {
        if let Some((live, peak)) = counts.get() {
            counts.set(Some((live + bytes, peak.max(live + bytes))));
        }
    });
}

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
