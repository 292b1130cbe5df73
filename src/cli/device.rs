//! Where a command computes: `--device` and `--precision` made into a backend.

use clap::ValueEnum;
use half::bf16;

use crate::backend::cpu::in_pool;
use crate::backend::gpu::Products;
use crate::backend::gpu::driver::cuda::{Cuda, CudaOptions};
use crate::backend::gpu::driver::{Driver, nvrtc};
use crate::backend::{Backend, Cpu, Gpu};
use crate::config::{Device, Precision};
use crate::{Error, Result};

/// What the user asked for.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    pub(super) device: Device,
    /// `None`: bf16 on a GPU, fp32 on the CPU.
    pub(super) precision: Option<Precision>,
    /// Whether compiled kernels are kept on disk.
    pub(super) kernel_cache: bool,
    /// Whether a step is recorded as a CUDA graph.
    pub(super) graphs: bool,
    /// Whether launches may overlap.
    pub(super) overlap: bool,
    /// Who multiplies matrices on a GPU.
    pub(super) products: Products,
}

impl Choice {
    /// The usual way.
    pub(super) fn new(device: Device, precision: Option<Precision>) -> Self {
        let products = Products::default();
        Self { device, precision, kernel_cache: true, graphs: true, overlap: true, products }
    }
}

/// Who multiplies matrices on a GPU, as users say it.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Multiply {
    /// cuBLASLt where it is found, own kernels elsewhere
    Auto,
    /// As with cuBLASLt, with or without it
    Library,
    /// Own kernels
    Own,
}

impl From<Multiply> for Products {
    fn from(multiply: Multiply) -> Self {
        match multiply {
            Multiply::Auto => Self::Auto,
            Multiply::Library => Self::Library,
            Multiply::Own => Self::Own,
        }
    }
}

/// Where it is done.
pub(super) struct Place {
    /// In words.
    pub(super) name: String,
    /// Free memory of a GPU, in bytes.
    pub(super) free_bytes: Option<u64>,
}

/// Work on whatever backend was chosen.
pub(super) trait OnBackend: Send {
    /// What comes of it.
    type Output: Send;
    /// Does it.
    fn run<B: Backend>(self, backend: B, place: &Place) -> Result<Self::Output>;
}

/// Opens the device and does `task` on it. With `--device auto` a missing GPU is said and the CPU taken.
pub(super) fn with_backend<T: OnBackend>(choice: Choice, task: T) -> Result<T::Output> {
    match choice.device {
        Device::Cpu => on_cpu(choice.precision, task),
        Device::Cuda => on_gpu(open(choice)?, choice, task),
        // Double precision is the CPU's: nothing to look for.
        Device::Auto if choice.precision == Some(Precision::Fp64) => on_cpu(choice.precision, task),
        Device::Auto => match open(choice) {
            Ok(gpu) => on_gpu(gpu, choice, task),
            Err(reason) => {
                crate::note!("no GPU is used: {reason}");
                on_cpu(choice.precision, task)
            }
        },
        #[cfg(feature = "simt")]
        Device::Simt => on_simt(choice, task),
    }
}

fn open(choice: Choice) -> Result<Cuda> {
    let cache = choice.kernel_cache.then(nvrtc::cache_dir).flatten();
    let Choice { graphs, overlap, products, .. } = choice;
    let cublaslt = products != Products::Own;
    Cuda::new(CudaOptions { cache, graphs, overlap, cublaslt, ..CudaOptions::default() })
}

fn on_cpu<T: OnBackend>(precision: Option<Precision>, task: T) -> Result<T::Output> {
    let name = format!("the CPU with {} threads", rayon::current_num_threads());
    let place = Place { name, free_bytes: None };
    in_pool(|| match precision.unwrap_or(Precision::Fp32) {
        Precision::Fp32 => task.run(Cpu::<f32>::new(), &place),
        Precision::Bf16 => {
            let cpu = Cpu::<bf16>::new();
            let name = format!("{}, {}", place.name, cpu.description());
            task.run(cpu, &Place { name, ..place })
        }
        Precision::Fp64 => task.run(Cpu::<f64>::new(), &place),
        Precision::Tf32 => Err(Error::config("the CPU computes in fp32, bf16 or fp64, not in tf32")),
    })
}

fn on_gpu<T: OnBackend>(gpu: Cuda, choice: Choice, task: T) -> Result<T::Output> {
    let place = Place { name: gpu.description(), free_bytes: Some(gpu.memory()?.0 as u64) };
    in_precision(gpu, choice, &place, task)
}

#[cfg(feature = "simt")]
fn on_simt<T: OnBackend>(choice: Choice, task: T) -> Result<T::Output> {
    use crate::backend::gpu::driver::simt::{Order, Simt};
    let device = Simt::new(Order::Ascending);
    let place = Place { name: device.description(), free_bytes: None };
    in_precision(device, choice, &place, task)
}

fn in_precision<D: Driver, T: OnBackend>(
    device: D,
    choice: Choice,
    place: &Place,
    task: T,
) -> Result<T::Output> {
    let products = choice.products;
    match choice.precision.unwrap_or(Precision::Bf16) {
        Precision::Bf16 => task.run(Gpu::<D, bf16>::new(device).with_products(products), place),
        Precision::Fp32 => task.run(Gpu::<D, f32>::new(device).with_products(products), place),
        Precision::Tf32 => task.run(Gpu::<D, f32>::new(device).with_tf32().with_products(products), place),
        Precision::Fp64 => {
            Err(Error::config("a GPU computes in bf16, fp32 or tf32; fp64 is for --device cpu"))
        }
    }
}
