//! Kernels compiled for the device's exact architecture, and kept on disk.
//!
//! The key of the cache covers the text with all that it includes, the options, the architecture and the compiler's version. A file is
//! written under a temporary name and renamed, so two processes that race write the same file one after the other.

use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use super::Precision;
use super::libraries::Library;
use crate::fsutil::{create_dir, write_atomic};
use crate::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/kernel_sources.rs"));

/// Architectures that are checked wherever this is built: Ampere, Ada, Hopper, Blackwell.
pub const ARCHITECTURES: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120"];

/// A file's machine code and what the assembler says of it.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The CUBIN.
    pub image: Vec<u8>,
    /// The virtual instructions that the assembler made it from; empty where the code came from the cache.
    pub ptx: String,
    /// One entry a kernel; empty where the code came from the cache.
    pub kernels: Vec<KernelReport>,
    /// Seconds it took.
    pub seconds: f64,
}

/// What a kernel takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct KernelReport {
    /// Its file, without the ending.
    pub file: String,
    /// Its name.
    pub name: String,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes of shared memory that it declares itself; what its launcher asks for comes on top.
    pub static_shared_bytes: u32,
    /// Bytes of stack a thread: local memory.
    pub stack_bytes: u32,
    /// Bytes of spilled registers, stores and loads.
    pub spill_bytes: u32,
    /// Whether the assembler orders products of warpgroups one after the other, for it cannot tell that their registers are left alone.
    pub serialized: bool,
}

/// The compiler's version, (13, 0).
pub fn version() -> Result<(i32, i32)> {
    Library::Nvrtc.load()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is loaded; both pointers are to integers.
    let status = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    status.result().map_err(|e| Error::device(format!("libnvrtc does not tell its version: {e}")))?;
    Ok((major, minor))
}

fn options(architecture: &str, precision: Precision) -> Vec<String> {
    let mut options = vec![
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".to_owned(),
        "-default-device".to_owned(),
        "--ptxas-options=-v".to_owned(),
    ];
    if precision.kernels() == "fp32" {
        options.push("-DWORKING_FP32".to_owned());
    }
    options
}

fn source(file: &str) -> Result<&'static str> {
    SOURCES
        .iter()
        .find(|(name, _)| *name == file)
        .map(|(_, text)| *text)
        .ok_or_else(|| Error::device(format!("there is no kernel file {file}")))
}

/// Compiles `kernels/<file>.cu`.
pub fn compile(file: &str, architecture: &str, precision: Precision) -> Result<Compiled> {
    Library::Nvrtc.load()?;
    let start = Instant::now();
    let text = |s: &str| CString::new(s).map_err(|_| Error::device(format!("{file}.cu holds a zero byte")));
    let (code, name) = (text(source(file)?)?, text(&format!("{file}.cu"))?);
    let failed = |e: result::NvrtcError| Error::device(format!("libnvrtc fails on {file}.cu: {e}"));
    let program = result::create_program(&code, Some(&name)).map_err(failed)?;
    let built = build(program, file, architecture, precision);
    // SAFETY: made above and not yet destroyed.
    unsafe { result::destroy_program(program) }.map_err(failed)?;
    let (image, ptx, log) = built?;
    Ok(Compiled { image, ptx, kernels: reports(file, &log), seconds: start.elapsed().as_secs_f64() })
}

/// Machine code, virtual instructions and the assembler's words.
fn build(
    program: sys::nvrtcProgram,
    file: &str,
    architecture: &str,
    precision: Precision,
) -> Result<(Vec<u8>, String, String)> {
    // SAFETY: the caller's program is alive; buffers have the sizes that the library asked for.
    unsafe {
        let outcome = result::compile_program(program, &options(architecture, precision));
        let log = as_text(&result::get_program_log(program).unwrap_or_default());
        outcome.map_err(|e| {
            Error::device(format!("{file}.cu does not compile for {architecture}: {e}\n{}", log.trim()))
        })?;
        let failed = |e| Error::device(format!("libnvrtc made no code of {file}.cu for {architecture}: {e}"));
        let mut size = 0;
        sys::nvrtcGetCUBINSize(program, &mut size).result().map_err(failed)?;
        let mut image = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result().map_err(failed)?;
        let ptx = as_text(&result::get_ptx(program).map_err(failed)?);
        Ok((image, ptx, log))
    }
}

fn as_text(bytes: &[c_char]) -> String {
    let bytes: &[u8] = bytemuck::cast_slice(bytes);
    CStr::from_bytes_until_nul(bytes)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_else(|_| String::from_utf8_lossy(bytes).into_owned())
}

/// Reads the assembler's lines: the entry's name, then its stack and spills, then its registers.
fn reports(file: &str, log: &str) -> Vec<KernelReport> {
    let number_before = |line: &str, words: &str| -> u32 {
        let before = line.split(words).next().unwrap_or_default();
        before.split_whitespace().next_back().and_then(|n| n.parse().ok()).unwrap_or_default()
    };
    let mut found: Vec<KernelReport> = Vec::new();
    let serialized: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("wgmma.mma_async instructions are serialized"))
        .filter_map(|line| line.rsplit('\'').nth(1))
        .collect();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            let serialized = serialized.contains(&name.as_str());
            found.push(KernelReport { file: file.to_owned(), name, serialized, ..KernelReport::default() });
        } else if let Some(report) = found.last_mut() {
            if line.contains("bytes stack frame") {
                report.stack_bytes = number_before(line, " bytes stack frame");
                report.spill_bytes =
                    number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
            } else if line.contains("Used ") && line.contains(" registers") {
                report.registers = number_before(line, " registers");
                report.static_shared_bytes = number_before(line, " bytes smem");
            }
        }
    }
    found
}

/// Where compiled kernels are kept: `ELEKTRON_CACHE`, or the user's cache folder.
pub fn cache_dir() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("ELEKTRON_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("elektron")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/elektron")))
}

/// Compiles, or takes what was compiled before from `cache`.
pub fn compile_cached(
    file: &str,
    architecture: &str,
    precision: Precision,
    cache: Option<&Path>,
) -> Result<Compiled> {
    let Some(cache) = cache else { return compile(file, architecture, precision) };
    let version = version()?;
    let mut hash = Sha256::new();
    hash.update(source(file)?);
    hash.update(format!("{version:?} {:?}", options(architecture, precision)));
    let key: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let path = cache.join(format!("{file}-{architecture}-{key}.cubin"));
    let start = Instant::now();
    // Machine code is an ELF file: anything else there is damage, and is made anew.
    if let Ok(image) = fs::read(&path)
        && image.starts_with(b"\x7fELF")
    {
        let seconds = start.elapsed().as_secs_f64();
        return Ok(Compiled { image, ptx: String::new(), kernels: Vec::new(), seconds });
    }
    let compiled = compile(file, architecture, precision)?;
    // A cache that cannot be written to costs time, not the run.
    let kept = create_dir(cache).and_then(|()| write_atomic(&path, |out| out.write_all(&compiled.image)));
    if let Err(e) = kept {
        crate::note!("warning: compiled kernels are not kept: {e}");
    }
    Ok(compiled)
}

/// Deletes every compiled kernel in `cache`; returns how many.
pub fn clear_cache(cache: &Path) -> Result<usize> {
    let mut count = 0;
    for path in glob::glob(&cache.join("*.cubin").to_string_lossy()).into_iter().flatten().flatten() {
        fs::remove_file(&path).map_err(Error::io("delete", &path))?;
        count += 1;
    }
    Ok(count)
}
