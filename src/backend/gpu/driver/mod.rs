//! What a GPU must be able to do: hold memory, run a kernel, multiply matrices.
//!
//! `Cuda` is the product. `Simt` runs the very same kernels on the host, so that kernels, launchers and the
//! whole training step are tested on any machine. Everything above works with [`Region`]s, which only a driver makes and which can
//! only be cut smaller: no launcher needs `unsafe`.

use std::ops::Range;

use crate::{Error, Result};

mod beside;
pub mod cublaslt;
pub mod cuda;
pub mod gemm;
pub mod libraries;
pub mod nvrtc;
#[cfg(feature = "simt")]
pub mod simt;
pub mod tally;

/// A stretch of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    address: u64,
    bytes: usize,
}

impl Region {
    /// No memory.
    pub const NOTHING: Self = Self { address: 0, bytes: 0 };

    /// Where it starts on the device.
    pub fn address(self) -> u64 {
        self.address
    }

    /// Its size.
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// A part of it. Panics if the range exceeds it, as slicing does.
    pub fn part(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.bytes, "a part must lie within its region");
        Self { address: self.address + range.start as u64, bytes: range.end - range.start }
    }
}

/// The type of working values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// bfloat16, products accumulated in fp32.
    Bf16,
    /// fp32 throughout.
    Fp32,
    /// fp32, but products of TF32 operands (ten bits of mantissa).
    Tf32,
}

impl Precision {
    /// Its name in kernel tables: TF32 concerns products alone.
    pub fn kernels(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp32 | Self::Tf32 => "fp32",
        }
    }

    /// Bytes of a working value.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Fp32 | Self::Tf32 => 4,
        }
    }
}

/// An argument of a kernel, by its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    bytes: [u8; Self::LARGEST],
    len: usize,
}

impl Argument {
    /// Bytes of the largest structure among them.
    pub const LARGEST: usize = 192;

    /// A plain value or a `repr(C)` structure that mirrors the kernel's.
    pub fn of<T: bytemuck::NoUninit>(value: T) -> Self {
        let from = bytemuck::bytes_of(&value);
        let mut bytes = [0; Self::LARGEST];
        bytes[..from.len()].copy_from_slice(from);
        Self { bytes, len: from.len() }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl From<Region> for Argument {
    fn from(region: Region) -> Self {
        Self::of(region.address)
    }
}

impl From<Option<Region>> for Argument {
    fn from(region: Option<Region>) -> Self {
        Self::of(region.map_or(0, Region::address))
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Self::of(value)
    }
}

impl From<u64> for Argument {
    fn from(value: u64) -> Self {
        Self::of(value)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self::of(value)
    }
}

/// One launch of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The `.cu` file it lies in, without the ending.
    pub file: &'static str,
    /// Its name.
    pub kernel: &'static str,
    /// Which build of the file.
    pub precision: Precision,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads a block.
    pub threads: u32,
    /// Dynamic shared memory a block.
    pub shared_bytes: u32,
    /// Arguments in the order of the kernel's parameters.
    pub arguments: &'a [Argument],
    /// Device memory that it reads and writes, each operand counted as often as it crosses the bus.
    pub bytes: u64,
}

impl Launch<'_> {
    /// All but its arguments.
    pub fn without_arguments(&self) -> Launch<'static> {
        let &Launch { file, kernel, precision, grid, threads, shared_bytes, bytes, .. } = self;
        Launch { file, kernel, precision, grid, threads, shared_bytes, arguments: &[], bytes }
    }
}

/// An operand of a product: row-major, or stored transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// Where it lies.
    pub at: Region,
    /// Whether memory holds its transpose.
    pub transposed: bool,
    /// Elements between rows in memory: of the operand, or of its transpose.
    pub pitch: usize,
}

impl Operand {
    /// With rows in memory `pitch` elements apart.
    pub fn rows(at: Region, pitch: usize) -> Self {
        Self { at, transposed: false, pitch }
    }

    /// Whose transpose has rows in memory `pitch` elements apart.
    pub fn transposed(at: Region, pitch: usize) -> Self {
        Self { at, transposed: true, pitch }
    }
}

