//! An NVIDIA GPU: `cudarc`'s driver bindings, kernels from [`nvrtc`], products from cuBLASLt.
//!
//! Everything is computed on one stream, so what is launched later sees what was launched before; beside it go copies and
//! recorded steps.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::path::PathBuf;

use cudarc::driver::result::{self, DriverError, stream::StreamKind};
use cudarc::driver::sys;

use super::beside::Beside;
use super::cublaslt::CublasLt;
use super::gemm::own_gemm;
use super::libraries::Library;
use super::{Argument, Driver, Gemm, Launch, Region, nvrtc, size_error};
use crate::{Error, Result};

/// Shared memory that a kernel has without asking for more.
const USUAL_SHARED_BYTES: u32 = 48 << 10;

/// What there is to know of a device.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DeviceInfo {
    /// Its number.
    pub ordinal: i32,
    /// Its name.
    pub name: String,
    /// Compute capability, (9, 0).
    pub capability: (i32, i32),
    /// Memory.
    pub memory_bytes: usize,
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// Shared memory that a block may ask for.
    pub shared_bytes: i32,
}

impl DeviceInfo {
    /// What kernels are compiled for: exactly this, with its own instructions from Hopper on.
    pub fn architecture(&self) -> String {
        let (major, minor) = self.capability;
        let own = matches!((major, minor), (9, 0) | (10, _));
        format!("sm_{major}{minor}{}", if own { "a" } else { "" })
    }
}

pub(super) fn driver_error(doing: &str) -> impl FnOnce(DriverError) -> Error + '_ {
    move |e| {
        let name = e.error_name().map(|name| name.to_string_lossy().into_owned());
        let text = e.error_string().map(|text| text.to_string_lossy().into_owned());
        let name = name.unwrap_or_else(|_| format!("{:?}", e.0));
        Error::device(format!("the GPU fails at {doing}: {name}, {}", text.unwrap_or_default()))
    }
}

/// Starts the driver library; its version, (13, 0).
pub fn driver_version() -> Result<(i32, i32)> {
    Library::Driver.load()?;
    result::init().map_err(driver_error("starting"))?;
    let mut version = 0;
    // SAFETY: the library is loaded, the pointer is to an integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(driver_error("telling its version"))?;
    Ok((version / 1000, version % 1000 / 10))
}

/// The machine's devices.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    driver_version()?;
    let count = result::device::get_count().map_err(driver_error("counting devices"))?;
    (0..count).map(device_info).collect()
}

fn device_info(ordinal: i32) -> Result<DeviceInfo> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(ordinal).map_err(driver_error("naming a device"))?;
    let attribute = |which| {
        // SAFETY: the device comes from `get`.
        unsafe { result::device::get_attribute(device, which) }.map_err(driver_error("telling an attribute"))
    };
    Ok(DeviceInfo {
        ordinal,
        name: result::device::get_name(device).map_err(driver_error("telling its name"))?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }
            .map_err(driver_error("telling its memory"))?,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    })
}

/// Milliseconds between two events that have happened. By the name that every driver knows: `cudarc` asks for one of CUDA 12.8.
fn elapsed(start: sys::CUevent, end: sys::CUevent) -> Result<f32> {
    type Function = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
    let mut ms = 0.0;
    // SAFETY: the library is loaded, the function has this type in every version, and both events live.
    let status = unsafe {
        let function = sys::culib()
            .get::<Function>(b"cuEventElapsedTime")
            .map_err(|e| Error::device(format!("the driver has no clock: {e}")))?;
        function(&mut ms, start, end)
    };
    status.result().map_err(driver_error("reading a clock"))?;
    Ok(ms)
}

/// How a device is opened.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// Its number.
    pub ordinal: i32,
    /// Where compiled kernels are kept; `None` compiles anew.
    pub cache: Option<PathBuf>,
    /// Whether cuBLASLt may be used where it is found.
    pub cublaslt: bool,
    /// Whether a step may be recorded as a CUDA graph and replayed.
    pub graphs: bool,
    /// Whether a launch may begin while the one before ends, where the device can do that.
    pub overlap: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self { ordinal: 0, cache: nvrtc::cache_dir(), cublaslt: true, graphs: true, overlap: true }
    }
}

