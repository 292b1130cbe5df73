// y = LN(h), h = residual + dropout(x) (Ba et al. 2016), and its gradient.
//
// Decomposition: a warp a row, the row in registers (common/layernorm.cuh), so x, the residual and y cross the memory bus once.
// Bytes a row, bf16: forward reads 2C (x) + 2C (residual), writes 2C (h) + 2C (y); backward reads 2C (dy) + 2C (h), writes 2C
// (dx) + 2C (d residual). Bound: memory.
// Saved: h in place of x, mean, rstd. The dropout mask is drawn again in the backward pass.
// Determinism: dγ, dβ and Σ dx (the bias gradient of the linear layer before) are summed over rows by one warp in row order, over warps
// in order, and over blocks in order by whichever block comes last; no float atomics.
#include "common/layernorm.cuh"

constexpr u32 NORM_THREADS = 128;

template <u32 CHUNKS>
DEVICE void add_norm_fwd(X* x, const X* residual, Dropout dropout, const u32* numbers, const X* gamma, const X* beta,
                         float eps, X* y, float* mean, float* rstd, u32 rows, u32 width) {
    const u32 row = blockIdx.x * (NORM_THREADS / WARP) + warp_id();
    if (row >= rows) return;
    const bool aligned = rows_are_aligned(width);
    const u64 start = static_cast<u64>(row) * width;
    float h[CHUNKS][EIGHT];
#pragma unroll
    for (u32 j = 0; j < CHUNKS; j++) {
        const u32 col = chunk_column(j), count = columns_left(col, width);
        if (count == 0) {
#pragma unroll
            for (u32 i = 0; i < EIGHT; i++) h[j][i] = 0.0f;
            continue;
        }
        load8(h[j], x + start + col, count, aligned);
        drop8(h[j], dropout, numbers ? numbers[row] : row, col);
        if (residual) {
            float r[EIGHT];
            load8(r, residual + start + col, count, aligned);
#pragma unroll
            for (u32 i = 0; i < EIGHT; i++) h[j][i] += r[i];
        }
        // Statistics are of what is stored: the backward pass reads that.
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) h[j][i] = rounded<X>(h[j][i]);
        store8(x + start + col, h[j], count, aligned);
    }
    const float2 stats = row_statistics(h, width, eps);
#pragma unroll
    for (u32 j = 0; j < CHUNKS; j++) {
        const u32 col = chunk_column(j), count = columns_left(col, width);
        if (count == 0) continue;
        float g[EIGHT], b[EIGHT];
        load8(g, gamma + col, count, aligned);
        load8(b, beta + col, count, aligned);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) h[j][i] = (h[j][i] - stats.x) * stats.y * g[i] + b[i];
        store8(y + start + col, h[j], count, aligned);
    }
    if (lane_id() == 0) {
        mean[row] = stats.x;
        rstd[row] = stats.y;
    }
}

template <u32 CHUNKS>
DEVICE void add_norm_bwd(const X* h, Dropout dropout, const u32* numbers, const X* gamma, const float* mean,
                         const float* rstd, const X* dy, X* dx, X* dresidual, float* dgamma, float* dbeta, float* dbias, float* partials, u32* counters, u32 rows,
                         u32 width) {
    const bool aligned = rows_are_aligned(width);
    float sums[3][CHUNKS][EIGHT] = {};  // dγ, dβ, Σ dx
    const u32 warps = gridDim.x * (NORM_THREADS / WARP);
    for (u32 row = blockIdx.x * (NORM_THREADS / WARP) + warp_id(); row < rows; row += warps) {
        float d[CHUNKS][EIGHT], x[CHUNKS][EIGHT];
#pragma unroll
        for (u32 j = 0; j < CHUNKS; j++) {
            const u32 col = chunk_column(j), count = columns_left(col, width);
            const u64 at = static_cast<u64>(row) * width + (count ? col : 0);
            load8(d[j], dy + at, count, aligned && count);
            load8(x[j], h + at, count, aligned && count);
        }
        normalize_bwd(d, x, gamma, float2{mean[row], rstd[row]}, width, sums);
#pragma unroll
        for (u32 j = 0; j < CHUNKS; j++) {
            const u32 col = chunk_column(j), count = columns_left(col, width);
            if (count == 0) continue;
            const u64 at = static_cast<u64>(row) * width + col;
            if (dresidual) store8(dresidual + at, d[j], count, aligned);
            drop8(d[j], dropout, numbers ? numbers[row] : row, col);
            store8(dx + at, d[j], count, aligned);
#pragma unroll
            for (u32 i = 0; i < EIGHT; i++) sums[2][j][i] += d[j][i];
        }
    }
    float* const totals[3] = {dgamma, dbeta, dbias};
    finish_column_sums(sums, width, reinterpret_cast<float*>(shared_memory()), partials, totals, counters);
}

#define NORM(CHUNKS, BLOCKS)                                                                                                      \
    KERNEL(NORM_THREADS) add_norm_fwd_##CHUNKS(X* x, const X* residual, Dropout dropout, const u32* numbers,               \
                                               const X* gamma, const X* beta, float eps, X* y, float* mean, float* rstd,  \
                                               u32 rows, u32 width) {                                                     \
        take_turn();                                                                                                      \
        at_width<CHUNKS>(width, [&](u32 known) {                                                                           \
            add_norm_fwd<CHUNKS>(x, residual, at_clock(dropout), numbers, gamma, beta, eps, y, mean, rstd, rows, known);    \
        });                                                                                                               \
    }                                                                                                                     \
    KERNEL_RESIDENT(NORM_THREADS, BLOCKS) add_norm_bwd_##CHUNKS(const X* h, Dropout dropout, const u32* numbers, const X* gamma,            \
                                               const float* mean, const float* rstd, const X* dy, X* dx, X* dresidual,    \
                                               float* dgamma, float* dbeta, float* dbias, float* partials, u32* counters, \
                                               u32 rows, u32 width) {                                                     \
        take_turn();                                                                                                      \
        at_width<CHUNKS>(width, [&](u32 known) {                                                                           \
            add_norm_bwd<CHUNKS>(h, at_clock(dropout), numbers, gamma, mean, rstd, dy, dx, dresidual, dgamma, dbeta, dbias, partials, counters,   \
                                 rows, known);                                                                             \
        });                                                                                                               \
    }
NORM(1, 5)
NORM(2, 4)
NORM(3, 3)
NORM(4, 2)

ENTRIES(norm, ENTRY(add_norm_fwd_1), ENTRY(add_norm_fwd_2), ENTRY(add_norm_fwd_3), ENTRY(add_norm_fwd_4),
        ENTRY(add_norm_bwd_1), ENTRY(add_norm_bwd_2), ENTRY(add_norm_bwd_3), ENTRY(add_norm_bwd_4))
