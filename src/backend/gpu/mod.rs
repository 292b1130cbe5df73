//! The GPU backend: hand-written kernels (`kernels/`), matrix products by the driver.
//!
//! An op's launcher (one file a word, as in `cpu/`) computes grid, block and shared memory and hands the arguments over in the kernel's
//! order. It is generic over [`Driver`], so everything here also runs on the emulated device, without a GPU.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

use half::bf16;

use super::{
    AdamW, AddNormBwd, AddNormFwd, AttentionBwd, AttentionFwd, Backend, Clock, Corrupt, Dropout, Elem,
    EmbedBwd, EmbedFwd, Float, LinearBwd, LinearFwd, Mask, Metrics, MlmLoss, Pending, RtdLoss, StepKey,
    UpdateRule, Upload, WeightGrad,
};
use crate::{Error, Result};
use driver::{Argument, Driver, Launch, Precision, Region};
pub use products::Products;

mod attention;
pub mod driver;
mod elementwise;
mod embed;
mod linear;
mod mask;
mod metrics;
mod mlm_head;
mod norm;
mod optim;
mod products;
mod rtd_head;
mod sort;
mod step;

/// A type of working values on the GPU: `bf16` or `f32`.
pub trait Working: Float {
    /// Which kernels and products it takes, unless TF32 is asked for.
    const PRECISION: Precision;
}

impl Working for bf16 {
    const PRECISION: Precision = Precision::Bf16;
}

impl Working for f32 {
    const PRECISION: Precision = Precision::Fp32;
}

/// A GPU with working precision `W`.
pub struct Gpu<D: Driver, W: Working> {
    driver: Rc<D>,
    precision: Precision,
    products: Products,
    /// Partial sums of the op that runs: grows to what the largest needs.
    workspace: RefCell<Option<DeviceBuf<D, f32>>>,
    /// Zeros: kernels count their blocks here, and leave zeros.
    counters: RefCell<Option<DeviceBuf<D, u32>>>,
    /// Ranges that decay, as they were last uploaded.
    decayed: RefCell<Option<Decayed<D>>>,
    /// What changes from step to step, and what is done again in each.
    steps: step::Steps<D>,
    _working: PhantomData<W>,
}

/// Ranges of the flat buffers, and their borders on the device.
type Decayed<D> = (Vec<Range<usize>>, DeviceBuf<D, u32>);

/// Owned device memory.
pub struct DeviceBuf<D: Driver, T> {
    driver: Rc<D>,
    region: Region,
    len: usize,
    _elements: PhantomData<T>,
}

impl<D: Driver, T> Drop for DeviceBuf<D, T> {
    fn drop(&mut self) {
        if self.len > 0 {
            self.driver.free(self.region);
        }
    }
}

impl<D: Driver, T> DeviceBuf<D, T> {
    fn new(driver: &Rc<D>, len: usize) -> Result<Self> {
        let region = if len == 0 { Region::NOTHING } else { driver.alloc(len * size_of::<T>())? };
        Ok(Self { driver: Rc::clone(driver), region, len, _elements: PhantomData })
    }

    fn region(&self, range: Range<usize>) -> Region {
        self.region.part(range.start * size_of::<T>()..range.end * size_of::<T>())
    }
}

/// Borrowed device memory.
pub struct DeviceSlice<'a, T> {
    region: Region,
    _borrow: PhantomData<&'a [T]>,
}

impl<T> Clone for DeviceSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DeviceSlice<'_, T> {}

/// Exclusively borrowed device memory.
pub struct DeviceSliceMut<'a, T> {
    region: Region,
    _borrow: PhantomData<&'a mut [T]>,
}

impl<T> DeviceSlice<'_, T> {
    fn len(self) -> usize {
        self.region.bytes() / size_of::<T>()
    }
}

