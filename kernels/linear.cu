// What stands round the matrix products of linear layers where no product takes it along (gemm.cu does): activations and their
// derivatives, and column sums.
//
// Forward: out = act(pre), a thread eight elements; reads 2 and writes 2 bytes an element (bf16). The product adds the bias.
// Backward: dout *= act'(pre) in place and db from it in the same pass: a block 256 columns of a span of rows; reads 4 and writes
// 2 bytes an element. Without an activation it only reads dout. Bound: memory.
// Determinism: a warp adds its rows in order, a block its warps in order, the blocks that come last the blocks in order.
#include "common/activation.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

constexpr u32 LINEAR_THREADS = 256;
constexpr u32 LINEAR_WARPS = LINEAR_THREADS / WARP;
constexpr u32 AHEAD = 2;

template <Activation A>
DEVICE void act_fwd(const X* pre, X* out, u64 n) {
    const u64 at = (static_cast<u64>(blockIdx.x) * LINEAR_THREADS + threadIdx.x) * EIGHT;
    if (at >= n) return;
    const u32 count = n - at < EIGHT ? static_cast<u32>(n - at) : EIGHT;
    float x[EIGHT];
    load8(x, pre + at, count, count == EIGHT);
#pragma unroll
    for (u32 i = 0; i < EIGHT; i++) x[i] = activate(A, x[i]);
    store8(out + at, x, count, count == EIGHT);
}

/// partials (gridDim.y, width): this block's column sums over its `span` rows; added to dbias by the blocks that come last.
template <Activation A>
DEVICE void act_bwd(X* dout, const X* pre, float* dbias, float* partials, u32* counters, u32 rows, u32 width, u32 pitch,
                         u32 span) {
    const bool aligned = rows_are_aligned(pitch);
    const u32 col = blockIdx.x * WARP * EIGHT + lane_id() * EIGHT, count = columns_left(col, width);
    const u32 first = blockIdx.y * span, end = min_u32(first + span, rows);
    const bool whole = aligned && count == EIGHT;
    float sums[EIGHT] = {};
    auto take = [&](float (&d)[EIGHT], const float (&x)[EIGHT], u64 at) {
        if (A != Activation::NONE) {
#pragma unroll
            for (u32 i = 0; i < EIGHT; i++) d[i] = rounded<X>(d[i] * derivative(A, x[i]));
            store8(dout + at, d, count, whole);
        }
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) sums[i] += d[i];
    };
    u32 row = first + warp_id();
    if (whole) {
        // The next AHEAD rows are on their way while one is computed with.
        Raw8<X> ds[AHEAD], xs[AHEAD];
        auto fetch = [&](u32 r, u32 stage) {
            const u64 at = static_cast<u64>(r < end ? r : first) * pitch + col;
            load_raw(ds[stage], dout + at);
            if (A != Activation::NONE) load_raw(xs[stage], pre + at);
        };
#pragma unroll
        for (u32 stage = 0; stage < AHEAD; stage++) fetch(row + stage * LINEAR_WARPS, stage);
        while (row < end) {
#pragma unroll
            for (u32 stage = 0; stage < AHEAD; stage++, row += LINEAR_WARPS) {
                if (row >= end) break;
                float d[EIGHT], x[EIGHT];
                unpack(d, ds[stage]);
                if (A != Activation::NONE) unpack(x, xs[stage]);
                fetch(row + AHEAD * LINEAR_WARPS, stage);
                take(d, x, static_cast<u64>(row) * pitch + col);
            }
        }
    }
    for (; row < end && count; row += LINEAR_WARPS) {
        const u64 at = static_cast<u64>(row) * pitch + col;
        float d[EIGHT], x[EIGHT];
        load8(d, dout + at, count, false);
        if (A != Activation::NONE) load8(x, pre + at, count, false);
        take(d, x, at);
    }
    float* scratch = reinterpret_cast<float*>(shared_memory());  // (LINEAR_WARPS, 256)
#pragma unroll
    for (u32 i = 0; i < EIGHT; i++) scratch[warp_id() * WARP * EIGHT + lane_id() * EIGHT + i] = sums[i];
    __syncthreads();  // every warp's sums are written
    const u32 c = blockIdx.x * WARP * EIGHT + threadIdx.x;
    if (c < width) {
        float total = 0.0f;
        for (u32 w = 0; w < LINEAR_WARPS; w++) total += scratch[w * WARP * EIGHT + threadIdx.x];
        partials[static_cast<u64>(blockIdx.y) * width + c] = total;
    }
    __syncthreads();  // scratch is read: its first word may be used again
    const u32 first_col = blockIdx.x * WARP * EIGHT;
    add_over_blocks(partials + first_col, min_u32(WARP * EIGHT, width - first_col), width, blockIdx.y, gridDim.y,
                    counters + blockIdx.x * tree_counters(gridDim.y), reinterpret_cast<u32*>(scratch),
                    [&](u32 c, float total) { dbias[first_col + c] += total; });
}

#define ACTIVATION(NAME, KIND)                                                                                        \
    KERNEL(LINEAR_THREADS) NAME##_fwd(const X* pre, X* out, u64 n) {                                                  \
        take_turn();                                                                                                  \
        act_fwd<Activation::KIND>(pre, out, n);                                                                       \
    }                                                                                                                 \
    KERNEL(LINEAR_THREADS) NAME##_bwd(X* dout, const X* pre, float* dbias, float* partials, u32* counters, u32 rows,  \
                                      u32 width, u32 pitch, u32 span) {                                               \
        take_turn();                                                                                                  \
        act_bwd<Activation::KIND>(dout, pre, dbias, partials, counters, rows, width, pitch, span);                    \
    }
ACTIVATION(gelu, GELU)
ACTIVATION(gelu_tanh, GELU_TANH)
ACTIVATION(relu, RELU)

KERNEL(LINEAR_THREADS) bias_bwd(const X* dout, float* dbias, float* partials, u32* counters, u32 rows, u32 width, u32 pitch,
                                   u32 span) {
    take_turn();
    act_bwd<Activation::NONE>(const_cast<X*>(dout), nullptr, dbias, partials, counters, rows, width, pitch, span);
}

ENTRIES(linear, ENTRY(gelu_fwd), ENTRY(gelu_bwd), ENTRY(gelu_tanh_fwd), ENTRY(gelu_tanh_bwd), ENTRY(relu_fwd), ENTRY(relu_bwd),
        ENTRY(bias_bwd))
