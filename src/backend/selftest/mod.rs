//! Every op on fixed inputs, on any backend: one table of cases for the tests, the benches and `elektron doctor`.
//!
//! The reference is `Cpu<f64>`. The error of a bf16 result may be twice that of the naive computation, which works in single precision and
//! rounds what it stores (after Dao et al., FlashAttention); of an fp32 result, twice that of `Cpu<f32>`; integers are equal.
//! Errors are measured in the 2-norm and in the maximum norm, which shows one wrong element among many.
//! Each element of attention in bf16 has a bound of its own too, the most that rounding can change it by:
//! some of these kernels have no fp32 form, for which the bounds above are narrow.

use half::bf16;
use serde::Serialize;

use super::gpu::Working;
use super::gpu::driver::Driver;
use super::{Backend, Clock, Cpu, Dropout, Float, Gpu, Write};
use crate::Result;
use crate::data::mask::MaskStyle;
use crate::model::config::Activation;
use crate::rng::{Philox, Site};

mod heads;
mod naive;
mod ops;

/// Gradients start at this, so that `+=` shows.
const BEFORE: f64 = 0.25;

/// What a result is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Stored as a working value.
    Working,
    /// fp32 throughout, but computed from working values.
    Exact,
    /// Integers.
    Index,
}

/// A result of an op.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its name.
    pub name: &'static str,
    /// What it is made of.
    pub kind: Kind,
    /// Its elements.
    pub values: Vec<f64>,
}

/// Puts values on a backend and takes them back.
struct Bench<'b, B: Backend> {
    backend: &'b B,
    /// Whether what an op stores between its steps is rounded to bf16: the naive computation.
    naive: bool,
    outputs: Vec<Output>,
}

impl<B: Backend> Bench<'_, B> {
    fn x(&self, values: &[f64]) -> Result<B::Buf<B::X>> {
        let mut buf = self.backend.alloc(values.len())?;
        let values: Vec<B::X> = values.iter().map(|&v| B::X::from_f64(v)).collect();
        self.backend.upload(&values, B::slice_mut(&mut buf, 0..values.len()))?;
        Ok(buf)
    }
    /// Rows of `width` values, `pitch` apart, with NaN between them.
    fn padded(&self, values: &[f64], width: usize, pitch: usize) -> Result<B::Buf<B::X>> {
        let pad = |row: &[f64]| [row, &nan(pitch - width)].concat();
        self.x(&values.chunks(width).flat_map(pad).collect::<Vec<_>>())
    }
    fn take_rows(
        &mut self,
        name: &'static str,
        buf: &B::Buf<B::X>,
        [rows, width, pitch]: [usize; 3],
    ) -> Result<()> {
        let values = self.backend.download(B::slice(buf, 0..rows * pitch))?;
        let rows = values.chunks(pitch).flat_map(|row| &row[..width]);
        self.push(name, Kind::Working, rows.map(|x| x.to_f64()).collect());
        Ok(())
    }
    fn f(&self, values: &[f64]) -> Result<B::Buf<B::F>> {
        let mut buf = self.backend.alloc(values.len())?;
        let values: Vec<B::F> = values.iter().map(|&v| B::F::from_f64(v)).collect();
        self.backend.upload(&values, B::slice_mut(&mut buf, 0..values.len()))?;
        Ok(buf)
    }
    fn u(&self, values: &[u32]) -> Result<B::Buf<u32>> {
        let mut buf = self.backend.alloc(values.len())?;
        self.backend.upload(values, B::slice_mut(&mut buf, 0..values.len()))?;
        Ok(buf)
    }
    /// The same values as bf16 would hold them.
    fn round(&self, buf: &mut B::Buf<B::X>, n: usize) -> Result<()> {
        let values = self.backend.download(B::slice(buf, 0..n))?;
        let values: Vec<B::X> = values.into_iter().map(|v| B::X::from_f64(rounded(v.to_f64()))).collect();
        self.backend.upload(&values, B::slice_mut(buf, 0..n))
    }
    fn push(&mut self, name: &'static str, kind: Kind, values: Vec<f64>) {
        self.outputs.push(Output { name, kind, values });
    }
    fn take_x(&mut self, name: &'static str, buf: &B::Buf<B::X>, n: usize) -> Result<()> {
        let values = self.backend.download(B::slice(buf, 0..n))?;
        self.push(name, Kind::Working, values.into_iter().map(Float::to_f64).collect());
        Ok(())
    }
    fn take_f(&mut self, name: &'static str, buf: &B::Buf<B::F>, n: usize) -> Result<()> {
        let values = self.backend.download(B::slice(buf, 0..n))?;
        self.push(name, Kind::Exact, values.into_iter().map(Float::to_f64).collect());
        Ok(())
    }
    fn take_u(&mut self, name: &'static str, buf: &B::Buf<u32>, n: usize) -> Result<()> {
        let values = self.backend.download(B::slice(buf, 0..n))?;
        self.push(name, Kind::Index, values.into_iter().map(f64::from).collect());
        Ok(())
    }
}