/// One GPU.
pub struct Cuda {
    info: DeviceInfo,
    cache: Option<PathBuf>,
    device: sys::CUdevice,
    stream: sys::CUstream,
    /// By file and build.
    modules: RefCell<HashMap<(&'static str, &'static str), sys::CUmodule>>,
    /// By module and name.
    functions: RefCell<HashMap<(&'static str, &'static str, &'static str), sys::CUfunction>>,
    cublaslt: Option<CublasLt>,
    /// `None` only while this is dropped.
    beside: RefCell<Option<Beside>>,
    /// Whether steps may be recorded.
    graphs: bool,
    /// Whether launches may overlap.
    overlap: bool,
    /// Where cuBLASLt works, and what it was found to be.
    pub(super) workspace: Region,
}

/// Scratch memory of matrix products: what NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

impl Cuda {
    /// Opens a device. An error says which library is missing, where it was looked for, and how to get it.
    pub fn new(options: CudaOptions) -> Result<Self> {
        let version = driver_version()?;
        Library::Nvrtc.load()?;
        let count = result::device::get_count().map_err(driver_error("counting devices"))?;
        if options.ordinal >= count {
            return Err(Error::device(format!(
                "there is no GPU {}: the driver finds {count}",
                options.ordinal
            )));
        }
        let info = device_info(options.ordinal)?;
        if info.capability < (8, 0) {
            return Err(Error::device(format!(
                "the {} has compute capability {}.{}; the kernels need 8.0 (Ampere) or newer: use --device cpu",
                info.name, info.capability.0, info.capability.1
            )));
        }
        // Programmatic dependent launch, and drivers that record it in a graph.
        let overlaps = info.capability >= (9, 0) && version >= (12, 3);
        let device = result::device::get(options.ordinal).map_err(driver_error("naming a device"))?;
        // SAFETY: the device comes from `get`; the context is released when this is dropped.
        let stream = unsafe {
            let context = result::primary_ctx::retain(device).map_err(driver_error("making a context"))?;
            result::ctx::set_current(context).map_err(driver_error("making a context current"))?;
            result::stream::create(StreamKind::NonBlocking).map_err(driver_error("making a stream"))?
        };
        let mut gpu = Self {
            info,
            cache: options.cache,
            device,
            stream,
            modules: RefCell::default(),
            functions: RefCell::default(),
            cublaslt: None,
            beside: RefCell::default(),
            graphs: options.graphs,
            overlap: options.overlap && overlaps,
            workspace: Region::NOTHING,
        };
        gpu.beside = RefCell::new(Some(Beside::new()?));
        if options.cublaslt && Library::CublasLt.load().is_ok() {
            gpu.workspace = gpu.alloc(WORKSPACE_BYTES)?;
            gpu.cublaslt = Some(CublasLt::new()?);
        }
        Ok(gpu)
    }

    /// The device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Which GELU cuBLASLt's epilogue is, `erf` or `tanh`; `None` without the library, or where it computes neither.
    pub fn cublaslt_gelu(&self) -> Result<Option<&'static str>> {
        // Here the two differ by 6 % of the value, and bf16 resolves 0.4 %.
        const X: f64 = -2.75;
        let Some(library) = &self.cublaslt else { return Ok(None) };
        let Some(got) = library.gelu(self, X as f32)? else { return Ok(None) };
        let exact = X * 0.5 * libm::erfc(-X * std::f64::consts::FRAC_1_SQRT_2);
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (X + 0.044_715 * X * X * X);
        let tanh = 0.5 * X * (1.0 + inner.tanh());
        let near = |want: f64| (f64::from(got) - want).abs() < 0.02 * want.abs();
        Ok(if near(exact) {
            Some("erf")
        } else if near(tanh) {
            Some("tanh")
        } else {
            None
        })
    }

    /// Bytes of memory that are free, and all.
    pub fn memory(&self) -> Result<(usize, usize)> {
        result::mem_get_info().map_err(driver_error("telling its free memory"))
    }

