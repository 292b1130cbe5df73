//! The driver without a GPU: kernels built by the host compiler and run by `kernels/host/simt.cpp`, products by
//! their definition.
//!
//! Every allocation has guard bands, which are checked after each launch that was given an address in it. Staged operands are poison until
//! their slot begins; while a step is recorded, whatever a real device could not record is an error.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};

use rayon::prelude::*;

use super::{Argument, Driver, Gemm, Launch, MOST_FETCHED, Precision, Region, size_error};
use crate::backend::Pending;
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

/// One thing that a recorded step does.
#[derive(Debug)]
enum Act {
    /// All of a launch, with arguments of its own.
    Launch(Launch<'static>, Vec<Argument>),
    Gemm(Gemm),
    Fill(Region, u8),
}

/// Bytes and where they go.
type Copies = Vec<(Vec<u8>, Region)>;

/// What the host asked of a device, for tests of what a step may not ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Allocations.
    pub allocations: u64,
    /// Uploads and downloads that are waited for.
    pub copies: u64,
    /// Launches, products and fills that the host made one by one.
    pub launches: u64,
    /// Replays of recorded steps.
    pub replays: u64,
}

/// The emulated device.
#[derive(Debug, Default)]
pub struct Simt {
    order: Cell<u32>,
    /// Start of each allocation, guard band included → its bytes.
    allocations: RefCell<BTreeMap<u64, Box<[u128]>>>,
    asked: Cell<Asked>,
    /// What is being recorded.
    recording: RefCell<Option<Vec<Act>>>,
    recordings: RefCell<BTreeMap<u64, Vec<Act>>>,
    /// What was staged in each slot and has not begun.
    staged: RefCell<[Option<Copies>; 2]>,
    /// The slot that has begun.
    begun: Cell<Option<usize>>,
    /// Copies on their way, by number.
    fetched: RefCell<BTreeMap<u64, Vec<u8>>>,
    next: Cell<u64>,
}

impl Simt {
    /// A device whose threads take turns in this order.
    pub fn new(order: Order) -> Self {
        Self { order: Cell::new(order.code()), ..Self::default() }
    }

    /// What was asked of it so far.
    pub fn asked(&self) -> Asked {
        self.asked.get()
    }

    fn count(&self, change: impl FnOnce(&mut Asked)) {
        let mut asked = self.asked.get();
        change(&mut asked);
        self.asked.set(asked);
    }

    fn number(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    /// Keeps an act for later if a step is being recorded.
    fn record(&self, act: impl FnOnce() -> Act) -> bool {
        match self.recording.borrow_mut().as_mut() {
            Some(acts) => {
                acts.push(act());
                true
            }
            None => false,
        }
    }

    fn not_recorded(&self, what: &str) -> Result<()> {
        match *self.recording.borrow() {
            Some(_) => Err(Error::device(format!("{what} cannot be recorded"))),
            None => Ok(()),
        }
    }

    fn write(from: &[u8], to: Region) -> Result<()> {
        if from.len() != to.bytes {
            return Err(size_error("an upload", from.len(), to.bytes));
        }
        // SAFETY: the region lies within a live allocation, and nothing else borrows its bytes during the copy.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.address as *mut u8, from.len()) };
        Ok(())
    }

    fn set(region: Region, value: u8) {
        // SAFETY: as in `write`.
        unsafe { std::ptr::write_bytes(region.address as *mut u8, value, region.bytes) };
    }

    /// The region's bytes as memory. The region is within a live allocation, as only `alloc` makes regions.
    fn read(region: Region) -> &'static [u8] {
        // SAFETY: regions lie within allocations, which buffers keep alive while their slices are in use.
        unsafe { std::slice::from_raw_parts(region.address as *const u8, region.bytes) }
    }

    fn values(at: Region, precision: Precision) -> Vec<f32> {
        let bytes = Self::read(at);
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
        self.not_recorded("an allocation")?;
        self.count(|asked| asked.allocations += 1);
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
        self.not_recorded("an upload")?;
        self.count(|asked| asked.copies += 1);
        Self::write(from, to)
    }

    fn stage(&self, slot: usize, copies: &[(&[u8], Region)]) -> Result<()> {
        self.not_recorded("staging")?;
        let mut staged = self.staged.borrow_mut();
        if self.begun.get() == Some(slot) {
            return Err(Error::device(format!("slot {slot} is staged while it is in use")));
        }
        for (from, to) in copies {
            if from.len() != to.bytes {
                return Err(size_error("an upload", from.len(), to.bytes));
            }
            // It may arrive at any time from here on: nobody may look.
            Self::set(*to, 0xFF);
        }
        staged[slot] = Some(copies.iter().map(|(from, to)| (from.to_vec(), *to)).collect());
        Ok(())
    }

    fn begin(&self, slot: usize) -> Result<()> {
        self.not_recorded("the begin of a slot")?;
        let staged = self.staged.borrow_mut()[slot].take();
        let staged = staged.ok_or_else(|| Error::device(format!("nothing was staged in slot {slot}")))?;
        self.begun.set(Some(slot));
        staged.iter().try_for_each(|(from, to)| Self::write(from, *to))
    }