fn rounded(x: f64) -> f64 {
    bf16::from_f32(x as f32).to_f64()
}

/// Fixed numbers in (-1, 1).
fn noise(seed: u64, n: usize) -> Vec<f64> {
    let philox = Philox::new(seed);
    (0..n as u32).map(|i| f64::from(philox.word(i, 0, Site(99), 0)) / 2f64.powi(31) - 1.0).collect()
}

/// Numbers in (-1, 1) that bf16 represents.
fn input(seed: u64, n: usize) -> Vec<f64> {
    noise(seed, n).into_iter().map(rounded).collect()
}

fn nan(n: usize) -> Vec<f64> {
    vec![f64::NAN; n]
}

fn dropout(p: f64) -> Dropout {
    if p == 0.0 {
        return Dropout::OFF;
    }
    Dropout::new(p, Philox::new(5), Site(17), Clock { step: 3, row0: 40, slot0: 7 })
}

/// An op with the sizes and options that it is tried with.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the variants are the ops, their fields what the ops call them
pub enum Case {
    Linear { rows: usize, inputs: usize, outputs: usize, activation: Option<Activation>, write: Write },
    LinearBefore { rows: usize, inputs: usize, outputs: usize, activation: Activation },
    WeightGrads { rows: usize, layers: Vec<(usize, usize)> },
    Norm { rows: usize, width: usize, p: f64, residual: bool },
    Attention { lengths: Vec<(usize, usize)>, heads: usize, head_size: usize, p: f64 },
    Embed { tokens: usize, width: usize, p: f64, delta: bool, padding: Option<u32> },
    Mlm { rows: usize, vocabulary: usize, disallow_correct: bool },
    Mask { lengths: Vec<usize>, style: MaskStyle, slots: usize },
    Rtd { tokens: usize, labels: usize },
    Metrics { tokens: usize, labels: usize },
    Rows { rows: usize, width: usize },
    Optim { n: usize, bias_correction: Option<u64>, max_norm: Option<f64> },
}

