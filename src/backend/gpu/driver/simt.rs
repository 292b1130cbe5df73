//! The driver without a GPU: kernels built by the host compiler and run by `kernels/host/simt.cpp`, products by
//! their definition.
//!
//! Every allocation has guard bands, which are checked after each launch that was given an address in it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};

use rayon::prelude::*;

use super::{Driver, Gemm, Launch, Operand, Precision, Region, size_error};
use crate::{Error, Result};

const GUARD_BYTES: usize = 256;
const GUARD: u8 = 0xA5;

/// `simt::Entry` of `kernels/host/simt.hpp`.
#[repr(C)]
struct Entry {
    name: *const c_char,
    run: unsafe extern "C" fn(*const *const c_void),
    sizes: *const u32,
    count: u32,
}

unsafe extern "C" {
    fn simt_launch(
        entry: *const Entry,
        grid: *const u32,
        threads: u32,
        shared_bytes: u32,
        arguments: *const *const c_void,
        order: u32,
    ) -> *const c_char;
}

/// A file's kernels: name with the precision, the table and its length. Written by the build script.
struct Table {
    name: &'static str,
    entries: *const Entry,
    count: u32,
}

include!(concat!(env!("OUT_DIR"), "/simt_tables.rs"));

/// The order in which the threads of a block take turns: a correct kernel gives the same bits in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By their number.
    Ascending,
    /// From the last to the first.
    Descending,
    /// Another order every round.
    Shuffled(u16),
}

impl Order {
    /// The five that tests use.
    pub const ALL: [Self; 5] =
        [Self::Ascending, Self::Descending, Self::Shuffled(1), Self::Shuffled(2), Self::Shuffled(3)];

    fn code(self) -> u32 {
        match self {
            Self::Ascending => 0,
            Self::Descending => 1,
            Self::Shuffled(seed) => 2 + u32::from(seed),
        }
    }
}

/// The emulated device.
#[derive(Debug, Default)]
pub struct Simt {
    order: Cell<u32>,
    /// Start of each allocation, guard band included → its bytes.
    allocations: RefCell<BTreeMap<u64, Box<[u128]>>>,
    launches: Cell<u64>,
}

impl Simt {
    /// A device whose threads take turns in this order.
    pub fn new(order: Order) -> Self {
        Self { order: Cell::new(order.code()), ..Self::default() }
    }

    /// Launches so far.
    pub fn launches(&self) -> u64 {
        self.launches.get()
    }

    /// The region's bytes as memory. The region is within a live allocation, as only `alloc` makes regions.
    fn read(region: Region) -> &'static [u8] {
        // SAFETY: regions lie within allocations, which buffers keep alive while their slices are in use.
        unsafe { std::slice::from_raw_parts(region.address as *const u8, region.bytes) }
    }

    fn values(operand: Operand, precision: Precision, count: usize) -> Vec<f32> {
        let bytes = Self::read(operand.at.part(0..count * precision.bytes()));
        match precision {
            Precision::Bf16 => bytes
                .chunks_exact(2)
                .map(|b| half::bf16::from_bits(u16::from_le_bytes([b[0], b[1]])).to_f32())
                .collect(),
            _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    }

    /// An error if a guard band of an allocation that one of the addresses lies in was written to.
    fn check_guards(&self, launch: &Launch<'_>) -> Result<()> {
        let allocations = self.allocations.borrow();
        for argument in launch.arguments {
            for word in argument.bytes().chunks_exact(8) {
                let address = u64::from_le_bytes([
                    word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
                ]);
                let Some((_, memory)) = allocations.range(..=address).next_back() else { continue };
                let bytes: &[u8] = bytemuck::cast_slice(memory);
                let (front, rest) = bytes.split_at(GUARD_BYTES);
                let end = rest.len() - GUARD_BYTES - usize::from(rest[rest.len() - 1]);
                let back = &rest[end..rest.len() - 1];
                if front.iter().chain(back).any(|&b| b != GUARD) {
                    return Err(Error::device(format!(
                        "kernel {} wrote beyond a buffer of {end} bytes",
                        launch.kernel
                    )));
                }
            }
        }
        Ok(())
    }
}

fn find(file: &str, precision: Precision, kernel: &str) -> Result<&'static Entry> {
    let name = format!("{file}_{}", precision.kernels());
    let table = tables().into_iter().find(|table| table.name == name);
    let table = table.ok_or_else(|| Error::device(format!("no kernels are built as {name}")))?;
    // SAFETY: the C++ side defines `count` entries there, with names that end in a zero.
    let entries = unsafe { std::slice::from_raw_parts(table.entries, table.count as usize) };
    entries
        .iter()
        // SAFETY: as above.
        .find(|entry| unsafe { CStr::from_ptr(entry.name) }.to_bytes() == kernel.as_bytes())
        .ok_or_else(|| Error::device(format!("{name} has no kernel {kernel}")))
}

