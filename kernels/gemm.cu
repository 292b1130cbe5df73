// C (m, n) = A (m, k) · B (k, n) on tensor cores, with what a linear layer does before or after it: any size, three layouts.
//
// Letters say how A and B lie in memory: n by rows, t transposed; a linear layer's forward pass is nt, its data gradient nn, its weight
// gradient tn. Epilogues: bias; bias and activation, its argument kept; the activation's derivative and the column sums of
// the result (the bias gradient of the layer before). `weight_grads` computes several weight gradients at once, split along k: each alone
// has too few tiles to fill a GPU.
// Decomposition: a block a tile of C (128 × 128 or 64 × 64), a warp 32 columns of half its rows; steps of 32 along k through a ring of
// stages in shared memory (cp.async; element by element where rows do not start at multiples of 16 bytes). A tile of results passes through
// shared memory, so that global accesses are of 16 bytes. Bound: tensor cores, or memory where k is short.
// FLOPs: 2 m n k. Bytes: A, B and C once each, as far as the L2 cache holds the panels that neighbouring tiles share.
// Determinism: each element is summed in order of k by one warp; column sums and splits by rows, blocks in order.
#include "common/activation.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

/// Elements along k of a stage.
constexpr u32 STEP = 32;
constexpr u32 STAGES = sizeof(X) == 2 ? 4 : 2;
/// Elements of a 16-byte access.
constexpr u32 VECTOR = 16 / sizeof(X);
/// Warps down and columns of a warp.
constexpr u32 DOWN = 2, ACROSS = 32;
/// Threads of a block with tiles of SIDE × SIDE.
template <u32 SIDE>
constexpr u32 THREADS = DOWN * (SIDE / ACROSS) * WARP;

/// Mirrors the launcher's flags.
constexpr u32 C_EXACT = 1, ACCUMULATE = 2;

/// How an operand lies in memory: k along its rows, or its rows along k.
enum class Layout { ALONG, ACROSS_K };

/// Rows of a tile in shared memory are one access longer than their content: the rows that `ldmatrix` reads lie in different banks.
template <u32 SIDE, Layout L>
constexpr u32 LD = (L == Layout::ALONG ? STEP : SIDE) + VECTOR;
template <u32 SIDE, Layout L>
constexpr u32 TILE_SIZE = (L == Layout::ALONG ? SIDE : STEP) * LD<SIDE, L>;
/// Floats between rows of a tile of results in shared memory.
template <u32 SIDE>
constexpr u32 RESULT_LD = SIDE + 8;

/// An operand with `size` rows (columns, for B): element (i, k) at from[i · ld + k], or from[k · ld + i].
struct Matrix {
    const X* from;
    u32 size, ld;
};

/// What a block multiplies: rows row0 … of A by columns col0 … of B, k from k0 up to k1.
struct Product {
    Matrix a, b;
    u32 row0, col0, k0, k1;
};

/// SIDE × STEP elements from (first, k) on, zeros beyond the ends.
template <u32 SIDE, Layout L>
DEVICE void load_stage(X* tile, const Matrix& m, u32 first, u32 k, u32 k1) {
    constexpr u32 WIDTH = L == Layout::ALONG ? STEP : SIDE, HEIGHT = L == Layout::ALONG ? SIDE : STEP;
    const u32 row0 = L == Layout::ALONG ? first : k, rows = L == Layout::ALONG ? m.size : k1;
    const u32 col0 = L == Layout::ALONG ? k : first, cols = L == Layout::ALONG ? k1 : m.size;
    if (m.ld % VECTOR == 0) {
        constexpr u32 CHUNKS = WIDTH / VECTOR;
#pragma unroll
        for (u32 i = threadIdx.x; i < HEIGHT * CHUNKS; i += THREADS<SIDE>) {
            const u32 row = i / CHUNKS, col = i % CHUNKS * VECTOR;
            const bool exists = row0 + row < rows && col0 + col < cols;
            const X* from = m.from + static_cast<u64>(row0 + row) * m.ld + col0 + col;
            // Rows may be padded: what lies between them is no part of the matrix.
            const u32 bytes = exists ? min_u32(cols - col0 - col, VECTOR) * sizeof(X) : 0;
            cp_async16(tile + row * LD<SIDE, L> + col, exists ? from : m.from, bytes);
        }
    } else {
#pragma unroll 1
        for (u32 i = threadIdx.x; i < HEIGHT * WIDTH; i += THREADS<SIDE>) {
            const u32 row = i / WIDTH, col = i % WIDTH;
            const bool exists = row0 + row < rows && col0 + col < cols;
            tile[row * LD<SIDE, L> + col] = exists ? m.from[static_cast<u64>(row0 + row) * m.ld + col0 + col] : from_float<X>(0.0f);
        }
    }
}

