//! What makes one step like another: the few numbers that differ lie in device memory, batches are staged beside the computation, and the
//! launches of a step are recorded once and replayed (a CUDA graph).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use super::driver::{Argument, Driver, Region};
use super::optim::UpdateArgs;
use super::{DeviceBuf, Gpu, Working, size};
use crate::backend::{Clock, Dropout, StepKey, Upload};
use crate::{Error, Result};

/// Numbers in device memory, and what was written there last.
type Noted<D, T> = RefCell<Option<(T, DeviceBuf<D, u32>)>>;

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recorded {
    /// It has run: kernels are loaded, scratch is as large as it must be.
    Once,
    /// The driver's number.
    Under(u64),
}

/// What changes from step to step, and what is done again in each.
pub(super) struct Steps<D: Driver> {
    clock: Noted<D, Clock>,
    update: Noted<D, UpdateArgs>,
    recordings: RefCell<HashMap<StepKey, Recorded>>,
    recording: Cell<bool>,
}

impl<D: Driver> Default for Steps<D> {
    fn default() -> Self {
        Self {
            clock: RefCell::default(),
            update: RefCell::default(),
            recordings: RefCell::default(),
            recording: Cell::new(false),
        }
    }
}

impl<D: Driver> Steps<D> {
    /// Memory moves: what was recorded no longer holds.
    pub(super) fn forget(&self, driver: &D) {
        for (_, recorded) in self.recordings.borrow_mut().drain() {
            if let Recorded::Under(number) = recorded {
                driver.forget(number);
            }
        }
    }

    pub(super) fn replay(&self, driver: &D, key: StepKey) -> Result<bool> {
        let known = self.recordings.borrow().get(&key).copied();
        match known {
            Some(Recorded::Under(number)) => driver.replay(number).map(|()| true),
            Some(Recorded::Once) => {
                self.recording.set(driver.start_recording()?);
                Ok(false)
            }
            None => Ok(false),
        }
    }

    /// Runs what was recorded since [`Self::replay`] said no; the first time it has run already.
    pub(super) fn end(&self, driver: &D, key: StepKey, whole: bool) -> Result<()> {
        if !self.recording.replace(false) {
            // Scratch that grew on the way has made everything forgotten.
            if whole {
                self.recordings.borrow_mut().insert(key, Recorded::Once);
            }
            return Ok(());
        }
        let number = driver.stop_recording()?;
        if !whole {
            driver.forget(number);
            return Ok(());
        }
        self.recordings.borrow_mut().insert(key, Recorded::Under(number));
        driver.replay(number)
    }
}

/// `Clock` of `kernels/common/philox.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct ClockArgs {
    step: u32,
    row0: u32,
    slot0: u32,
}

/// `Dropout` of `kernels/common/philox.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct DropoutArgs {
    threshold: u32,
    scale: f32,
    key: [u32; 2],
    site: u32,
    /// Step, first row and padding: read from the clock.
    later: [u32; 3],
    clock: u64,
}

/// `Note` of `kernels/elementwise.cu`.
const NOTE_WORDS: usize = 16;

impl<D: Driver, W: Working> Gpu<D, W> {
    /// Makes `held` say `value`, in the order of the launches.
    fn noted<T, A>(&self, held: &Noted<D, T>, value: T, arguments: A) -> Result<Region>
    where
        T: Copy + PartialEq,
        A: bytemuck::NoUninit,
    {
        let mut held = held.borrow_mut();
        if let Some((_, buf)) = held.as_ref().filter(|(before, _)| *before == value) {
            return Ok(buf.region);
        }
        if self.steps.recording.get() {
            return Err(Error::device("a recorded step was not told its clock or its update first"));
        }
        let words = size_of::<A>() / 4;
        let buf = match held.take() {
            Some((_, buf)) => buf,
            None => DeviceBuf::new(&self.driver, words)?,
        };
        let mut note = [0u32; NOTE_WORDS];
        bytemuck::cast_slice_mut::<u32, u8>(&mut note)[..size_of::<A>()]
            .copy_from_slice(bytemuck::bytes_of(&arguments));
        let arguments = [Argument::of(note), buf.region.into(), size(words)?.into()];
        self.launch(("elementwise", "note"), [1, 1, 1], 32, 0, 4 * words, &arguments)?;
        let region = buf.region;
        *held = Some((value, buf));
        Ok(region)
    }

    /// Where kernels read this clock.
    pub(super) fn clock_at(&self, clock: Clock) -> Result<Region> {
        let Clock { step, row0, slot0 } = clock;
        self.noted(&self.steps.clock, clock, ClockArgs { step, row0, slot0 })
    }

    /// Where AdamW reads these constants.
    pub(super) fn update_at(&self, update: UpdateArgs) -> Result<Region> {
        self.noted(&self.steps.update, update, update)
    }

    /// Dropout as kernels take it.
    pub(super) fn dropout_args(&self, d: Dropout) -> Result<Argument> {
        if d.is_on() { self.noise_args(d) } else { Ok(Self::stream(d, Region::NOTHING)) }
    }

    /// A stream of random numbers as kernels take it.
    pub(super) fn noise_args(&self, d: Dropout) -> Result<Argument> {
        Ok(Self::stream(d, self.clock_at(d.clock)?))
    }

    fn stream(d: Dropout, clock: Region) -> Argument {
        Argument::of(DropoutArgs {
            threshold: d.threshold,
            scale: d.scale as f32,
            key: d.rng.key(),
            site: d.site.0,
            later: [0; 3],
            clock: clock.address(),
        })
    }

    pub(super) fn stage_op(&self, slot: usize, uploads: Vec<Upload<'_, Self>>) -> Result<()> {
        let copies: Vec<(&[u8], Region)> = uploads
            .into_iter()
            .map(|upload| match upload {
                Upload::Index(from, to) => (bytemuck::cast_slice(from), to.region),
                Upload::Exact(from, to) => (bytemuck::cast_slice(from), to.region),
            })
            .filter(|(from, _)| !from.is_empty())
            .collect();
        self.driver.stage(slot, &copies)
    }
}