impl Driver for Simt {
    fn alloc(&self, bytes: usize) -> Result<Region> {
        // The last byte says how far the content ends before the back guard.
        let padded = bytes.next_multiple_of(16);
        let mut memory =
            vec![u128::from_le_bytes([GUARD; 16]); (padded + 2 * GUARD_BYTES) / 16].into_boxed_slice();
        let all: &mut [u8] = bytemuck::cast_slice_mut(&mut memory);
        let start = all.as_ptr() as u64;
        all[GUARD_BYTES..GUARD_BYTES + bytes].fill(0xFF);
        if let Some(last) = all.last_mut() {
            *last = (padded - bytes) as u8;
        }
        self.allocations.borrow_mut().insert(start, memory);
        Ok(Region { address: start + GUARD_BYTES as u64, bytes })
    }

    fn free(&self, region: Region) {
        self.allocations.borrow_mut().remove(&(region.address - GUARD_BYTES as u64));
    }

    fn upload(&self, from: &[u8], to: Region) -> Result<()> {
        if from.len() != to.bytes {
            return Err(size_error("an upload", from.len(), to.bytes));
        }
        // SAFETY: the region lies within a live allocation, and nothing else borrows its bytes during the copy.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.address as *mut u8, from.len()) };
        Ok(())
    }

    fn download(&self, from: Region, to: &mut [u8]) -> Result<()> {
        if to.len() != from.bytes {
            return Err(size_error("a download", to.len(), from.bytes));
        }
        to.copy_from_slice(Self::read(from));
        Ok(())
    }

    fn fill(&self, region: Region, value: u8) -> Result<()> {
        // SAFETY: as in `upload`.
        unsafe { std::ptr::write_bytes(region.address as *mut u8, value, region.bytes) };
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let entry = find(launch.file, launch.precision, launch.kernel)?;
        // SAFETY: the C++ side defines `count` sizes.
        let sizes = unsafe { std::slice::from_raw_parts(entry.sizes, entry.count as usize) };
        let given: Vec<u32> = launch.arguments.iter().map(|a| a.bytes().len() as u32).collect();
        if sizes != given {
            return Err(Error::device(format!(
                "kernel {} takes arguments of {sizes:?} bytes, the launcher gives {given:?}",
                launch.kernel
            )));
        }
        // 16-byte copies, since a structure's address must be aligned.
        let copies: Vec<[u128; 6]> = launch
            .arguments
            .iter()
            .map(|argument| {
                let mut copy = [0u128; 6];
                bytemuck::cast_slice_mut::<u128, u8>(&mut copy)[..argument.bytes().len()]
                    .copy_from_slice(argument.bytes());
                copy
            })
            .collect();
        let pointers: Vec<*const c_void> = copies.iter().map(|copy| copy.as_ptr().cast()).collect();
        // SAFETY: the arguments have the sizes of the kernel's parameters and live until the launch returns; the
        // addresses among them are of live allocations.
        let problem = unsafe {
            simt_launch(
                entry,
                launch.grid.as_ptr(),
                launch.threads,
                launch.shared_bytes,
                pointers.as_ptr(),
                self.order.get(),
            )
        };
        self.launches.set(self.launches.get() + 1);
        if !problem.is_null() {
            // SAFETY: not null, so it is a text that lives until this thread's next launch.
            let text = unsafe { CStr::from_ptr(problem) }.to_string_lossy().into_owned();
            return Err(Error::device(format!("kernel {}: {text}", launch.kernel)));
        }
        self.check_guards(launch)
    }

    fn gemm(&self, g: &Gemm) -> Result<()> {
        let (a, b) = (Self::values(g.a, g.precision, g.m * g.k), Self::values(g.b, g.precision, g.k * g.n));
        let bias = g.bias.map(|at| Self::values(Operand { at, transposed: false }, g.precision, g.n));
        let exact = g.exact || g.precision != Precision::Bf16;
        let size = if exact { 4 } else { 2 };
        let c = g.c.part(0..g.m * g.n * size);
        let mut out = vec![0u8; c.bytes];
        self.download(c, &mut out)?;
        // Each sum in order of k, in fp32, as a tensor core's accumulator.
        out.par_chunks_mut(g.n * size).enumerate().for_each(|(row, out)| {
            let mut sums = vec![0.0f32; g.n];
            for k in 0..g.k {
                let x = if g.a.transposed { a[k * g.m + row] } else { a[row * g.k + k] };
                if g.b.transposed {
                    sums.iter_mut().enumerate().for_each(|(col, sum)| *sum += x * b[col * g.k + k]);
                } else {
                    sums.iter_mut().zip(&b[k * g.n..]).for_each(|(sum, &y)| *sum += x * y);
                }
            }
            for (col, (bytes, sum)) in out.chunks_exact_mut(size).zip(&sums).enumerate() {
                let mut value = *sum + bias.as_ref().map_or(0.0, |bias| bias[col]);
                if exact {
                    if g.accumulate {
                        value += f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                    }
                    bytes.copy_from_slice(&value.to_le_bytes());
                } else {
                    if g.accumulate {
                        value += half::bf16::from_bits(u16::from_le_bytes([bytes[0], bytes[1]])).to_f32();
                    }
                    bytes.copy_from_slice(&half::bf16::from_f32(value).to_bits().to_le_bytes());
                }
            }
        });
        self.upload(&out, c)
    }

    fn description(&self) -> String {
        "the emulated GPU (no hardware: for tests)".to_owned()
    }
}
