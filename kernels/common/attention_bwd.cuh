// What the backward kernels of attention share.
#pragma once
#include "attention.cuh"
#include "reduce.cuh"
#include "vec.cuh"

/// What a backward block reads.
struct Saved {
    const X *qkv, *out, *dout;
    const float* lse;
};

/// What the queries' kernel leaves for the keys': lse · log2 e and delta without the factor (N, heads), and bits (N, heads, words), one for each
/// key: whether its probability is kept. `bits` is null without dropout.
struct Between {
    float2* rows;
    u32* bits;
    u32 words;
};
constexpr u32 BITS = 32;

/// What they end with: column sums of dqkv, which their blocks add up.
struct Sums {
    float *dbias, *partials;
    u32* counters;
};

/// A lane's share of Σ out ∘ dout over the channels of a head, four lanes a row; `at` is packed row · heads + head.
template <u32 HSP>
DEVICE float delta_share(const Saved& s, u64 at, u32 head_size) {
    const bool aligned = rows_are_aligned(head_size);
    float sum = 0.0f;
#pragma unroll
    for (u32 c0 = 0; c0 < HSP; c0 += 4 * EIGHT) {
        const u32 c = c0 + lane_id() % 4 * EIGHT, count = columns_left(c, head_size);
        if (count == 0) continue;
        float x[EIGHT], y[EIGHT];
        load8(x, s.out + at * head_size + c, count, aligned);
        load8(y, s.dout + at * head_size + c, count, aligned);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) sum += x[i] * y[i];
    }
    return sum;
}

/// P ∘ D and dS of one query and key, in place of its score and dP; `about` holds the query's lse · log2 e and delta.
DEVICE void differentiate(float& score, float& d, float scale, float2 about, bool keep) {
    const float probability = power_of_2(score * scale - about.x);
    d = probability * ((keep ? d : 0.0f) - about.y);
    score = keep ? probability : 0.0f;
}

/// to[c] = factor · column sums of the warp's 16 rows, or += where `more`.
template <u32 TILES>
DEVICE void warp_columns(const float (&acc)[TILES][4], float factor, bool more, float* to) {
#pragma unroll
    for (u32 n = 0; n < TILES; n++)
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            float sum = acc[n][i] + acc[n][i + 2];
            sum += shuffle_xor(sum, 4);
            sum += shuffle_xor(sum, 8);
            sum += shuffle_xor(sum, 16);
            float* at = to + n * 8 + 2 * lane_id() + i;
            if (lane_id() < 4) *at = (more ? *at : 0.0f) + sum * factor;
        }
}

/// to[c] = factor · column sums of the rows of the block's WARPS, c < head size; `scratch` holds (WARPS, HSP), free on entry and return.
template <u32 HSP, u32 WARPS>
DEVICE void sum_columns(const float (&acc)[HSP / 8][4], float factor, float* scratch, float* to, u32 head_size) {
    warp_columns(acc, factor, false, scratch + warp_id() * HSP);
    __syncthreads();  // every warp's sums are written
    if (threadIdx.x < head_size) {
        float total = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) total += scratch[w * HSP + threadIdx.x];
        to[threadIdx.x] = total;
    }
    __syncthreads();  // all have read before scratch is written again
}
