//! What several test modules need: files of this repository, tensors, comparisons.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use elektron::model::hf::HostTensor;
use safetensors::{Dtype, SafeTensors};

/// A file of this repository; the tests may have been carried to another machine with the few files they need.
pub(crate) fn repository(path: &str) -> PathBuf {
    let root = std::env::var_os("ELEKTRON_ROOT").map(PathBuf::from);
    root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()).join(path)
}

pub(crate) fn golden(path: &str) -> PathBuf {
    repository("tests/golden").join(path)
}

pub(crate) struct Tensors {
    pub(crate) floats: BTreeMap<String, HostTensor>,
    pub(crate) ints: BTreeMap<String, Vec<i64>>,
}

/// Every F32 and I64 tensor of a safetensors file.
pub(crate) fn read_tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (mut floats, mut ints) = (BTreeMap::new(), BTreeMap::new());
    for (name, view) in file.tensors() {
        match view.dtype() {
            Dtype::F32 => {
                let data =
                    view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
                floats.insert(name, HostTensor { shape: view.shape().to_vec(), data });
            }
            Dtype::I64 => {
                let data =
                    view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
                ints.insert(name, data);
            }
            other => panic!("{name}: unexpected {other:?}"),
        }
    }
    Tensors { floats, ints }
}

/// ‖got - want‖ / ‖want‖, after making sure that everything is finite.
pub(crate) fn relative_l2(name: &str, got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "{name}: lengths");
    assert!(got.iter().all(|x| x.is_finite()), "{name}: not finite");
    let square = |x: f64| x * x;
    let difference: f64 = got.iter().zip(want).map(|(a, b)| square(a - b)).sum();
    let norm: f64 = want.iter().map(|&b| square(b)).sum();
    (difference / norm.max(1e-60)).sqrt()
}

/// The largest absolute value, or 0 if there are none. NaN counts as the largest of all, where `f64::max`
/// would ignore it.
pub(crate) fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(f64::abs).max_by(f64::total_cmp).unwrap_or(0.0)
}

#[test]
fn not_a_number_is_the_largest() {
    assert_eq!(largest([1.0, -3.0, 2.0]), 3.0);
    assert_eq!(largest([]), 0.0);
    for at in 0..3 {
        for nan in [f64::NAN, -f64::NAN] {
            let mut values = [1.0, f64::INFINITY, 2.0];
            values[at] = nan;
            assert!(largest(values).is_nan(), "{values:?}");
        }
    }
}

/// Reports that the running test, or a part of it, is skipped. It goes to standard error itself, because
/// the test harness shows nothing else of a test that passes.
pub(crate) fn skipped(reason: &str) {
    let thread = std::thread::current();
    say(&format!("SKIPPED {}: {reason}", thread.name().unwrap_or("a test")));
}

/// Writes a line to standard error, past the test harness, which captures what `eprintln!` writes.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

pub(crate) fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}
