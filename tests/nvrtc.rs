//! Every kernel compiled for every architecture, without a GPU: no error, no spill, no stack frame.

use elektron::backend::gpu::driver::Precision;
use elektron::backend::gpu::driver::libraries::Library;
use elektron::backend::gpu::driver::nvrtc::{ARCHITECTURES, SOURCES, clear_cache, compile, compile_cached};
use rayon::prelude::*;

/// Whether libnvrtc is there. Without it the test says so and passes, unless `ELEKTRON_REQUIRE_NVRTC` is set.
fn nvrtc() -> bool {
    match Library::Nvrtc.load() {
        Ok(_) => true,
        Err(e) if std::env::var_os("ELEKTRON_REQUIRE_NVRTC").is_some() => panic!("{e}"),
        Err(e) => {
            eprintln!("NOT TESTED: no kernel was compiled for a GPU. {e}");
            false
        }
    }
}

#[test]
fn every_kernel_compiles_without_spills() {
    if !nvrtc() {
        return;
    }
    let jobs: Vec<_> = ARCHITECTURES
        .iter()
        .flat_map(|&architecture| {
            [Precision::Bf16, Precision::Fp32].into_iter().flat_map(move |precision| {
                SOURCES.iter().map(move |&(file, _)| (architecture, precision, file))
            })
        })
        .collect();
    let problems: Vec<String> = jobs
        .par_iter()
        .flat_map(|&(architecture, precision, file)| {
            let compiled = compile(file, architecture, precision).unwrap();
            assert!(compiled.image.starts_with(b"\x7fELF"), "{file} for {architecture}: no machine code");
            assert!(
                !compiled.kernels.is_empty(),
                "{file} for {architecture}: the assembler reports no kernel"
            );
            compiled
                .kernels
                .into_iter()
                .filter(|k| k.spill_bytes + k.stack_bytes > 0 || k.registers == 0)
                .map(|k| format!("{architecture} {precision:?} {k:?}"))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(problems.is_empty(), "kernels that spill:\n{}", problems.join("\n"));
}

#[test]
fn errors_name_the_architecture() {
    if nvrtc() {
        let error = compile("optim", "sm_1", Precision::Bf16).unwrap_err().to_string();
        assert!(error.contains("optim.cu") && error.contains("sm_1"), "{error}");
    }
}

#[test]
fn compiled_kernels_are_kept() {
    if !nvrtc() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let run = || compile_cached("optim", "sm_80", Precision::Bf16, Some(cache.path())).unwrap();
    // Two at once write the same file.
    let (first, second) = rayon::join(run, run);
    assert_eq!(first.image, second.image);
    assert!(run().kernels.is_empty(), "the third comes from the cache");
    let path = cache.path().read_dir().unwrap().next().unwrap().unwrap().path();
    std::fs::write(&path, b"damaged").unwrap();
    assert_eq!(run().image, first.image, "damage is mended");
    assert_eq!(clear_cache(cache.path()).unwrap(), 1);
    assert!(!run().kernels.is_empty());
}
