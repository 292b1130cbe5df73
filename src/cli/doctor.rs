//! `elektron doctor`: what this machine has for GPU training, what is missing, and how to get it.

use clap::Args;
use rayon::prelude::*;
use serde::Serialize;

use super::print;
use crate::backend::gpu::driver::Precision;
use crate::backend::gpu::driver::cuda::{Cuda, CudaOptions, DeviceInfo, devices, driver_version};
use crate::backend::gpu::driver::libraries::Library;
use crate::backend::gpu::driver::nvrtc::{self, KernelReport};
use crate::backend::selftest::{SelfTest, self_test};
use crate::{Error, Result};

#[derive(Args)]
#[command(after_help = "Compiling needs libnvrtc and no GPU.
Examples:
  elektron doctor
  python3 -m pip install nvidia-cuda-nvrtc
  elektron doctor --arch sm_80,sm_90a --kernels")]
pub(super) struct Arguments {
    /// Architectures to compile for [default: the device's; without one, sm_90a]
    #[arg(long, value_delimiter = ',', value_name = "SM")]
    arch: Vec<String>,
    /// Show every kernel, not only those that spill
    #[arg(long)]
    kernels: bool,
    /// Delete the compiled kernels that are kept on disk
    #[arg(long)]
    clear_kernel_cache: bool,
    /// For machines
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct LibraryReport {
    name: &'static str,
    found: Option<String>,
    version: Option<String>,
    problem: Option<String>,
}

#[derive(Serialize)]
struct Compilation {
    architecture: String,
    precision: &'static str,
    seconds: f64,
    kernels: Vec<KernelReport>,
    problem: Option<String>,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    libraries: Vec<LibraryReport>,
    devices: Vec<DeviceInfo>,
    device_problem: Option<String>,
    kernel_cache: Option<String>,
    compilations: Vec<Compilation>,
    self_tests: Vec<SelfTest>,
    self_test_problem: Option<String>,
    /// Which GELU cuBLASLt's epilogue computes.
    cublaslt_gelu: Option<&'static str>,
}

pub(super) fn run(a: &Arguments) -> Result<()> {
    if a.clear_kernel_cache {
        let Some(cache) = nvrtc::cache_dir() else {
            return Err(Error::device("there is no cache folder: neither ELEKTRON_CACHE nor HOME is set"));
        };
        let count = nvrtc::clear_cache(&cache)?;
        return print(&format!("deleted {count} compiled kernels in {}", cache.display()));
    }
    let report = examine(a);
    let text = match a.json {
        true => serde_json::to_string_pretty(&report).map_err(|e| Error::config(e.to_string()))?,
        false => describe(&report, a.kernels),
    };
    match print(&text) {
        // The exit code still reports the result.
        Ok(()) | Err(Error::OutputClosed) => {}
        Err(error) => return Err(error),
    }
    let broken = report.compilations.iter().any(|c| c.problem.is_some())
        || report.self_tests.iter().any(|test| !test.passed)
        || report.self_test_problem.is_some();
    if broken { Err(Error::device("the kernels do not work here: see above")) } else { Ok(()) }
}

fn examine(a: &Arguments) -> Report {
    let libraries = Library::ALL.map(library).into();
    let (devices, device_problem) = match devices() {
        Ok(devices) => (devices, None),
        Err(e) => (Vec::new(), Some(e.to_string())),
    };
    let architectures = match (&a.arch[..], devices.first()) {
        ([], Some(device)) => vec![device.architecture()],
        ([], None) => vec!["sm_90a".to_owned()],
        (named, _) => named.to_vec(),
    };
    let compilations = match Library::Nvrtc.load() {
        Ok(_) => compile_all(&architectures),
        Err(_) => Vec::new(),
    };
    let (self_tests, self_test_problem) = match devices.is_empty() {
        true => (Vec::new(), None),
        false => match on_device() {
            Ok(tests) => (tests, None),
            Err(e) => (Vec::new(), Some(e.to_string())),
        },
    };
    let cublaslt_gelu = match devices.is_empty() {
        true => None,
        false => Cuda::new(CudaOptions::default()).and_then(|gpu| gpu.cublaslt_gelu()).unwrap_or(None),
    };
    Report {
        version: env!("ELEKTRON_VERSION"),
        libraries,
        devices,
        device_problem,
        kernel_cache: nvrtc::cache_dir().map(|path| path.display().to_string()),
        compilations,
        self_tests,
        self_test_problem,
        cublaslt_gelu,
    }
}

fn library(library: Library) -> LibraryReport {
    let (found, problem) = match library.load() {
        Ok(path) => (Some(path.display().to_string()), None),
        Err(e) => (None, Some(e.to_string())),
    };
    let pair = |(major, minor): (i32, i32)| format!("{major}.{minor}");
    let version = match library {
        _ if found.is_none() => None,
        Library::Driver => driver_version().ok().map(pair),
        Library::Nvrtc => nvrtc::version().ok().map(pair),
        Library::CublasLt => crate::backend::gpu::driver::cublaslt::version().ok(),
    };
    LibraryReport { name: library.name(), found, version, problem }
}

fn compile_all(architectures: &[String]) -> Vec<Compilation> {
    let jobs: Vec<(String, Precision, &str)> = architectures
        .iter()
        .flat_map(|architecture| {
            [Precision::Bf16, Precision::Fp32].into_iter().flat_map(move |precision| {
                nvrtc::SOURCES.iter().map(move |(file, _)| (architecture.clone(), precision, *file))
            })
        })
        .collect();
    jobs.into_par_iter()
        .map(|(architecture, precision, file)| {
            let precision_name = precision.kernels();
            match nvrtc::compile(file, &architecture, precision) {
                Ok(c) => Compilation {
                    architecture,
                    precision: precision_name,
                    seconds: c.seconds,
                    kernels: c.kernels,
                    problem: None,
                },
                Err(e) => Compilation {
                    architecture,
                    precision: precision_name,
                    seconds: 0.0,
                    kernels: Vec::new(),
                    problem: Some(e.to_string()),
                },
            }
        })
        .collect()
}

/// Every op on the first device against the CPU.
fn on_device() -> Result<Vec<SelfTest>> {
    let mut tests = self_test::<_, half::bf16>(Cuda::new(CudaOptions::default())?)?;
    tests.extend(self_test::<_, f32>(Cuda::new(CudaOptions::default())?)?);
    Ok(tests)
}

fn describe(r: &Report, every_kernel: bool) -> String {
    let mut text = format!("elektron {}\n\nlibraries\n", r.version);
    for library in &r.libraries {
        let line = match (&library.found, &library.problem) {
            (Some(path), _) => {
                format!("{} ({path})", library.version.as_deref().unwrap_or("version unknown"))
            }
            (None, problem) => format!("missing: {}", problem.as_deref().unwrap_or_default()),
        };
        text += &format!("  {:<12} {line}\n", library.name);
    }
    text += "\ndevices\n";
    for device in &r.devices {
        text += &format!(
            "  {}: {}, compute capability {}.{} ({}), {} MiB, {} multiprocessors\n",
            device.ordinal,
            device.name,
            device.capability.0,
            device.capability.1,
            device.architecture(),
            device.memory_bytes >> 20,
            device.multiprocessors
        );
    }
    if r.devices.is_empty() {
        let reason = r.device_problem.as_deref().unwrap_or("the driver finds no GPU");
        text += &format!("  none: {reason}\n  training runs on the CPU\n");
    }
    if let Some(kind) = r.cublaslt_gelu {
        text += &format!("  cuBLASLt's own GELU is the {kind} form\n");
    }
    text += &format!("\nkernels, kept in {}\n", r.kernel_cache.as_deref().unwrap_or("no folder"));
    if r.compilations.is_empty() {
        text += "  not compiled: libnvrtc is missing\n";
    }
    text += &compiled(r, every_kernel);
    if !r.self_tests.is_empty() || r.self_test_problem.is_some() {
        text += "\nself-test on the device against the CPU\n";
        for test in &r.self_tests {
            let verdict = if test.passed { "right" } else { "WRONG" };
            text += &format!("  {:<26} {} {verdict} (error {:.1e})\n", test.op, test.precision, test.error);
        }
        if let Some(problem) = &r.self_test_problem {
            text += &format!("  failed: {problem}\n");
        }
    }
    text.trim_end().to_owned()
}

fn compiled(r: &Report, every_kernel: bool) -> String {
    let mut text = String::new();
    let mut groups: Vec<(&str, &str)> =
        r.compilations.iter().map(|c| (c.architecture.as_str(), c.precision)).collect();
    groups.dedup();
    for (architecture, precision) in groups {
        let of_group = || {
            r.compilations.iter().filter(move |c| c.architecture == architecture && c.precision == precision)
        };
        let kernels: Vec<&KernelReport> = of_group().flat_map(|c| &c.kernels).collect();
        let spilling = kernels.iter().filter(|k| k.spill_bytes + k.stack_bytes > 0).count();
        text += &format!(
            "  {architecture} {precision}: {} kernels in {:.1} s, at most {} registers, {spilling} spill\n",
            kernels.len(),
            of_group().map(|c| c.seconds).sum::<f64>(),
            kernels.iter().map(|k| k.registers).max().unwrap_or_default()
        );
        for kernel in kernels.iter().filter(|k| every_kernel || k.spill_bytes + k.stack_bytes > 0) {
            text += &format!(
                "    {:<28} {:>3} registers, {} bytes of stack, {} spilled\n",
                kernel.name, kernel.registers, kernel.stack_bytes, kernel.spill_bytes
            );
        }
        for problem in of_group().filter_map(|c| c.problem.as_ref()) {
            text += &format!("    {problem}\n");
        }
    }
    text
}