impl<T> DeviceSliceMut<'_, T> {
    fn len(&self) -> usize {
        self.region.bytes() / size_of::<T>()
    }

    /// For reading.
    fn read(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { region: self.region, _borrow: PhantomData }
    }
}

impl<T> From<DeviceSlice<'_, T>> for Argument {
    fn from(slice: DeviceSlice<'_, T>) -> Self {
        slice.region.into()
    }
}

impl<T> From<&DeviceSliceMut<'_, T>> for Argument {
    fn from(slice: &DeviceSliceMut<'_, T>) -> Self {
        slice.region.into()
    }
}

/// Blocks of `threads` threads that hold `work` threads; an error beyond what a grid can have.
fn blocks(work: usize, threads: u32) -> Result<u32> {
    u32::try_from(work.div_ceil(threads as usize))
        .ok()
        .filter(|&blocks| blocks <= i32::MAX as u32)
        .ok_or_else(|| Error::device("this batch needs more blocks than a grid can have: use a smaller one"))
}

/// A size as kernels take it.
fn size(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::device(format!("a size of {n} exceeds what the kernels count")))
}

/// Counters with which the sums of `count` blocks are added up: `tree_counters` of `kernels/common/reduce.cuh`.
fn tree_counters(count: usize) -> usize {
    const GROUP: usize = 16;
    let groups = count.div_ceil(GROUP);
    groups + if groups > 1 { tree_counters(groups) } else { 0 }
}

impl<D: Driver, W: Working> Gpu<D, W> {
    /// Works on this device.
    pub fn new(driver: D) -> Self {
        Self {
            driver: Rc::new(driver),
            precision: W::PRECISION,
            products: Products::default(),
            workspace: RefCell::default(),
            counters: RefCell::default(),
            decayed: RefCell::default(),
            steps: step::Steps::default(),
            _working: PhantomData,
        }
    }

    /// Products of fp32 operands may round those to TF32.
    pub fn with_tf32(mut self) -> Self {
        if self.precision == Precision::Fp32 {
            self.precision = Precision::Tf32;
        }
        self
    }

    /// The device.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// `len` floats of scratch, undefined; the op that asks has them until the next one asks.
    fn workspace(&self, len: usize) -> Result<Region> {
        let mut held = self.workspace.borrow_mut();
        if held.as_ref().is_none_or(|buf| buf.len < len) {
            self.steps.forget(&*self.driver);
            *held = None;
            *held = Some(DeviceBuf::new(&self.driver, len)?);
        }
        held.as_ref().map(|buf| buf.region(0..len)).ok_or_else(|| Error::device("there is no workspace"))
    }

    /// The same in parts.
    fn workspaces<const N: usize>(&self, lens: [usize; N]) -> Result<[Region; N]> {
        let mut rest = self.workspace(lens.iter().sum())?;
        Ok(lens.map(|len| {
            let part = rest.part(0..4 * len);
            rest = rest.part(4 * len..rest.bytes());
            part
        }))
    }

    /// `len` counters at zero.
    fn counters(&self, len: usize) -> Result<Region> {
        let mut held = self.counters.borrow_mut();
        if held.as_ref().is_none_or(|buf| buf.len < len) {
            self.steps.forget(&*self.driver);
            let buf = DeviceBuf::new(&self.driver, len)?;
            self.driver.fill(buf.region, 0)?;
            *held = Some(buf);
        }
        held.as_ref().map(|buf| buf.region(0..len)).ok_or_else(|| Error::device("there are no counters"))
    }

    /// `bytes`: what crosses the memory bus, for the accounting of `--dry-run` and the benches.
    #[allow(clippy::too_many_arguments)] // geometry and operands of one launch
    fn launch(
        &self,
        (file, kernel): (&'static str, &'static str),
        grid: [u32; 3],
        threads: u32,
        shared_bytes: usize,
        bytes: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let precision = self.precision;
        let shared_bytes = size(shared_bytes)?;
        self.driver.launch(&Launch {
            file,
            kernel,
            precision,
            grid,
            threads,
            shared_bytes,
            arguments,
            bytes: bytes as u64,
        })
    }
}