/// Leaves the products in `result` (SIDE rows of RESULT_LD floats) in shared memory; all threads may read it on return.
template <u32 SIDE, Layout LA, Layout LB>
DEVICE float* multiply(const Product& p) {
    constexpr u32 FRAGMENTS = SIDE / DOWN / 16, STAGE = TILE_SIZE<SIDE, LA> + TILE_SIZE<SIDE, LB>;
    X* stages = reinterpret_cast<X*>(shared_memory());  // (STAGES, A's tile and B's)
    const u32 warp_row = warp_id() % DOWN * (SIDE / DOWN), warp_col = warp_id() / DOWN * ACROSS;
    const u32 steps = p.k1 > p.k0 ? ceil_div(p.k1 - p.k0, STEP) : 0;
    auto load = [&](u32 step) {
        if (step < steps) {
            X* stage = stages + step % STAGES * STAGE;
            load_stage<SIDE, LA>(stage, p.a, p.row0, p.k0 + step * STEP, p.k1);
            load_stage<SIDE, LB>(stage + TILE_SIZE<SIDE, LA>, p.b, p.col0, p.k0 + step * STEP, p.k1);
        }
        cp_async_commit();
    };
    float acc[FRAGMENTS][ACROSS / 8][4] = {};
    for (u32 step = 0; step < STAGES - 1; step++) load(step);
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // every thread's part of this stage has arrived, and all have read the one that is loaded next
        load(step + STAGES - 1);
        const X* a_tile = stages + step % STAGES * STAGE;
        const X* b_tile = a_tile + TILE_SIZE<SIDE, LA>;
#pragma unroll
        for (u32 k = 0; k < STEP; k += 16) {
            FragmentB<X> b[ACROSS / 16][2];
#pragma unroll
            for (u32 j = 0; j < ACROSS / 16; j++) {
                const u32 col = warp_col + j * 16;
                if (LB == Layout::ALONG) {
                    load_b(b[j], b_tile + col * LD<SIDE, LB> + k, LD<SIDE, LB>);
                } else {
                    load_b_rows(b[j], b_tile + k * LD<SIDE, LB> + col, LD<SIDE, LB>);
                }
            }
#pragma unroll
            for (u32 i = 0; i < FRAGMENTS; i++) {
                FragmentA<X> a;
                const u32 row = warp_row + i * 16;
                if (LA == Layout::ALONG) {
                    load_a(a, a_tile + row * LD<SIDE, LA> + k, LD<SIDE, LA>);
                } else {
                    load_a_columns(a, a_tile + k * LD<SIDE, LA> + row, LD<SIDE, LA>);
                }
#pragma unroll
                for (u32 j = 0; j < ACROSS / 8; j++) mma(acc[i][j], a, b[j / 2][j % 2]);
            }
        }
    }
    cp_async_wait<0>();
    __syncthreads();  // all have read the last stage: results may take its place
    float* result = reinterpret_cast<float*>(stages);
    const u32 g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (u32 i = 0; i < FRAGMENTS; i++)
