//! Tells the program which commit it was built from, for `elektron --version` and run records.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=.git/HEAD");
    let described = Command::new("git").args(["rev-parse", "--short=9", "HEAD"]).output();
    // A source archive has no git: the version number alone has to do there.
    let commit = described.ok().filter(|out| out.status.success()).map(|out| {
        let id = String::from_utf8_lossy(&out.stdout);
        format!(" ({})", id.trim())
    });
    println!("cargo:rustc-env=ELEKTRON_VERSION={}{}", env!("CARGO_PKG_VERSION"), commit.unwrap_or_default());
}