impl<D: Driver, W: Working> Backend for Gpu<D, W> {
    type X = W;
    type F = f32;
    type Buf<T: Elem> = DeviceBuf<D, T>;
    type Slice<'a, T: Elem> = DeviceSlice<'a, T>;
    type SliceMut<'a, T: Elem> = DeviceSliceMut<'a, T>;
    const RECORDS: bool = true;

    fn pitch(len: usize) -> usize {
        len.next_multiple_of(128)
    }

    fn alloc<T: Elem>(&self, len: usize) -> Result<DeviceBuf<D, T>> {
        self.steps.forget(&*self.driver);
        let buf = DeviceBuf::new(&self.driver, len)?;
        if len > 0 {
            self.driver.fill(buf.region, 0)?;
        }
        Ok(buf)
    }

    fn slice<T: Elem>(buf: &DeviceBuf<D, T>, range: Range<usize>) -> DeviceSlice<'_, T> {
        DeviceSlice { region: buf.region(range), _borrow: PhantomData }
    }

    fn slice_mut<T: Elem>(buf: &mut DeviceBuf<D, T>, range: Range<usize>) -> DeviceSliceMut<'_, T> {
        DeviceSliceMut { region: buf.region(range), _borrow: PhantomData }
    }

    fn disjoint_mut<T: Elem, const K: usize>(
        buf: &mut DeviceBuf<D, T>,
        ranges: [Range<usize>; K],
    ) -> Result<[DeviceSliceMut<'_, T>; K]> {
        let overlap = |a: &Range<usize>, b: &Range<usize>| a.start < b.end && b.start < a.end;
        let apart = (0..K).all(|i| (i + 1..K).all(|j| !overlap(&ranges[i], &ranges[j])));
        if !apart || ranges.iter().any(|range| range.start > range.end || range.end > buf.len) {
            return Err(Error::argument(
                "parameters to be written together must lie apart, within their buffer",
            ));
        }
        Ok(ranges.map(|range| DeviceSliceMut { region: buf.region(range), _borrow: PhantomData }))
    }

    fn upload<T: Elem>(&self, from: &[T], to: DeviceSliceMut<'_, T>) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        self.driver.upload(bytemuck::cast_slice(from), to.region)
    }

    fn download<T: Elem>(&self, from: DeviceSlice<'_, T>) -> Result<Vec<T>> {
        let mut to = vec![T::default(); from.len()];
        if !to.is_empty() {
            self.driver.download(from.region, bytemuck::cast_slice_mut(&mut to))?;
        }
        Ok(to)
    }

    fn zero<T: Elem>(&self, to: DeviceSliceMut<'_, T>) -> Result<()> {
        match to.len() {
            0 => Ok(()),
            _ => self.driver.fill(to.region, 0),
        }
    }

    fn stage(&self, slot: usize, uploads: Vec<Upload<'_, Self>>) -> Result<()> {
        self.stage_op(slot, uploads)
    }

    fn begin(&self, slot: usize) -> Result<()> {
        self.driver.begin(slot)
    }

    fn fetch<T: Elem>(&self, from: DeviceSlice<'_, T>) -> Result<Pending<T>> {
        Ok(Pending::Ticket(self.driver.fetch(from.region)?, from.len()))
    }

    fn collect<T: Elem>(&self, pending: Pending<T>) -> Result<Vec<T>> {
        match pending {
            Pending::Here(values) => Ok(values),
            Pending::Ticket(ticket, len) => {
                let mut to = vec![T::default(); len];
                self.driver.collect(ticket, bytemuck::cast_slice_mut(&mut to))?;
                Ok(to)
            }
        }
    }

    fn memory_used(&self) -> Option<u64> {
        self.driver.memory_used()
    }

    fn set_clock(&self, clock: Clock) -> Result<()> {
        self.clock_at(clock).map(|_| ())
    }

    fn set_update(&self, rule: UpdateRule) -> Result<()> {
        self.update_at(rule.into()).map(|_| ())
    }

    fn replay(&self, key: StepKey) -> Result<bool> {
        self.steps.replay(&*self.driver, key)
    }

    fn end_recording(&self, key: StepKey, whole: bool) -> Result<()> {
        self.steps.end(&*self.driver, key, whole)
    }

    fn cast(&self, from: DeviceSlice<'_, f32>, to: DeviceSliceMut<'_, W>) -> Result<()> {
        self.cast_op(from, to)
    }

    fn embed_fwd(&self, op: EmbedFwd<'_, Self>) -> Result<()> {
        self.embed_fwd_op(op)
    }

    fn embed_bwd(&self, op: EmbedBwd<'_, Self>) -> Result<()> {
        self.embed_bwd_op(op)
    }

    fn linear_fwd(&self, op: LinearFwd<'_, Self>) -> Result<()> {
        self.linear_fwd_op(op)
    }

    fn linear_bwd(&self, op: LinearBwd<'_, Self>) -> Result<()> {
        self.linear_bwd_op(op)
    }

    fn weight_grads(&self, ops: Vec<WeightGrad<'_, Self>>) -> Result<()> {
        self.weight_grads_op(ops)
    }

    fn attention_fwd(&self, op: AttentionFwd<'_, Self>) -> Result<()> {
        self.attention_fwd_op(op)
    }

    fn attention_bwd(&self, op: AttentionBwd<'_, Self>) -> Result<()> {
        self.attention_bwd_op(op)
    }

    fn add_dropout_layernorm_fwd(&self, op: AddNormFwd<'_, Self>) -> Result<()> {
        self.add_norm_fwd_op(op)
    }

    fn add_dropout_layernorm_bwd(&self, op: AddNormBwd<'_, Self>) -> Result<()> {
        self.add_norm_bwd_op(op)
    }

    fn dropout(
        &self,
        width: usize,
        dropout: Dropout,
        inp: DeviceSlice<'_, W>,
        out: DeviceSliceMut<'_, W>,
    ) -> Result<()> {
        self.dropout_op(width, dropout, inp, out)
    }

    fn gather_rows_fwd(
        &self,
        width: usize,
        index: DeviceSlice<'_, u32>,
        inp: DeviceSlice<'_, W>,
        out: DeviceSliceMut<'_, W>,
    ) -> Result<()> {
        self.gather_rows_fwd_op(width, index, inp, out)
    }

    fn gather_rows_bwd(
        &self,
        width: usize,
        index: DeviceSlice<'_, u32>,
        dout: DeviceSlice<'_, W>,
        dinp: DeviceSliceMut<'_, W>,
    ) -> Result<()> {
        self.gather_rows_bwd_op(width, index, dout, dinp)
    }

    fn mask(&self, op: Mask<'_, Self>) -> Result<()> {
        self.mask_op(op)
    }

    fn mlm_loss(&self, op: MlmLoss<'_, Self>) -> Result<()> {
        self.mlm_loss_op(op)
    }

    fn corrupt(&self, op: Corrupt<'_, Self>) -> Result<()> {
        self.corrupt_op(op)
    }

    fn rtd_loss(&self, op: RtdLoss<'_, Self>) -> Result<()> {
        self.rtd_loss_op(op)
    }

    fn metrics(&self, op: Metrics<'_, Self>) -> Result<()> {
        self.metrics_op(op)
    }

    fn norm_squared(&self, x: DeviceSlice<'_, f32>, out: DeviceSliceMut<'_, f32>) -> Result<()> {
        self.norm_squared_op(x, out)
    }

    fn adamw(&self, op: AdamW<'_, Self>) -> Result<()> {
        self.adamw_op(op)
    }
}