#pragma unroll
        for (u32 j = 0; j < ACROSS / 8; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                result[(warp_row + i * 16 + g + e / 2 * 8) * RESULT_LD<SIDE> + warp_col + j * 8 + 2 * t + e % 2] = acc[i][j][e];
            }
    __syncthreads();  // the tile is whole
    return result;
}

/// The eight columns that a thread treats in every `HEIGHT`-th row of its tile.
template <u32 SIDE>
struct Lane {
    static constexpr u32 CHUNKS = SIDE / EIGHT, HEIGHT = THREADS<SIDE> / CHUNKS;
    u32 row = threadIdx.x / CHUNKS, col = threadIdx.x % CHUNKS * EIGHT;
};

/// This block's product, of all of k.
DEVICE Product whole(const Matrix& a, const Matrix& b, u32 k, u32 side) { return {a, b, blockIdx.y * side, blockIdx.x * side, 0, k}; }

template <u32 SIDE, Layout LA, Layout LB>
DEVICE void product(const X* a, const X* b, void* c, const X* bias, u32 m, u32 n, u32 k, u32 lda, u32 ldb, u32 ldc, u32 flags) {
    const Product p = whole({a, m, lda}, {b, n, ldb}, k, SIDE);
    const float* result = multiply<SIDE, LA, LB>(p);
    const Lane<SIDE> lane;
    const u32 col = p.col0 + lane.col, count = columns_left(col, n);
    const bool aligned = rows_are_aligned(ldc) && count == EIGHT;
    if (!count) return;
    float b8[EIGHT] = {};
    if (bias) load8(b8, bias + col, count, count == EIGHT);
    for (u32 r = lane.row; r < SIDE && p.row0 + r < m; r += Lane<SIDE>::HEIGHT) {
        const u64 at = static_cast<u64>(p.row0 + r) * ldc + col;
        float x[EIGHT], before[EIGHT] = {};
        load8(x, result + r * RESULT_LD<SIDE> + lane.col, EIGHT, true);
        if (flags & ACCUMULATE) {
            if (flags & C_EXACT) {
                load8(before, static_cast<const float*>(c) + at, count, aligned);
            } else {
                load8(before, static_cast<const X*>(c) + at, count, aligned);
            }
        }
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[i] += b8[i] + before[i];
        if (flags & C_EXACT) {
            store8(static_cast<float*>(c) + at, x, count, aligned);
        } else {
            store8(static_cast<X*>(c) + at, x, count, aligned);
        }
    }
}

/// pre = A · Bᵀ + bias, out = act(pre).
template <u32 SIDE>
DEVICE void activated(const X* a, const X* b, const X* bias, X* pre, X* out, u32 m, u32 n, u32 k, u32 kind) {
    const Product p = whole({a, m, k}, {b, n, k}, k, SIDE);
    const float* result = multiply<SIDE, Layout::ALONG, Layout::ALONG>(p);
    const Lane<SIDE> lane;
    const u32 col = p.col0 + lane.col, count = columns_left(col, n);
    const bool aligned = rows_are_aligned(n);
    if (!count) return;
    float b8[EIGHT];
    load8(b8, bias + col, count, aligned);
    for (u32 r = lane.row; r < SIDE && p.row0 + r < m; r += Lane<SIDE>::HEIGHT) {
        const u64 at = static_cast<u64>(p.row0 + r) * n + col;
        float x[EIGHT];
        load8(x, result + r * RESULT_LD<SIDE> + lane.col, EIGHT, true);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[i] = rounded<X>(x[i] + b8[i]);  // the backward pass reads the stored argument
        store8(pre + at, x, count, aligned);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[i] = activate(static_cast<Activation>(kind), x[i]);
        store8(out + at, x, count, aligned);
    }
}

