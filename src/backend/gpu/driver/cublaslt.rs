//! Products by cuBLASLt, with a plan kept for each shape: descriptors are made and the heuristic is asked once.
//!
//! cuBLASLt stores by columns: a row-major C = A · B is Cᵀ = Bᵀ · Aᵀ there, so our B is its first operand. Its bias is added along
//! the rows of its C, which are our columns.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::size_of_val;
use std::ptr;

use cudarc::cublaslt::{result, sys};

use super::cuda::Cuda;
use super::{Driver, Gemm, Operand, Precision};
use crate::{Error, Result};

/// What a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    precision: Precision,
    transposed: (bool, bool),
    /// Elements between rows in memory of A, B and C.
    pitches: [usize; 3],
    exact: bool,
    accumulate: bool,
    bias: bool,
    /// The library's own GELU on the result: asked for by [`CublasLt::gelu`] alone.
    gelu: bool,
}

impl From<&Gemm> for Shape {
    fn from(g: &Gemm) -> Self {
        Self {
            m: g.m,
            n: g.n,
            k: g.k,
            precision: g.precision,
            transposed: (g.a.transposed, g.b.transposed),
            pitches: [g.a.pitch, g.b.pitch, g.pitch],
            exact: g.exact,
            accumulate: g.accumulate,
            bias: g.bias.is_some(),
            gelu: false,
        }
    }
}