    fn fetch(&self, from: Region) -> Result<u64> {
        self.not_recorded("a fetch")?;
        if from.bytes > MOST_FETCHED {
            return Err(size_error("a fetch", from.bytes, MOST_FETCHED));
        }
        let number = self.number();
        let mut fetched = self.fetched.borrow_mut();
        fetched.insert(number, Self::read(from).to_vec());
        if fetched.len() > Pending::<u8>::MOST {
            fetched.pop_first();
        }
        Ok(number)
    }

    fn collect(&self, ticket: u64, to: &mut [u8]) -> Result<()> {
        let bytes = self.fetched.borrow_mut().remove(&ticket);
        let bytes = bytes.ok_or_else(|| Error::device("too much was fetched before it was collected"))?;
        if to.len() != bytes.len() {
            return Err(size_error("a fetch", to.len(), bytes.len()));
        }
        to.copy_from_slice(&bytes);
        Ok(())
    }

    fn start_recording(&self) -> Result<bool> {
        self.not_recorded("a recording")?;
        *self.recording.borrow_mut() = Some(Vec::new());
        Ok(true)
    }

    fn stop_recording(&self) -> Result<u64> {
        let acts = self.recording.borrow_mut().take();
        let acts = acts.ok_or_else(|| Error::device("nothing is being recorded"))?;
        let number = self.number();
        self.recordings.borrow_mut().insert(number, acts);
        Ok(number)
    }

    fn replay(&self, number: u64) -> Result<()> {
        self.not_recorded("a replay")?;
        let recordings = self.recordings.borrow();
        let acts = recordings
            .get(&number)
            .ok_or_else(|| Error::device(format!("nothing was recorded as {number}")))?;
        self.count(|asked| asked.replays += 1);
        acts.iter().try_for_each(|act| match act {
            Act::Launch(launch, arguments) => self.run(&Launch { arguments, ..*launch }),
            Act::Gemm(gemm) => self.multiply(gemm),
            Act::Fill(region, value) => {
                Self::set(*region, *value);
                Ok(())
            }
        })
    }

    fn forget(&self, number: u64) {
        self.recordings.borrow_mut().remove(&number);
    }

    fn download(&self, from: Region, to: &mut [u8]) -> Result<()> {
        if to.len() != from.bytes {
            return Err(size_error("a download", to.len(), from.bytes));
        }
        self.not_recorded("a download")?;
        self.count(|asked| asked.copies += 1);
        to.copy_from_slice(Self::read(from));
        Ok(())
    }

    fn fill(&self, region: Region, value: u8) -> Result<()> {
        if !self.record(|| Act::Fill(region, value)) {
            self.count(|asked| asked.launches += 1);
            Self::set(region, value);
        }
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        if self.record(|| Act::Launch(launch.without_arguments(), launch.arguments.to_vec())) {
            return Ok(());
        }
        self.count(|asked| asked.launches += 1);
        self.run(launch)
    }

    fn gemm(&self, g: &Gemm) -> Result<()> {
        if self.record(|| Act::Gemm(*g)) {
            return Ok(());
        }
        self.count(|asked| asked.launches += 1);
        self.multiply(g)
    }

    fn description(&self) -> String {
        "the emulated GPU (no hardware: for tests)".to_owned()
    }
}

impl Simt {
    fn run(&self, launch: &Launch<'_>) -> Result<()> {
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
        let copies: Vec<[u128; Argument::LARGEST / 16]> = launch
            .arguments
            .iter()
            .map(|argument| {
                let mut copy = [0u128; Argument::LARGEST / 16];
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
        if !problem.is_null() {
            // SAFETY: not null, so it is a text that lives until this thread's next launch.
            let text = unsafe { CStr::from_ptr(problem) }.to_string_lossy().into_owned();
            return Err(Error::device(format!("kernel {}: {text}", launch.kernel)));
        }
        self.check_guards(launch)
    }

    fn multiply(&self, g: &Gemm) -> Result<()> {
        let (a, b) = (Self::values(g.a.at, g.precision), Self::values(g.b.at, g.precision));
        let bias = g.bias.map(|at| Self::values(at, g.precision));
        let exact = g.exact || g.precision != Precision::Bf16;
        let size = if exact { 4 } else { 2 };
        let c = g.c;
        let mut out = Self::read(c).to_vec();
        // Each sum in order of k, in fp32, as a tensor core's accumulator.
        out.par_chunks_mut(g.pitch * size).take(g.m).enumerate().for_each(|(row, out)| {
            let mut sums = vec![0.0f32; g.n];
            for k in 0..g.k {
                let x = if g.a.transposed { a[k * g.a.pitch + row] } else { a[row * g.a.pitch + k] };
                if g.b.transposed {
                    sums.iter_mut().enumerate().for_each(|(col, sum)| *sum += x * b[col * g.b.pitch + k]);
                } else {
                    sums.iter_mut().zip(&b[k * g.b.pitch..]).for_each(|(sum, &y)| *sum += x * y);
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
        Self::write(&out, c)
    }
}