/// dinp = (A · B) ∘ act'(pre), and dbias += its column sums. partials (gridDim.y, n).
template <u32 SIDE>
DEVICE void derived(const X* a, const X* b, const X* pre, X* dinp, float* dbias, float* partials, u32* counters, u32 m, u32 n, u32 k,
                    u32 kind) {
    const Product p = whole({a, m, k}, {b, n, n}, k, SIDE);
    float* result = multiply<SIDE, Layout::ALONG, Layout::ACROSS_K>(p);
    const Lane<SIDE> lane;
    const u32 col = p.col0 + lane.col, count = columns_left(col, n);
    const bool aligned = rows_are_aligned(n);
    float sums[EIGHT] = {};
    for (u32 r = lane.row; count && r < SIDE && p.row0 + r < m; r += Lane<SIDE>::HEIGHT) {
        const u64 at = static_cast<u64>(p.row0 + r) * n + col;
        float x[EIGHT], argument[EIGHT];
        load8(x, result + r * RESULT_LD<SIDE> + lane.col, EIGHT, true);
        load8(argument, pre + at, count, aligned);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) {
            x[i] = rounded<X>(x[i] * derivative(static_cast<Activation>(kind), argument[i]));
            sums[i] += i < count ? x[i] : 0.0f;
        }
        store8(dinp + at, x, count, aligned);
    }
    __syncthreads();  // all have read the results: sums may take their place
    store8(result + lane.row * SIDE + lane.col, sums, EIGHT, true);
    __syncthreads();  // the sums of all threads are written
    if (threadIdx.x < SIDE && p.col0 + threadIdx.x < n) {
        float total = 0.0f;
        for (u32 r = 0; r < Lane<SIDE>::HEIGHT; r++) total += result[r * SIDE + threadIdx.x];
        partials[static_cast<u64>(blockIdx.y) * n + p.col0 + threadIdx.x] = total;
    }
    __syncthreads();  // sums are read: their first word may be used again
    add_over_blocks(partials + p.col0, min_u32(SIDE, n - p.col0), n, blockIdx.y, gridDim.y,
                    counters + blockIdx.x * tree_counters(gridDim.y), reinterpret_cast<u32*>(result),
                    [&](u32 c, float total) { dbias[p.col0 + c] += total; });
}

/// One of the products of `weight_grads`: dweight (outputs, inputs) += doutᵀ · inp. Mirrors the launcher's structure.
struct WeightGrad {
    const X *dout, *inp;
    float* dweight;
    u32 outputs, inputs;
    /// First of its tiles among all.
    u32 first;
    u32 unused;
};
constexpr u32 MOST_GRADS = 4;
struct WeightGrads {
    WeightGrad of[MOST_GRADS];
};

/// grid (tiles of all, splits): a block a tile's sum over `span` of the `rows`; partials (tiles, splits, SIDE, SIDE).
template <u32 SIDE>
DEVICE void weight_gradients(const WeightGrads& all, float* partials, u32* counters, u32 count, u32 rows, u32 span) {
    u32 which = 0;
    for (u32 i = 1; i < count; i++) which = blockIdx.x >= all.of[i].first ? i : which;
    const WeightGrad& w = all.of[which];
    const u32 tile = blockIdx.x - w.first, wide = ceil_div(w.inputs, SIDE), k0 = blockIdx.y * span;
    const Product p = {{w.dout, w.outputs, w.outputs}, {w.inp, w.inputs, w.inputs}, tile / wide * SIDE, tile % wide * SIDE,
                       k0, min_u32(k0 + span, rows)};
    float* result = multiply<SIDE, Layout::ACROSS_K, Layout::ACROSS_K>(p);
    const Lane<SIDE> lane;
    float* own = partials + static_cast<u64>(blockIdx.x) * gridDim.y * SIDE * SIDE;
    if (gridDim.y > 1) {
        for (u32 r = lane.row; r < SIDE; r += Lane<SIDE>::HEIGHT) {
            float x[EIGHT];
            load8(x, result + r * RESULT_LD<SIDE> + lane.col, EIGHT, true);
            store8(own + (blockIdx.y * SIDE + r) * SIDE + lane.col, x, EIGHT, true);
        }
        __syncthreads();  // results are read: their first word may be used again
        if (!last_block(counters + blockIdx.x, gridDim.y, reinterpret_cast<u32*>(result))) return;
    }
    const u32 col = p.col0 + lane.col, left = columns_left(col, w.inputs);
    const bool aligned = rows_are_aligned(w.inputs);
    for (u32 r = lane.row; left && r < SIDE && p.row0 + r < w.outputs; r += Lane<SIDE>::HEIGHT) {
        float sum[EIGHT] = {}, x[EIGHT];
        if (gridDim.y == 1) load8(sum, result + r * RESULT_LD<SIDE> + lane.col, EIGHT, true);
        for (u32 s = 0; s < (gridDim.y > 1 ? gridDim.y : 0); s++) {
            load8_fresh(x, own + (s * SIDE + r) * SIDE + lane.col);
#pragma unroll
            for (u32 i = 0; i < EIGHT; i++) sum[i] += x[i];
        }
        float* to = w.dweight + static_cast<u64>(p.row0 + r) * w.inputs + col;
        load8(x, to, left, aligned);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[i] += sum[i];
        store8(to, x, left, aligned);
    }
}