/// Descriptors and the algorithm for one shape.
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    first: sys::cublasLtMatrixLayout_t,
    second: sys::cublasLtMatrixLayout_t,
    result: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: all four were made for this plan and are destroyed once.
        unsafe {
            let _ = result::destroy_matmul_desc(self.product);
            for layout in [self.first, self.second, self.result] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

/// The library's handle and plans.
pub(super) struct CublasLt {
    handle: sys::cublasLtHandle_t,
    /// `None`: the library has no algorithm for the shape.
    plans: RefCell<HashMap<Shape, Option<Plan>>>,
}

fn failed(e: result::CublasError) -> Error {
    Error::device(format!("cuBLASLt fails: {e}"))
}

impl CublasLt {
    pub(super) fn new() -> Result<Self> {
        let handle = result::create_handle().map_err(failed)?;
        Ok(Self { handle, plans: RefCell::default() })
    }

    /// Multiplies; `false` where the library has no algorithm for the shape.
    pub(super) fn multiply(&self, gpu: &Cuda, g: &Gemm) -> Result<bool> {
        self.multiply_as(gpu, g, Shape::from(g))
    }

    /// GELU(x) as the library's epilogue computes it, in bf16; `None` where it has no algorithm for that.
    pub(super) fn gelu(&self, gpu: &Cuda, x: f32) -> Result<Option<f32>> {
        // x · I, 16 × 16.
        const N: usize = 16;
        let diagonal = |value: f32| -> Vec<u8> {
            let at = |i: usize| if i.is_multiple_of(N + 1) { value } else { 0.0 };
            (0..N * N).flat_map(|i| half::bf16::from_f32(at(i)).to_le_bytes()).collect()
        };
        let [a, b, c] = [diagonal(x), diagonal(1.0), diagonal(0.0)].map(|bytes| {
            let region = gpu.alloc(bytes.len())?;
            gpu.upload(&bytes, region).map(|()| region)
        });
        let (a, b, c) = (a?, b?, c?);
        let operand = |at| Operand::rows(at, N);
        let (exact, accumulate, precision) = (false, false, Precision::Bf16);
        let g = Gemm {
            m: N,
            n: N,
            k: N,
            precision,
            a: operand(a),
            b: operand(b),
            c,
            pitch: N,
            exact,
            accumulate,
            bias: None,
        };
        let done = self.multiply_as(gpu, &g, Shape { gelu: true, ..Shape::from(&g) })?;
        let mut out = vec![0u8; c.bytes()];
        gpu.download(c, &mut out)?;
        [a, b, c].into_iter().for_each(|region| gpu.free(region));
        Ok(done.then(|| half::bf16::from_le_bytes([out[0], out[1]]).to_f32()))
    }

    fn multiply_as(&self, gpu: &Cuda, g: &Gemm, shape: Shape) -> Result<bool> {
        let mut plans = self.plans.borrow_mut();
        if let std::collections::hash_map::Entry::Vacant(entry) = plans.entry(shape) {
            entry.insert(self.plan(shape, gpu.workspace.bytes())?);
        }
        let Some(Some(plan)) = plans.get(&shape) else { return Ok(false) };
        if let Some(bias) = g.bias {
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            set(plan.product, attribute, &bias.address())?;
        }
        let (alpha, beta) = (1.0f32, if g.accumulate { 1.0f32 } else { 0.0 });
        let at = |address: u64| address as *mut c_void;
        // SAFETY: the plan's layouts are those of the operands, which are live device memory; scalars are read before the return.
        unsafe {
            result::matmul(
                self.handle,
                plan.product,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                at(g.b.at.address()),
                plan.first,
                at(g.a.at.address()),
                plan.second,
                at(g.c.address()),
                plan.result,
                at(g.c.address()),
                plan.result,
                &plan.algorithm,
                at(gpu.workspace.address()),
                gpu.workspace.bytes(),
                gpu.stream().cast(),
            )
        }
        .map_err(failed)?;
        Ok(true)
    }

    fn plan(&self, s: Shape, workspace_bytes: usize) -> Result<Option<Plan>> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let working = match s.precision {
            Precision::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
            _ => sys::cudaDataType_t::CUDA_R_32F,
        };
        let stored = if s.exact { sys::cudaDataType_t::CUDA_R_32F } else { working };
        let compute = match s.precision {
            Precision::Tf32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let [a, b, c] = s.pitches;
        // (rows, columns) by columns as the library sees what lies in memory by rows.
        let layout = |kind, rows: usize, cols: usize, pitch: usize| {
            result::create_matrix_layout(kind, cols as u64, rows as u64, pitch as i64).map_err(failed)
        };
        let plan = Plan {
            product: result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F).map_err(failed)?,
            first: if s.transposed.1 { layout(working, s.n, s.k, b)? } else { layout(working, s.k, s.n, b)? },
            second: if s.transposed.0 {
                layout(working, s.k, s.m, a)?
            } else {
                layout(working, s.m, s.k, a)?
            },
            result: layout(stored, s.m, s.n, c)?,
            // SAFETY: plain numbers, filled in below.
            algorithm: unsafe { std::mem::zeroed() },
        };
        // CUBLAS_OP_N and CUBLAS_OP_T
        let operation = |transposed| if transposed { 1i32 } else { 0 };
        set(plan.product, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &operation(s.transposed.1))?;
        set(plan.product, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &operation(s.transposed.0))?;
        if s.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            set(plan.product, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            set(plan.product, Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &working)?;
        }
        if s.gelu {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU;
            set(plan.product, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
        let preference = Preference::new(workspace_bytes, s)?;
        // SAFETY: every descriptor was made above and lives.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                plan.product,
                plan.first,
                plan.second,
                plan.result,
                plan.result,
                preference.0,
            )
        };
        Ok(found.ok().map(|found| {
            let mut plan = plan;
            plan.algorithm = found.algo;
            plan
        }))
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        self.plans.borrow_mut().clear();
        // SAFETY: the handle is destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn set<T>(
    product: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<()> {
    // SAFETY: the descriptor lives, and the value has the attribute's type.
    unsafe {
        result::set_matmul_desc_attribute(product, attribute, ptr::from_ref(value).cast(), size_of_val(value))
    }
    .map_err(failed)
}

/// What the heuristic may choose from.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    /// Workspace, kinds of sums, and the alignment that rows surely have.
    fn new(workspace_bytes: usize, s: Shape) -> Result<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Self(result::create_matmul_pref().map_err(failed)?);
        let set = |attribute, value: &dyn AsBytes| {
            // SAFETY: the preference lives, and the value has the attribute's type.
            unsafe {
                result::set_matmul_pref_attribute(preference.0, attribute, value.start(), value.bytes())
            }
            .map_err(failed)
        };
        set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(workspace_bytes as u64))?;
        // Sums that are split over blocks are added in workspace in a fixed order, never by atomics in C.
        let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_MASK as u32
            & !(sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_INPLACE as u32);
        set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes)?;
        // Buffers and parameters start at multiples of 16 bytes; their rows, and so their tiles, only if their pitch is one.
        let stored = if s.exact { 4 } else { s.precision.bytes() };
        let alignment = |row: usize, bytes: usize| 1u32 << (row * bytes).trailing_zeros().min(4);
        let [a, b, c] = s.pitches;
        let (first, second) = (alignment(b, s.precision.bytes()), alignment(a, s.precision.bytes()));
        for (attribute, alignment) in [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, first),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, second),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(c, stored)),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(c, stored)),
        ] {
            set(attribute, &alignment)?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// A number as the library takes it.
trait AsBytes {
    fn start(&self) -> *const c_void;
    fn bytes(&self) -> usize;
}

impl<T: Copy> AsBytes for T {
    fn start(&self) -> *const c_void {
        ptr::from_ref(self).cast()
    }
    fn bytes(&self) -> usize {
        size_of_val(self)
    }
}

/// The library's version, as it writes it.
pub fn version() -> Result<String> {
    super::libraries::Library::CublasLt.load()?;
    // SAFETY: the library is loaded.
    let version = unsafe { sys::cublasLtGetVersion() };
    Ok(format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100))
}
