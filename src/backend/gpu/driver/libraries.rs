//! NVIDIA's libraries, found at run time: nothing of them is needed to build or to start this program.
//!
//! Looked for in this order: the folder in `ELEKTRON_CUDA_LIBS`; what the system's loader knows; the toolkit's folders; the wheels
//! that pip installs (`nvidia-cuda-nvrtc`, `nvidia-cublas`, which PyTorch brings too). A library found in a folder is loaded by its path,
//! after which the loader gives it to whoever asks for its name, as `cudarc` does.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use libloading::os::unix::{Library as Loaded, RTLD_GLOBAL, RTLD_NOW};

use crate::{Error, Result};

/// One of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// The driver's own: `libcuda`.
    Driver,
    /// The compiler of kernels: `libnvrtc`.
    Nvrtc,
    /// Matrix products: `libcublasLt`.
    CublasLt,
}

/// The folder that goes before all others.
pub const FOLDER_VARIABLE: &str = "ELEKTRON_CUDA_LIBS";

impl Library {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Driver, Self::Nvrtc, Self::CublasLt];

    /// Its file name without endings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "libcuda",
            Self::Nvrtc => "libnvrtc",
            Self::CublasLt => "libcublasLt",
        }
    }

    /// File names, newest first.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &["libcuda.so.1", "libcuda.so"],
            Self::Nvrtc => &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
            Self::CublasLt => &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
        }
    }

    /// How to get it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Driver => {
                "it comes with NVIDIA's driver: install that (version 525 or newer) on a machine with an NVIDIA GPU"
            }
            Self::Nvrtc => {
                "python3 -m pip install nvidia-cuda-nvrtc (version 13 for drivers from 580 on, nvidia-cuda-nvrtc-cu12 before), or \
                 install the CUDA toolkit, or name its folder in ELEKTRON_CUDA_LIBS"
            }
            Self::CublasLt => {
                "python3 -m pip install nvidia-cublas (nvidia-cublas-cu12 for drivers before 580), or install the CUDA toolkit, or name its \
                 folder in ELEKTRON_CUDA_LIBS; without it products run on slower kernels of this program"
            }
        }
    }

    /// Loads it, once; the path it came from (or its name, where the system's loader knew it).
    pub fn load(self) -> Result<PathBuf> {
        static FOUND: Mutex<[Option<PathBuf>; 3]> = Mutex::new([None, None, None]);
        let mut found = FOUND.lock().map_err(|_| Error::device("loading a library was interrupted"))?;
        let place = &mut found[self as usize];
        if let Some(path) = place {
            return Ok(path.clone());
        }
        let path = self.find()?;
        *place = Some(path.clone());
        Ok(path)
    }

    fn find(self) -> Result<PathBuf> {
        let own = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from).into_iter().collect::<Vec<_>>();
        if let Some(path) = self.in_folders(&own) {
            return Ok(path);
        }
        for file in self.files() {
            if open(Path::new(file)) {
                return Ok(PathBuf::from(file));
            }
        }
        let folders = if self == Self::Driver { Vec::new() } else { usual_folders() };
        self.in_folders(&folders).ok_or_else(|| {
            let places: Vec<String> =
                own.iter().chain(&folders).map(|folder| folder.display().to_string()).collect();
            let places =
                if places.is_empty() { String::new() } else { format!(", nor in {}", places.join(", ")) };
            Error::device(format!(
                "{} was not found: the system's loader knows none of {}{places}; {}",
                self.name(),
                self.files().join(", "),
                self.remedy()
            ))
        })
    }

    fn in_folders(self, folders: &[PathBuf]) -> Option<PathBuf> {
        for folder in folders {
            for file in self.files() {
                let path = folder.join(file);
                if path.is_file() {
                    self.load_companions(folder);
                    if open(&path) {
                        return Some(path);
                    }
                }
            }
        }
        None
    }

    /// NVRTC asks the loader for its built-in functions by name: they must be there before.
    fn load_companions(self, folder: &Path) {
        let pattern = match self {
            Self::Nvrtc => "libnvrtc-builtins.so*",
            _ => return,
        };
        for path in glob::glob(&folder.join(pattern).to_string_lossy()).into_iter().flatten().flatten() {
            open(&path);
        }
    }
}

/// Loads a library for the rest of the process.
fn open(path: &Path) -> bool {
    // SAFETY: loading runs the library's initialisers; these are NVIDIA's libraries, which are made for that.
    match unsafe { Loaded::open(Some(path), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            std::mem::forget(library);
            true
        }
        Err(_) => false,
    }
}

/// Folders of the toolkit and of wheels, those that exist.
fn usual_folders() -> Vec<PathBuf> {
    let mut patterns = Vec::new();
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        if let Ok(home) = std::env::var(variable) {
            patterns.push(format!("{home}/lib64"));
        }
    }
    patterns.push("/usr/local/cuda*/lib64".to_owned());
    let mut roots: Vec<String> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|variable| std::env::var(variable).ok()).collect();
    roots.extend(std::env::var("HOME").ok().map(|home| format!("{home}/.local")));
    roots.extend(["/usr/local".to_owned(), "/usr".to_owned()]);
    for root in roots {
        for packages in ["site-packages", "dist-packages"] {
            patterns.push(format!("{root}/lib/python3*/{packages}/nvidia/*/lib"));
        }
    }
    if let Ok(path) = std::env::var("PYTHONPATH") {
        patterns.extend(
            path.split(':').filter(|part| !part.is_empty()).map(|part| format!("{part}/nvidia/*/lib")),
        );
    }
    let folders = patterns.iter().flat_map(|pattern| glob::glob(pattern).into_iter().flatten().flatten());
    folders.filter(|folder| folder.is_dir()).collect()
}