impl Case {
    /// Awkward shapes by default: 0, 1, odd, a tile and one more or less, empty sequences; dropout on and
    /// off.
    pub fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for activation in [None, Some(Activation::Gelu), Some(Activation::GeluTanh), Some(Activation::Relu)] {
            for (rows, inputs, outputs, write) in [
                (0, 5, 3, Write::Set),
                (0, 17, 65, Write::Add),
                (1, 1, 1, Write::Set),
                (7, 5, 3, Write::Add),
                (131, 17, 65, Write::Set),
                (65, 32, 264, Write::Add),
            ] {
                cases.push(Self::Linear { rows, inputs, outputs, activation, write });
            }
        }
        for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            for (rows, inputs, outputs) in [(0, 17, 40), (1, 1, 1), (7, 5, 3), (131, 72, 40), (1100, 65, 8)] {
                cases.push(Self::LinearBefore { rows, inputs, outputs, activation });
            }
        }
        // Sums that are split and not, tiles of either size, as many layers as one launch takes and more.
        for (rows, layers) in [
            (0, vec![(17, 65), (64, 8)]),
            (1, vec![(1, 1), (3, 2)]),
            (130, vec![(17, 65), (64, 8), (8, 72)]),
            (97, vec![(128, 136), (136, 128), (128, 128), (24, 130)]),
            (33, vec![(8, 8); 5]),
        ] {
            cases.push(Self::WeightGrads { rows, layers });
        }
        for p in [0.0, 0.1] {
            for (rows, width) in
                [(0, 31), (1, 2), (33, 31), (5, 128), (4, 256), (9, 264), (3, 768), (2, 1024)]
            {
                for residual in [false, true] {
                    cases.push(Self::Norm { rows, width, p, residual });
                }
            }
            // As many blocks as are added up in three levels.
            cases.push(Self::Norm { rows: 1100, width: 12, p, residual: true });
            for (lengths, heads, head_size) in [
                (vec![], 1, 32),
                (vec![(0, 0)], 2, 64),
                (vec![(1, 1)], 1, 4),
                (vec![(5, 5), (3, 2), (7, 4)], 2, 3),
                (vec![(63, 63), (0, 0), (65, 64)], 2, 16),
                (vec![(70, 65), (64, 64)], 1, 32),
                (vec![(128, 128), (127, 100), (0, 0), (17, 17)], 2, 64),
                (vec![(66, 60), (1, 1)], 1, 40),
                (vec![(130, 129), (270, 260)], 1, 64),
                (vec![(140, 133), (5, 5)], 1, 32),
                (vec![(66, 66)], 1, 80),
                (vec![(33, 33), (67, 1)], 1, 128),
            ] {
                cases.push(Self::Attention { lengths, heads, head_size, p });
            }
            cases.push(Self::Embed { tokens: 0, width: 8, p, delta: false, padding: None });
            cases.push(Self::Embed { tokens: 1, width: 8, p, delta: false, padding: None });
            cases.push(Self::Embed { tokens: 300, width: 33, p, delta: true, padding: Some(0) });
            cases.push(Self::Embed { tokens: 77, width: 264, p, delta: false, padding: Some(2) });
            // Words whose users fill several spans of sorted uses.
            cases.push(Self::Embed { tokens: 2500, width: 8, p, delta: false, padding: Some(3) });
            cases.push(Self::Embed { tokens: 20, width: 1024, p, delta: false, padding: Some(0) });
        }
        for (rows, vocabulary) in [(0, 131), (1, 1), (3, 131), (2, 2048), (4, 5000)] {
            for disallow_correct in [false, true] {
                if vocabulary > 1 || !disallow_correct {
                    cases.push(Self::Mlm { rows, vocabulary, disallow_correct });
                }
            }
        }
        for (tokens, labels) in [(0, 1), (1, 1), (257, 1), (300, 2)] {
            cases.push(Self::Rtd { tokens, labels });
        }
        for style in [MaskStyle::Electra, MaskStyle::Txtai] {
            // Slots to spare, just enough, too few or none; no rows, and rows of one token, of none, and of
            // more tokens than a block has threads.
            for (lengths, slots) in [
                (vec![], 2),
                (vec![9], 0),
                (vec![0], 3),
                (vec![1], 3),
                (vec![9, 0, 33, 128], 40),
                (vec![129, 300, 2, 64], 60),
            ] {
                cases.push(Self::Mask { lengths, style, slots });
            }
        }
        for (tokens, labels) in [(0, 1), (1, 1), (4097, 1), (9000, 2)] {
            cases.push(Self::Metrics { tokens, labels });
        }
        for (rows, width) in [(0, 24), (1, 1), (13, 24), (5, 300)] {
            cases.push(Self::Rows { rows, width });
        }
        for (n, bias_correction, max_norm) in
            [(0, None, Some(1.0)), (64, None, None), (1000, Some(3), Some(1.0)), (300_000, None, Some(1e9))]
        {
            cases.push(Self::Optim { n, bias_correction, max_norm });
        }
        cases
    }

    /// Forward and backward of the op on fixed inputs. `naive`: on the CPU, what is stored between steps is rounded to bf16.
    pub fn run<B: Backend>(&self, backend: &B, naive: bool) -> Result<Vec<Output>> {
        let mut b = Bench { backend, naive, outputs: Vec::new() };
        match *self {
            Self::Linear { rows, inputs, outputs, activation, write } => {
                ops::linear(&mut b, (rows, inputs, outputs), activation, write)
            }
            Self::LinearBefore { rows, inputs, outputs, activation } => {
                ops::linear_before(&mut b, (rows, inputs, outputs), activation)
            }
            Self::WeightGrads { rows, ref layers } => ops::weight_grads(&mut b, rows, layers),
            Self::Norm { rows, width, p, residual } => ops::norm(&mut b, rows, width, p, residual),
            Self::Attention { ref lengths, heads, head_size, p } => {
                ops::attention(&mut b, lengths, (heads, head_size), p)
            }
            Self::Embed { tokens, width, p, delta, padding } => {
                ops::embed(&mut b, tokens, width, p, delta, padding)
            }
            Self::Mlm { rows, vocabulary, disallow_correct } => {
                heads::mlm(&mut b, rows, vocabulary, disallow_correct)
            }
            Self::Mask { ref lengths, style, slots } => heads::mask(&mut b, lengths, style, slots),
            Self::Rtd { tokens, labels } => heads::rtd(&mut b, tokens, labels),
            Self::Metrics { tokens, labels } => heads::metrics(&mut b, tokens, labels),
            Self::Rows { rows, width } => ops::move_rows(&mut b, rows, width),
            Self::Optim { n, bias_correction, max_norm } => ops::optim(&mut b, n, bias_correction, max_norm),
        }?;
        Ok(b.outputs)
    }

    /// The most that the roundings of a bf16 computation can change each element by, for some results by
    /// their names.
    fn reach(&self) -> Vec<(&'static str, Vec<f64>)> {
        match self {
            Self::Attention { lengths, heads, head_size, p } => {
                naive::attention_reach(lengths, (*heads, *head_size), *p)
            }
            _ => Vec::new(),
        }
    }

    /// The results of the naive bf16 computation.
    pub fn naive(&self) -> Result<Vec<Output>> {
        if let Self::Attention { lengths, heads, head_size, p } = self {
            return Ok(naive::attention(lengths, (*heads, *head_size), *p));
        }
        let mut outputs = self.run(&Cpu::<f32>::new(), true)?;
        for output in outputs.iter_mut().filter(|o| o.kind == Kind::Working) {
            output.values.iter_mut().for_each(|x| *x = rounded(*x));
        }
        Ok(outputs)
    }
}