/// C (m, n) = A (m, k) · B (k, n) (+ bias), or C +=. Operands are working values; sums are fp32.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// Working precision.
    pub precision: Precision,
    /// A.
    pub a: Operand,
    /// B.
    pub b: Operand,
    /// C, row-major.
    pub c: Region,
    /// Elements between its rows.
    pub pitch: usize,
    /// Whether C is fp32 (a parameter's gradient) rather than of working precision.
    pub exact: bool,
    /// Whether the product is added to what C holds.
    pub accumulate: bool,
    /// (n) working values added to every row.
    pub bias: Option<Region>,
}

impl Gemm {
    /// Device memory that it reads and writes, each operand once.
    pub fn bytes(&self) -> u64 {
        let working = self.precision.bytes();
        let (c, passes) = (if self.exact { 4 } else { working }, if self.accumulate { 2 } else { 1 });
        ((self.m * self.k + self.k * self.n) * working + self.m * self.n * c * passes) as u64
    }

    /// Floating-point operations.
    pub fn flops(&self) -> u64 {
        2 * (self.m * self.n * self.k) as u64
    }
}

/// What one [`Driver::fetch`] may bring.
pub const MOST_FETCHED: usize = 256;

/// A device.
pub trait Driver: Sized + 'static {
    /// Memory of undefined content; an error names what was asked for and what was free.
    fn alloc(&self, bytes: usize) -> Result<Region>;
    /// Gives memory of [`Self::alloc`] back, once what was launched before has run.
    fn free(&self, region: Region);
    /// Host to device; `from` has the region's size.
    fn upload(&self, from: &[u8], to: Region) -> Result<()>;
    /// Device to host, after everything launched before.
    fn download(&self, from: Region, to: &mut [u8]) -> Result<()>;
    /// Host to device beside the computation, for what comes after [`Self::begin`] of this slot (0 or 1).
    fn stage(&self, slot: usize, copies: &[(&[u8], Region)]) -> Result<()>;
    /// What is launched from here on finds what was staged in `slot`; what was launched before was the last to need the other slot's.
    fn begin(&self, slot: usize) -> Result<()>;
    /// Device to host without waiting, [`MOST_FETCHED`] bytes at the most: a number to collect it by. After
    /// [`Pending::MOST`](crate::backend::Pending::MOST) more it is lost.
    fn fetch(&self, from: Region) -> Result<u64>;
    /// Waits for what was fetched under this number.
    fn collect(&self, ticket: u64, to: &mut [u8]) -> Result<()>;
    /// From here on launches, products and fills are recorded instead of run; false if this device does not record, and runs them.
    fn start_recording(&self) -> Result<bool> {
        Ok(false)
    }
    /// Ends what [`Self::start_recording`] began: a number to replay it by.
    fn stop_recording(&self) -> Result<u64> {
        Err(Error::device("nothing is being recorded"))
    }
    /// Does what was recorded, after everything launched before.
    fn replay(&self, number: u64) -> Result<()> {
        Err(Error::device(format!("nothing was recorded as {number}")))
    }
    /// A recording that is not needed any more.
    fn forget(&self, number: u64) {
        let _ = number;
    }
    /// Sets every byte.
    fn fill(&self, region: Region, value: u8) -> Result<()>;
    /// Runs a kernel after everything launched before.
    fn launch(&self, launch: &Launch<'_>) -> Result<()>;
    /// Multiplies after everything launched before.
    fn gemm(&self, gemm: &Gemm) -> Result<()>;
    /// Whether [`Self::gemm`] is a library's, made for the device.
    fn has_library(&self) -> bool {
        false
    }
    /// Bytes of its memory that are in use, by whomever; `None` where nobody counts.
    fn memory_used(&self) -> Option<u64> {
        None
    }
    /// The device in words.
    fn description(&self) -> String;
}

/// The error of a size that does not agree with its region: a fault of this program, not of its user.
pub(super) fn size_error(what: &str, got: usize, want: usize) -> Error {
    Error::device(format!("{what} of {got} bytes meets a region of {want} bytes"))
}
