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

/// lse · log2 e of a query and its delta without the factor, by four lanes: of one that does not exist, what makes its probabilities 0.
template <u32 HSP>
DEVICE float2 know_query(const Saved& s, u64 at, bool exists, u32 head_size, const Dropout& dropout) {
    float delta = exists ? delta_share<HSP>(s, at, head_size) : 0.0f;
    delta += shuffle_xor(delta, 1);
    delta += shuffle_xor(delta, 2);
    return float2{exists ? s.lse[at] * LOG2E : INFINITE, delta / dropout.scale};
}

/// The same of the lane's two of the warp's 16 queries from `warp_row` on, left for the keys' kernel.
template <u32 HSP>
DEVICE void know_rows(float2 (&about)[2], const Saved& s, const Between& between, const Attention& a, const Dropout& dropout, const Task& k, u32 warp_row) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = warp_row + lane_id() / 4 + 8 * half;
        const u64 at = static_cast<u64>(k.first + row) * a.heads + k.head;
        about[half] = know_query<HSP>(s, at, row < k.rows, a.head_size, dropout);
        if (row < k.rows && lane_id() % 4 == 0) between.rows[at] = about[half];
    }
}

/// Which probabilities of the lane's two rows are kept, of the COLS keys from `key` on, a word's or half a word's: bit 4n + i is element i of C tile n.
template <u32 COLS>
DEVICE u32 draw(const Dropout& dropout, const Task& k, u32 warp_row, u32 key) {
    static_assert(COLS <= BITS, "one block of Philox a lane and row");
    u32 kept = 0;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const Words words = decisions(dropout, k.first + warp_row + lane_id() / 4 + half * 8, k.head, key / BITS * BITS);
#pragma unroll
        for (u32 n = 0; n < COLS / 8; n++) {
            const u32 word = COLS < BITS && key % BITS ? words.w[(n + 2) % 4] : words.w[n], bit = 4 * n + 2 * half;
            kept |= keeps_low(dropout, word) ? 1u << bit : 0;
            kept |= keeps_high(dropout, word) ? 2u << bit : 0;
        }
    }
    return kept;
}

/// Leaves what `draw` decided for the keys' kernel. Of half a word the second finds the first in memory.
template <u32 COLS>
DEVICE void hand_on(const Between& between, u32 kept, const Attention& a, const Task& k, u32 warp_row, u32 key) {
    const u32 g = lane_id() / 4, t = lane_id() % 4;
    u32 of_row[2] = {};
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
#pragma unroll
        for (u32 n = 0; n < COLS / 8; n++) of_row[half] |= (kept >> (4 * n + 2 * half) & 3u) << 8 * n;
        of_row[half] <<= key % BITS + 2 * t;
        of_row[half] |= shuffle_xor(of_row[half], 1);
        of_row[half] |= shuffle_xor(of_row[half], 2);
    }
    const u32 row = warp_row + g + 8 * t;
    if (t < 2 && row < k.rows) {
        u32* to = between.bits + (static_cast<u64>(k.first + row) * a.heads + k.head) * between.words + key / BITS;
        const u32 own = t ? of_row[1] : of_row[0];
        *to = COLS < BITS && key % BITS ? *to | own : own;
    }
}

/// Both; without dropout all are kept.
template <u32 COLS>
DEVICE u32 decide(const Between& between, const Attention& a, const Dropout& dropout, const Task& k, u32 warp_row, u32 key) {
    if (!dropout.threshold) return ~0u;
    const u32 kept = draw<COLS>(dropout, k, warp_row, key);
    hand_on<COLS>(between, kept, a, k, warp_row, key);
    return kept;
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