/// What a comparison came to.
#[derive(Clone, Debug, Serialize)]
pub struct SelfTest {
    /// The op and its sizes.
    pub op: String,
    /// bf16 or fp32.
    pub precision: &'static str,
    /// The largest relative error of a result, in the 2-norm.
    pub error: f64,
    /// Whether every result is as near as it must be.
    pub passed: bool,
    /// What is wrong.
    pub problem: Option<String>,
}

/// Every case on a device.
pub fn self_test<D: Driver, W: Working>(device: D) -> Result<Vec<SelfTest>> {
    let gpu = Gpu::<D, W>::new(device);
    Case::all().iter().map(|case| Ok(compare(case, &gpu)?.0)).collect()
}

/// One case on a backend in bf16 or fp32 against the reference; also its results.
pub fn compare<B: Backend>(case: &Case, backend: &B) -> Result<(SelfTest, Vec<Output>)> {
    let want = case.run(&Cpu::<f64>::new(), false)?;
    let half = size_of::<B::X>() == 2;
    let naive = if half { case.naive()? } else { case.run(&Cpu::<f32>::new(), false)? };
    let got = case.run(backend, false)?;
    let reach = if half { case.reach() } else { Vec::new() };
    let mut worst = 0.0f64;
    let mut problem = None;
    for ((got, want), naive) in got.iter().zip(&want).zip(&naive) {
        let of_each = reach.iter().find(|(name, _)| *name == got.name);
        let checked = difference(got, want, naive).and_then(|error| {
            of_each.map_or(Ok(()), |(_, reach)| within_reach(got, want, reach)).map(|()| error)
        });
        match checked {
            Ok(error) => worst = worst.max(error),
            Err(what) => problem = problem.or(Some(what)),
        }
    }
    let (op, passed, precision) =
        (format!("{case:?}"), problem.is_none(), if half { "bf16" } else { "fp32" });
    Ok((SelfTest { op, precision, error: worst, passed, problem }, got))
}

/// Sums of another order differ by a few units in the last place of fp32.
const SLACK: f64 = 2e-6;

/// The relative error of a result, or what is wrong with it.
fn difference(got: &Output, want: &Output, naive: &Output) -> Result<f64, String> {
    let name = got.name;
    if got.values.len() != want.values.len() {
        return Err(format!("{name} has {} elements, not {}", got.values.len(), want.values.len()));
    }
    if got.kind == Kind::Index {
        let first = got.values.iter().zip(&want.values).position(|(a, b)| a != b);
        return first.map_or(Ok(0.0), |i| {
            Err(format!("{name}[{i}] is {}, expected {}", got.values[i], want.values[i]))
        });
    }
    if let Some(i) = got.values.iter().position(|x| !x.is_finite()) {
        return Err(format!("{name}[{i}] is {}", got.values[i]));
    }
    let mut errors = [0.0; 2];
    for (error, norm) in errors.iter_mut().zip([Norm::Two, Norm::Largest]) {
        let allowed;
        (*error, allowed) = norm.errors(got, want, naive);
        if *error > 2.0 * allowed + SLACK {
            let what = if norm == Norm::Two { "error" } else { "largest error" };
            return Err(format!("{name}: {what} {error:.2e}, that of the naive computation {allowed:.2e}"));
        }
    }
    Ok(errors[0])
}