    /// Waits for everything launched.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::synchronize(self.stream) }.map_err(driver_error("finishing its work"))
    }

    /// Milliseconds on the device between two moments of the stream, and what `work` returns.
    pub fn time<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(f32, T)> {
        let event = || {
            result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
                .map_err(driver_error("making an event"))
        };
        let (start, end) = (event()?, event()?);
        // SAFETY: events and stream live until the end of this function, where the events are destroyed once.
        unsafe {
            let done = result::event::record(start, self.stream)
                .map_err(driver_error("recording an event"))
                .and_then(|()| work())
                .and_then(|value| {
                    result::event::record(end, self.stream).map_err(driver_error("recording an event"))?;
                    result::event::synchronize(end).map_err(driver_error("waiting for an event"))?;
                    Ok((elapsed(start, end)?, value))
                });
            let _ = result::event::destroy(start);
            let _ = result::event::destroy(end);
            done
        }
    }

    fn beside<T>(&self, work: impl FnOnce(&mut Beside) -> Result<T>) -> Result<T> {
        self.beside.borrow_mut().as_mut().map_or_else(|| Err(Error::device("the GPU is closed")), work)
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    fn function(&self, launch: &Launch<'_>) -> Result<sys::CUfunction> {
        let build = launch.precision.kernels();
        let key = (launch.file, build, launch.kernel);
        if let Some(&function) = self.functions.borrow().get(&key) {
            return Ok(function);
        }
        let module = self.module(launch)?;
        let name =
            CString::new(launch.kernel).map_err(|_| Error::device("a kernel's name holds a zero byte"))?;
        // SAFETY: the module stays loaded until this is dropped.
        let function = unsafe { result::module::get_function(module, name) }
            .map_err(|e| Error::device(format!("{}.cu has no kernel {}: {e}", launch.file, launch.kernel)))?;
        self.functions.borrow_mut().insert(key, function);
        Ok(function)
    }

    fn module(&self, launch: &Launch<'_>) -> Result<sys::CUmodule> {
        let key = (launch.file, launch.precision.kernels());
        if let Some(&module) = self.modules.borrow().get(&key) {
            return Ok(module);
        }
        let architecture = self.info.architecture();
        let compiled =
            nvrtc::compile_cached(launch.file, &architecture, launch.precision, self.cache.as_deref())?;
        // SAFETY: the image is a whole CUBIN, as NVRTC made it.
        let module = unsafe { result::module::load_data(compiled.image.as_ptr().cast()) }.map_err(|e| {
            Error::device(format!(
                "the driver refuses {}.cu compiled for {architecture}: {e}. Where it is older than libnvrtc, install the \
                 nvidia-cuda-nvrtc of its own version; after a damaged cache, run with --no-kernel-cache",
                launch.file
            ))
        })?;
        self.modules.borrow_mut().insert(key, module);
        Ok(module)
    }
}