#define PRODUCT(NAME, SIDE, LA, LB)                                                                                                  \
    KERNEL_PAIRED(THREADS<SIDE>) gemm_##NAME##_##SIDE(const X* a, const X* b, void* c, const X* bias, u32 m, u32 n, u32 k, u32 lda,        \
                                                     u32 ldb, u32 ldc, u32 flags) {                                                      \
        take_turn();                                                                                                                           \
        product<SIDE, Layout::LA, Layout::LB>(a, b, c, bias, m, n, k, lda, ldb, ldc, flags);                                            \
    }
#define GEMM(SIDE)                                                                                                                   \
    PRODUCT(nt, SIDE, ALONG, ALONG)                                                                                                  \
    PRODUCT(nn, SIDE, ALONG, ACROSS_K)                                                                                               \
    PRODUCT(tn, SIDE, ACROSS_K, ACROSS_K)                                                                                            \
    KERNEL_PAIRED(THREADS<SIDE>) gemm_activated_##SIDE(const X* a, const X* b, const X* bias, X* pre, X* out, u32 m, u32 n, u32 k, u32 kind) { \
        take_turn();                                                                                                                           \
        activated<SIDE>(a, b, bias, pre, out, m, n, k, kind);                                                                         \
    }                                                                                                                                \
    KERNEL_PAIRED(THREADS<SIDE>) gemm_derived_##SIDE(const X* a, const X* b, const X* pre, X* dinp, float* dbias, float* partials,            \
                                              u32* counters, u32 m, u32 n, u32 k, u32 kind) {                                         \
        take_turn();                                                                                                                  \
        derived<SIDE>(a, b, pre, dinp, dbias, partials, counters, m, n, k, kind);                                                      \
    }                                                                                                                                \
    KERNEL_PAIRED(THREADS<SIDE>) weight_grads_##SIDE(WeightGrads all, float* partials, u32* counters, u32 count, u32 rows, u32 span) {         \
        take_turn();                                                                                                                           \
        weight_gradients<SIDE>(all, partials, counters, count, rows, span);                                                           \
    }
GEMM(64)
GEMM(128)

ENTRIES(gemm, ENTRY(gemm_nt_64), ENTRY(gemm_nn_64), ENTRY(gemm_tn_64), ENTRY(gemm_activated_64), ENTRY(gemm_derived_64),
        ENTRY(weight_grads_64), ENTRY(gemm_nt_128), ENTRY(gemm_nn_128), ENTRY(gemm_tn_128), ENTRY(gemm_activated_128),
        ENTRY(gemm_derived_128), ENTRY(weight_grads_128))