/// How the elements of a result are taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Norm {
    Two,
    Largest,
}

impl Norm {
    fn of(self, values: impl Iterator<Item = f64>) -> f64 {
        match self {
            Self::Two => values.map(|x| x * x).sum::<f64>().sqrt(),
            Self::Largest => values.map(f64::abs).max_by(f64::total_cmp).unwrap_or(0.0),
        }
    }

    /// The errors of a result and of the naive one, relative to the reference.
    fn errors(self, got: &Output, want: &Output, naive: &Output) -> (f64, f64) {
        let size = self.of(want.values.iter().copied());
        let distance = |from: &Output| self.of(from.values.iter().zip(&want.values).map(|(a, b)| a - b));
        // A gradient may be exactly zero: then the error of the naive one is the measure.
        let unit = if size < 1e-12 { 1.0 } else { size };
        (distance(got) / unit, distance(naive) / unit)
    }
}

/// Holds each element to a bound of its own; [`SLACK`] is for sums of another order.
fn within_reach(got: &Output, want: &Output, reach: &[f64]) -> Result<(), String> {
    let size = Norm::Largest.of(want.values.iter().copied());
    let mut elements = got.values.iter().zip(&want.values).zip(reach).enumerate();
    match elements.find(|(_, ((got, want), reach))| (*got - *want).abs() > *reach + SLACK * size) {
        Some((i, ((value, want), reach))) => Err(format!(
            "{}[{i}] is {value:.6e}, expected {want:.6e}: rounding reaches {reach:.1e}",
            got.name
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(case: &Case) -> [Vec<Output>; 3] {
        let got = case.run(&Cpu::<bf16>::new(), false).unwrap();
        [got, case.run(&Cpu::<f64>::new(), false).unwrap(), case.naive().unwrap()]
    }

    /// Half of a typical value added to one element of 76,800 passes in the 2-norm and not in the maximum
    /// norm.
    #[test]
    fn one_wrong_element_among_many_shows() {
        let case = Case::Linear { rows: 300, inputs: 16, outputs: 256, activation: None, write: Write::Set };
        let [mut got, want, naive] = results(&case);
        assert_eq!((got[0].name, got[0].values.len()), ("out", 76_800));
        assert!(difference(&got[0], &want[0], &naive[0]).is_ok());
        let typical = Norm::Two.of(want[0].values.iter().copied()) / 76_800f64.sqrt();
        got[0].values[40_000] += 0.5 * typical;
        let (error, allowed) = Norm::Two.errors(&got[0], &want[0], &naive[0]);
        assert!(error <= 2.0 * allowed + SLACK, "it shows in the 2-norm: {error} {allowed}");
        let problem = difference(&got[0], &want[0], &naive[0]).unwrap_err();
        assert!(problem.contains("largest error"), "{problem}");
    }

    /// In attention an error shows even where it is smaller than the largest error that rounding makes
    /// elsewhere.
    #[test]
    fn a_small_wrong_element_of_attention_shows() {
        let case = Case::Attention { lengths: vec![(128, 100)], heads: 2, head_size: 64, p: 0.1 };
        let [mut got, want, naive] = results(&case);
        let (name, reach) = case.reach().into_iter().find(|(name, _)| *name == "dqkv").unwrap();
        let which = want.iter().position(|output| output.name == name).unwrap();
        let (got, want) = (&mut got[which], &want[which]);
        within_reach(got, want, &reach).unwrap();
        let (error, allowed) = Norm::Largest.errors(got, want, &naive[which]);
        let size = Norm::Largest.of(want.values.iter().copied());
        // The element with the narrowest bound, one of a key that is masked out, is changed by less than
        // the maximum norm allows.
        let tightest = (0..reach.len()).min_by(|&a, &b| reach[a].total_cmp(&reach[b])).unwrap();
        let moved = 1.5 * (allowed + SLACK) * size;
        assert!(moved > reach[tightest] && error <= 2.0 * allowed + SLACK, "{moved}");
        got.values[tightest] = want.values[tightest] + moved;
        assert!(difference(got, want, &naive[which]).is_ok(), "it shows in a norm");
        assert!(within_reach(got, want, &reach).unwrap_err().contains("rounding reaches"));
    }
}
