// LayerNorm of one row by one warp, the row in registers: shared by norm.cu and embed.cu.
//
// Lane l holds of chunk j the eight columns 256 j + 8 l .. + 8, so every access of a warp is 512 contiguous bytes (bf16).
// CHUNKS chunks hold rows up to 256 · CHUNKS wide.
#pragma once
#include "philox.cuh"
#include "reduce.cuh"
#include "vec.cuh"

constexpr u32 CHUNK = WARP * EIGHT;

/// body(width): where the chunks are full, as in most models, with a width that the compiler knows.
template <u32 CHUNKS, typename Body>
DEVICE void at_width(u32 width, const Body& body) {
    if (width == CHUNKS * CHUNK) {
        body(CHUNKS * CHUNK);
    } else {
        body(width);
    }
}

DEVICE u32 chunk_column(u32 chunk) { return chunk * CHUNK + lane_id() * EIGHT; }

/// 1 / √x: to two units in the last place is enough for bf16.
DEVICE float reciprocal_root(float x) { return sizeof(X) == 2 ? reciprocal_root_approx(x) : 1.0f / sqrtf(x); }

/// Mean and reciprocal standard deviation; the variance takes a second pass over the registers, as E[x²] - E[x]² cancels.
template <u32 CHUNKS>
DEVICE float2 row_statistics(const float (&x)[CHUNKS][EIGHT], u32 width, float eps) {
    float sum = 0.0f;
#pragma unroll
    for (u32 j = 0; j < CHUNKS; j++)
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) sum += x[j][i];  // columns beyond the width hold 0
    const float mean = warp_sum(sum) / static_cast<float>(width);
    float squares = 0.0f;
#pragma unroll
    for (u32 j = 0; j < CHUNKS; j++)
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) {
            const float centred = x[j][i] - mean;
            if (chunk_column(j) + i < width) squares += centred * centred;
        }
    return float2{mean, reciprocal_root(warp_sum(squares) / static_cast<float>(width) + eps)};
}

/// dh = rstd · (dy γ - mean(dy γ) - x̂ · mean(dy γ x̂)) with x̂ = (h - mean) · rstd, in place of dy; adds dy x̂ and dy to the
/// lane's columns of dγ and dβ (sums 0 and 1).
template <u32 CHUNKS, u32 COUNT>
DEVICE void normalize_bwd(float (&dy)[CHUNKS][EIGHT], const float (&h)[CHUNKS][EIGHT], const X* gamma, float2 stats,
                          u32 width, float (&sums)[COUNT][CHUNKS][EIGHT]) {
    const bool aligned = rows_are_aligned(width);
    float sum = 0.0f, sum_x = 0.0f;
#pragma unroll
    for (u32 j = 0; j < CHUNKS; j++) {
        const u32 col = chunk_column(j), count = columns_left(col, width);
        float g[EIGHT];
        load8(g, gamma + (count ? col : 0), count, aligned && count);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) {
            const float x = (h[j][i] - stats.x) * stats.y;
            if (i >= count) continue;
            sums[0][j][i] += dy[j][i] * x;
            sums[1][j][i] += dy[j][i];
            dy[j][i] *= g[i];
            sum += dy[j][i];
            sum_x += dy[j][i] * x;
        }
    }
    const float mean = warp_sum(sum) / static_cast<float>(width), mean_x = warp_sum(sum_x) / static_cast<float>(width);
#pragma unroll
    for (u32 j = 0; j < CHUNKS; j++)
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) {
            const float x = (h[j][i] - stats.x) * stats.y;
            dy[j][i] = stats.y * (dy[j][i] - mean - x * mean_x);
        }
}

/// Adds up COUNT sums a column (dγ, dβ, …) over the warps in order, writes them as this block's partial sums (COUNT, width), and adds
/// all blocks' partial sums to `totals`. `scratch` holds COUNT · width floats.
template <u32 CHUNKS, u32 COUNT>
DEVICE void finish_column_sums(const float (&sums)[COUNT][CHUNKS][EIGHT], u32 width, float* scratch, float* partials,
                               float* const (&totals)[COUNT], u32* counters) {
    for (u32 w = 0; w < blockDim.x / WARP; w++) {
        if (warp_id() == w) {
#pragma unroll
            for (u32 s = 0; s < COUNT; s++)
#pragma unroll
                for (u32 j = 0; j < CHUNKS; j++) {
                    const u32 col = chunk_column(j), count = columns_left(col, width);
                    if (count == 0) continue;
                    float total[EIGHT] = {};
                    if (w) load8(total, scratch + s * width + col, count, rows_are_aligned(width));
#pragma unroll
                    for (u32 i = 0; i < EIGHT; i++) total[i] += sums[s][j][i];
                    store8(scratch + s * width + col, total, count, rows_are_aligned(width));
                }
        }
        __syncthreads();  // one warp after the other adds: the order of the sum is fixed
    }
    const u32 stride = COUNT * width;
    for (u32 c = threadIdx.x; c < stride; c += blockDim.x) partials[static_cast<u64>(blockIdx.x) * stride + c] = scratch[c];
    __syncthreads();  // scratch is read: its first word may be used again
    add_over_blocks(partials, stride, stride, blockIdx.x, gridDim.x, counters, reinterpret_cast<u32*>(scratch), [&](u32 c, float total) {
#pragma unroll
        for (u32 s = 0; s < COUNT; s++) {
            if (totals[s] && c >= s * width && c < (s + 1) * width) totals[s][c - s * width] += total;
        }
    });
}
