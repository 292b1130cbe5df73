//! Three things that the compiler alone cannot do: tell the program which commit it was built from; make every kernel one
//! self-contained text for NVRTC; with feature `simt`, build the kernels for the host.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=kernels");
    version();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let kernels = kernels();
    sources(&kernels, &out);
    #[cfg(feature = "simt")]
    simt::build(&kernels, &out);
}

fn version() {
    let described = Command::new("git").args(["rev-parse", "--short=9", "HEAD"]).output();
    // A source archive has no git: the version number alone has to do there.
    let commit = described.ok().filter(|out| out.status.success()).map(|out| {
        let id = String::from_utf8_lossy(&out.stdout);
        format!(" ({})", id.trim())
    });
    println!("cargo:rustc-env=ELEKTRON_VERSION={}{}", env!("CARGO_PKG_VERSION"), commit.unwrap_or_default());
}

/// The names of `kernels/*.cu`, sorted.
fn kernels() -> Vec<String> {
    let entries = fs::read_dir("kernels").expect("the folder `kernels` lies beside build.rs");
    let files = entries.map(|entry| entry.expect("a readable folder").path());
    let mut names: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .map(|path| path.file_stem().expect("a file has a name").to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// `kernel_sources.rs`: name and text of every kernel file, includes expanded, `#line` telling where each came from.
fn sources(kernels: &[String], out: &Path) {
    let mut list = String::from(
        "/// Name and self-contained text of every file of kernels.\npub const SOURCES: &[(&str, &str)] = &[\n",
    );
    for name in kernels {
        let (mut text, mut seen) = (String::new(), BTreeSet::new());
        expand(Path::new(&format!("kernels/{name}.cu")), &mut seen, &mut text);
        let path = out.join(format!("{name}.cu"));
        fs::write(&path, text).expect("OUT_DIR is writable");
        writeln!(list, "    ({name:?}, include_str!({:?})),", path.display().to_string()).expect("text");
    }
    list += "];\n";
    fs::write(out.join("kernel_sources.rs"), list).expect("OUT_DIR is writable");
}

fn expand(path: &Path, seen: &mut BTreeSet<PathBuf>, text: &mut String) {
    let path = fs::canonicalize(path).unwrap_or_else(|e| panic!("kernel include {}: {e}", path.display()));
    if !seen.insert(path.clone()) {
        return;
    }
    let shown = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
    writeln!(text, "#line 1 \"{shown}\"").expect("text");
    let content = fs::read_to_string(&path).expect("a kernel is text");
    for (number, line) in content.lines().enumerate() {
        let include = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
        match include {
            // The host's words for CUDA's; the device has its own.
            Some(file) if file.contains("host/") => {}
            Some(file) => {
                expand(&path.parent().expect("a file lies in a folder").join(file), seen, text);
                writeln!(text, "#line {} \"{shown}\"", number + 2).expect("text");
            }
            None if line == "#pragma once" => writeln!(text).expect("text"),
            None => writeln!(text, "{line}").expect("text"),
        }
    }
}

#[cfg(feature = "simt")]
mod simt {
    use super::*;

    /// Every kernel file twice, by working type, into one library, and a list of their tables for Rust.
    pub(super) fn build(kernels: &[String], out: &Path) {
        let mut compiler = cc::Build::new();
        compiler.cpp(true).std("c++17").opt_level(2).flag_if_supported("-Wno-unknown-pragmas");
        // The same sums as the device: products are contracted into additions there too, but by its own rules.
        compiler.flag_if_supported("-ffp-contract=off").warnings(false).file("kernels/host/simt.cpp");
        let (mut declarations, mut list) = (String::new(), String::new());
        let planted = String::from("host/planted");
        for kernel in kernels.iter().chain([&planted]) {
            for precision in ["bf16", "fp32"] {
                let stem = kernel.rsplit('/').next().expect("a name");
                let table = format!("simt_{stem}_{precision}");
                let source = out.join(format!("{table}.cpp"));
                let file = fs::canonicalize(format!("kernels/{kernel}.cu")).expect("the kernel is there");
                let define = if precision == "fp32" { "#define WORKING_FP32\n" } else { "" };
                let text = format!(
                    "#define ELEKTRON_HOST\n{define}#define SIMT_TABLE {table}\n#define SIMT_COUNT {table}_count\n#include {:?}\n",
                    file.display().to_string()
                );
                if fs::read_to_string(&source).ok().as_deref() != Some(&text) {
                    fs::write(&source, text).expect("OUT_DIR is writable");
                }
                compiler.file(&source);
                writeln!(declarations, "    static {table}: Entry;\n    static {table}_count: u32;")
                    .expect("text");
                writeln!(
                    list,
                    "        Table {{ name: \"{stem}_{precision}\", entries: &raw const {table}, \
                     // SAFETY: a constant of the C++ side.\n            count: unsafe {{ {table}_count }} }},"
                )
                .expect("text");
            }
        }
        let text = format!(
            "#[allow(non_upper_case_globals)]\nunsafe extern \"C\" {{\n{declarations}}}\n\n\
             fn tables() -> Vec<Table> {{\n    vec![\n{list}    ]\n}}\n"
        );
        fs::write(out.join("simt_tables.rs"), text).expect("OUT_DIR is writable");
        compiler.compile("elektron_simt");
    }
}