impl Driver for Cuda {
    fn alloc(&self, bytes: usize) -> Result<Region> {
        // SAFETY: the region is handed out once, and given back to `free`.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Ok(Region { address, bytes }),
            Err(e) => {
                let mib = |bytes: usize| bytes >> 20;
                let free = self
                    .memory()
                    .map(|(free, total)| format!("{} of {} MiB are free", mib(free), mib(total)));
                Err(Error::device(format!(
                    "{} MiB of GPU memory are not to be had ({e}); {}: use a smaller --batch-size with --grad-accumulation, \
                     and see --dry-run for what is needed",
                    mib(bytes),
                    free.unwrap_or_default()
                )))
            }
        }
    }

    fn free(&self, region: Region) {
        // SAFETY: the region comes from `alloc`; the call waits for what still uses it. At exit the context may be gone.
        let _ = unsafe { result::free_sync(region.address) };
    }

    fn upload(&self, from: &[u8], to: Region) -> Result<()> {
        if from.len() != to.bytes {
            return Err(size_error("an upload", from.len(), to.bytes));
        }
        // SAFETY: the region is live and has this size. Memory that is not pinned is copied before the call returns.
        unsafe { result::memcpy_htod_async(to.address, from, self.stream) }.map_err(driver_error("an upload"))
    }

    fn download(&self, from: Region, to: &mut [u8]) -> Result<()> {
        if to.len() != from.bytes {
            return Err(size_error("a download", to.len(), from.bytes));
        }
        // SAFETY: the region is live and has this size; the stream is waited for before `to` is used.
        unsafe { result::memcpy_dtoh_async(to, from.address, self.stream) }
            .map_err(driver_error("a download"))?;
        self.synchronize()
    }

    fn stage(&self, slot: usize, copies: &[(&[u8], Region)]) -> Result<()> {
        self.beside(|b| b.stage(self.stream, slot, copies))
    }

    fn begin(&self, slot: usize) -> Result<()> {
        self.beside(|b| b.begin(self.stream, slot))
    }

    fn fetch(&self, from: Region) -> Result<u64> {
        self.beside(|b| b.fetch(self.stream, from))
    }

    fn collect(&self, ticket: u64, to: &mut [u8]) -> Result<()> {
        self.beside(|b| b.collect(ticket, to))
    }

    fn start_recording(&self) -> Result<bool> {
        if self.graphs {
            self.beside(|b| b.start_recording(self.stream))?;
        }
        Ok(self.graphs)
    }

    fn stop_recording(&self) -> Result<u64> {
        self.beside(|b| b.stop_recording(self.stream))
    }

    fn replay(&self, number: u64) -> Result<()> {
        self.beside(|b| b.replay(self.stream, number))
    }

    fn forget(&self, number: u64) {
        if let Some(beside) = self.beside.borrow_mut().as_mut() {
            beside.forget(number);
        }
    }

    fn fill(&self, region: Region, value: u8) -> Result<()> {
        // SAFETY: the region is live.
        unsafe { result::memset_d8_async(region.address, value, region.bytes, self.stream) }
            .map_err(driver_error("setting memory"))
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let function = self.function(launch)?;
        if launch.shared_bytes > USUAL_SHARED_BYTES {
            if launch.shared_bytes > self.info.shared_bytes as u32 {
                return Err(Error::device(format!(
                    "kernel {} needs {} bytes of shared memory, the {} gives a block {}: use --precision bf16",
                    launch.kernel, launch.shared_bytes, self.info.name, self.info.shared_bytes
                )));
            }
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            unsafe {
                result::function::set_function_attribute(function, attribute, launch.shared_bytes as i32)
            }
            .map_err(driver_error("asking for shared memory"))?;
        }
        // Structures of pointers must be aligned to eight bytes.
        let mut copies: Vec<[u64; Argument::LARGEST / 8]> = launch
            .arguments
            .iter()
            .map(|argument| {
                let mut copy = [0u64; Argument::LARGEST / 8];
                bytemuck::cast_slice_mut::<u64, u8>(&mut copy)[..argument.bytes().len()]
                    .copy_from_slice(argument.bytes());
                copy
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = copies.iter_mut().map(|copy| copy.as_mut_ptr().cast()).collect();
        let [x, y, z] = launch.grid;
        // SAFETY: plain numbers; an attribute has the member of its kind set.
        let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream,
            attrs: &mut attribute,
            numAttrs: u32::from(self.overlap),
        };
        // SAFETY: the launchers' arguments are those of the kernel: the emulated device checks their number and sizes in the
        // tests, and every address among them is of live memory. Every kernel waits for the one before, which the emulated device checks as
        // well. The driver copies attributes and arguments before it returns.
        unsafe { sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(driver_error(launch.kernel))
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        match &self.cublaslt {
            Some(library) if library.multiply(self, gemm)? => Ok(()),
            _ => own_gemm(self, gemm),
        }
    }

    fn has_library(&self) -> bool {
        self.cublaslt.is_some()
    }

    fn memory_used(&self) -> Option<u64> {
        self.memory().ok().map(|(free, total)| total.saturating_sub(free) as u64)
    }

    fn description(&self) -> String {
        let (major, minor) = self.info.capability;
        format!(
            "{}, compute capability {major}.{minor}, {} MiB; products by {}",
            self.info.name,
            self.info.memory_bytes >> 20,
            if self.has_library() { "cuBLASLt" } else { "this program's own kernel" }
        )
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // SAFETY: the stream lives; what runs on it may read pinned memory, which goes next.
        let _ = unsafe { result::stream::synchronize(self.stream) };
        self.beside.take();
        self.cublaslt = None;
        if self.workspace != Region::NOTHING {
            self.free(self.workspace);
        }
        // SAFETY: nothing of the context is used after this; errors at the end of a process change nothing.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            for (_, module) in self.modules.borrow_mut().drain() {
                let _ = result::module::unload(module);
            }
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
