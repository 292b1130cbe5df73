//! Work beside the computation on an NVIDIA GPU: a stream for copies with a pinned buffer for each of two slots, downloads that nobody waits
//! for, and recorded steps (CUDA graphs).

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::driver::result::stream::StreamKind;
use cudarc::driver::{result, sys};

use super::cuda::driver_error;
use super::{MOST_FETCHED, Region, size_error};
use crate::backend::Pending;
use crate::{Error, Result};

/// Copies in a pinned buffer start at multiples of this.
const ALIGNMENT: usize = 256;
const RING: usize = Pending::<u8>::MOST;

/// Host memory that a device copies from and to by itself.
struct Pinned {
    at: *mut c_void,
    bytes: usize,
}

impl Pinned {
    fn new(bytes: usize) -> Result<Self> {
        // SAFETY: a context is current; the memory is freed when this is dropped.
        let at =
            unsafe { result::malloc_host(bytes, 0) }.map_err(driver_error("asking for pinned memory"))?;
        Ok(Self { at, bytes })
    }

    /// A part that no copy under way touches: the caller has waited for its event.
    fn part(&mut self, start: usize, len: usize) -> Result<&mut [u8]> {
        if start + len > self.bytes {
            return Err(size_error("a copy", start + len, self.bytes));
        }
        // SAFETY: the part lies within the allocation, and `self` is borrowed exclusively.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.at.cast::<u8>().add(start), len) })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by `malloc_host`, freed once; copies under way were waited for by the owner.
        let _ = unsafe { result::free_host(self.at) };
    }
}

/// A moment of a stream.
struct Event(sys::CUevent);

