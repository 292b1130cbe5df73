//! Every kernel compiled for every architecture, without a GPU: no error, no spill, no stack frame, the instructions that it shall be made of,
//! and the same registers, shared memory and occupancy as in `benches/records/kernels.md`.

use elektron::backend::gpu::driver::Precision;
use elektron::backend::gpu::driver::libraries::Library;
use elektron::backend::gpu::driver::nvrtc::{ARCHITECTURES, clear_cache, compile, compile_cached, version};

use crate::support::{repository, say, skipped};

mod expected;
mod launches;
mod occupancy;
mod table;

const TABLE: &str = "benches/records/kernels.md";
const UPDATE: &str = "ELEKTRON_UPDATE_TABLE=1 cargo test --test suite -- nvrtc::";

/// Whether libnvrtc was found. Without it the test reports on standard error that it is skipped and passes,
/// unless `ELEKTRON_REQUIRE_NVRTC` is set.
fn nvrtc() -> bool {
    match Library::Nvrtc.load() {
        Ok(_) => true,
        Err(e) if std::env::var_os("ELEKTRON_REQUIRE_NVRTC").is_some() => panic!("{e}"),
        Err(e) => {
            skipped(&format!("no kernel was compiled for a GPU. {e}"));
            false
        }
    }
}

#[test]
fn every_kernel_compiles_without_spills() {
    if !nvrtc() {
        return;
    }
    let mut problems = Vec::new();
    for row in table::rows() {
        for (architecture, k) in ARCHITECTURES.iter().zip(&row.reports) {
            if k.spill_bytes + k.stack_bytes > 0 || k.registers == 0 || k.serialized {
                problems.push(format!("{architecture} {}: {k:?}", row.precision));
            }
        }
    }
    assert!(
        problems.is_empty(),
        "kernels that spill, or whose products of warpgroups are serialized:\n{}",
        problems.join("\n")
    );
}

#[test]
fn every_kernel_is_made_of_what_it_should() {
    if !nvrtc() {
        return;
    }
    let rows = table::rows();
    let mut problems: Vec<String> = rows.iter().flat_map(expected::problems).collect();
    for row in rows.iter().filter(|row| !row.is_launched()) {
        problems.push(format!(
            "`{}` ({}) is launched by no case of src/backend/selftest nor of tests/nvrtc/launches.rs: add one",
            row.kernel, row.precision
        ));
    }
    for pattern in expected::idle(rows) {
        problems.push(format!("no kernel is called `{pattern}`: take it out of tests/nvrtc/expected.rs"));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn the_table_of_kernels_is_up_to_date() {
    let path = repository(TABLE);
    if !nvrtc() {
        return;
    }
    let (rows, version) = (table::rows(), version().unwrap());
    let new = table::render(rows, version);
    if std::env::var_os("ELEKTRON_UPDATE_TABLE").is_some() {
        std::fs::write(&path, new).unwrap();
        say(&format!("{} was rewritten", path.display()));
        return;
    }
    let old = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; make it by\n  {UPDATE}", path.display()));
    let same_compiler = old.contains(&format!("NVRTC {}.{};", version.0, version.1));
    if !same_compiler {
        skipped(&format!(
            "registers and occupancy, as {TABLE} was made by another NVRTC than {}.{}",
            version.0, version.1
        ));
    }
    let differences = table::differences(&old, &new, same_compiler);
    assert!(
        differences.is_empty(),
        "{TABLE} differs from the kernels as they are:\n  {}\nIf that is meant, make it anew by\n  {UPDATE}",
        differences.join("\n  ")
    );
    assert!(
        !same_compiler || old == new,
        "the text around the rows of {TABLE} is old; make it anew by\n  {UPDATE}"
    );
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