impl Event {
    fn new() -> Result<Self> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        result::event::create(flags).map(Self).map_err(driver_error("making an event"))
    }

    fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: event and stream live.
        unsafe { result::event::record(self.0, stream) }.map_err(driver_error("recording an event"))
    }

    /// The host waits; an event that was never recorded has happened.
    fn wait(&self) -> Result<()> {
        // SAFETY: the event lives.
        unsafe { result::event::synchronize(self.0) }.map_err(driver_error("waiting for an event"))
    }

    /// What `stream` is given from here on waits.
    fn hold(&self, stream: sys::CUstream) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream live.
        unsafe { result::stream::wait_event(stream, self.0, flags) }
            .map_err(driver_error("ordering its streams"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `create`, destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// One of the two places where batches are staged.
struct Slot {
    pinned: Pinned,
    /// Its copies have arrived.
    copied: Event,
    /// The computation has read them.
    read: Event,
    /// Whether `read` was ever recorded.
    used: bool,
    staged: bool,
}

impl Slot {
    fn new() -> Result<Self> {
        let (copied, read) = (Event::new()?, Event::new()?);
        Ok(Self { pinned: Pinned::new(ALIGNMENT)?, copied, read, used: false, staged: false })
    }
}

/// All that goes on beside the compute stream.
pub(super) struct Beside {
    copies: sys::CUstream,
    slots: [Slot; 2],
    begun: Option<usize>,
    ring: Pinned,
    arrived: Vec<Event>,
    /// Number of the next fetch.
    next_fetch: u64,
    graphs: HashMap<u64, sys::CUgraphExec>,
    next_graph: u64,
}

impl Beside {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            copies: result::stream::create(StreamKind::NonBlocking)
                .map_err(driver_error("making a stream"))?,
            slots: [Slot::new()?, Slot::new()?],
            begun: None,
            ring: Pinned::new(RING * MOST_FETCHED)?,
            arrived: (0..RING).map(|_| Event::new()).collect::<Result<_>>()?,
            next_fetch: 0,
            graphs: HashMap::new(),
            next_graph: 0,
        })
    }

    pub(super) fn stage(
        &mut self,
        compute: sys::CUstream,
        index: usize,
        copies: &[(&[u8], Region)],
    ) -> Result<()> {
        if self.begun == Some(index) {
            return Err(Error::device(format!("slot {index} is staged while it is in use")));
        }
        let slot = &mut self.slots[index];
        slot.copied.wait()?;
        let bytes: usize = copies.iter().map(|(from, _)| from.len().next_multiple_of(ALIGNMENT)).sum();
        if slot.pinned.bytes < bytes {
            slot.pinned = Pinned::new(bytes)?;
        }
        if !slot.used {
            // The buffers were set to zero on the compute stream when they were made.
            slot.read.record(compute)?;
        }
        slot.read.hold(self.copies)?;
        let mut start = 0;
        for (from, to) in copies {
            if from.len() != to.bytes {
                return Err(size_error("an upload", from.len(), to.bytes));
            }
            let part = slot.pinned.part(start, from.len())?;
            part.copy_from_slice(from);
            // SAFETY: the region is live and has this size; the pinned part is left alone until `copied` has happened.
            unsafe { result::memcpy_htod_async(to.address, part, self.copies) }
                .map_err(driver_error("an upload"))?;
            start += from.len().next_multiple_of(ALIGNMENT);
        }
        slot.copied.record(self.copies)?;
        slot.staged = true;
        Ok(())
    }

    pub(super) fn begin(&mut self, compute: sys::CUstream, index: usize) -> Result<()> {
        if !std::mem::take(&mut self.slots[index].staged) {
            return Err(Error::device(format!("nothing was staged in slot {index}")));
        }
        if let Some(before) = self.begun.replace(index) {
            self.slots[before].read.record(compute)?;
            self.slots[before].used = true;
        }
        self.slots[index].copied.hold(compute)
    }

    pub(super) fn fetch(&mut self, compute: sys::CUstream, from: Region) -> Result<u64> {
        if from.bytes > MOST_FETCHED {
            return Err(size_error("a fetch", from.bytes, MOST_FETCHED));
        }
        let (number, place) = (self.next_fetch, (self.next_fetch % RING as u64) as usize);
        // Whoever was here before has not been collected and is lost; its copy must be over before the next one begins.
        self.arrived[place].wait()?;
        let part = self.ring.part(place * MOST_FETCHED, from.bytes)?;
        // SAFETY: the region is live and has this size; the part is read after its event only.
        unsafe { result::memcpy_dtoh_async(part, from.address, compute) }
            .map_err(driver_error("a download"))?;
        self.arrived[place].record(compute)?;
        self.next_fetch += 1;
        Ok(number)
    }

    pub(super) fn collect(&mut self, number: u64, to: &mut [u8]) -> Result<()> {
        if number >= self.next_fetch || self.next_fetch - number > RING as u64 {
            return Err(Error::device("too much was fetched before it was collected"));
        }
        let place = (number % RING as u64) as usize;
        self.arrived[place].wait()?;
        to.copy_from_slice(self.ring.part(place * MOST_FETCHED, to.len())?);
        Ok(())
    }

    pub(super) fn start_recording(&self, compute: sys::CUstream) -> Result<()> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives and is not the default stream.
        unsafe { result::stream::begin_capture(compute, mode) }.map_err(driver_error("recording a step"))
    }

    pub(super) fn stop_recording(&mut self, compute: sys::CUstream) -> Result<u64> {
        // SAFETY: the stream lives; the graph is destroyed below, once it is made executable.
        let exec = unsafe {
            let graph = result::stream::end_capture(compute).map_err(driver_error("recording a step"))?;
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            exec.map_err(driver_error("preparing a recorded step"))?
        };
        self.next_graph += 1;
        self.graphs.insert(self.next_graph, exec);
        Ok(self.next_graph)
    }

    pub(super) fn replay(&self, compute: sys::CUstream, number: u64) -> Result<()> {
        let graph = self.graphs.get(&number);
        let &graph = graph.ok_or_else(|| Error::device(format!("nothing was recorded as {number}")))?;
        // SAFETY: graph and stream live; the memory that the graph names is live, or the graph was forgotten.
        unsafe { result::graph::launch(graph, compute) }.map_err(driver_error("a recorded step"))
    }

    pub(super) fn forget(&mut self, number: u64) {
        if let Some(graph) = self.graphs.remove(&number) {
            // SAFETY: made by `instantiate`, destroyed once; the driver keeps what still runs.
            let _ = unsafe { result::graph::exec_destroy(graph) };
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let numbers: Vec<u64> = self.graphs.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.forget(number));
        // SAFETY: the stream lives; copies from pinned memory end before that is freed.
        unsafe {
            let _ = result::stream::synchronize(self.copies);
            let _ = result::stream::destroy(self.copies);
        }
    }
}
