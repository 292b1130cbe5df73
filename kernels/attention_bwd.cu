// Gradient of attention_fwd.cu; probabilities are recomputed from lse, the mask is drawn again (FlashAttention-2, Dao 2023).
//
// With P = exp(S - lse), D the dropout factors, dP = (dO Vᵀ) ∘ D and delta = rowsum(dO ∘ O):
//   dV = (P ∘ D)ᵀ dO,   dS = P ∘ (dP - delta),   dQ = dS K / √HS,   dK = dSᵀ Q / √HS.
// D is 0 or one and the same factor, which is taken out of dV, dS and delta and comes back with the results.
// Decomposition: two kernels, and one for sequences of up to 128 tokens (below). Queries: a block 64 of them, walking over the keys; it leaves delta and which probabilities are kept for the
// other. Keys and values: a block 64 of them, walking over the queries. Scores are computed in both: 7 products instead of 5, but
// every gradient has one writer and no atomic addition is needed. Tiles are transposed in the second (keys down), so probabilities pass from
// product to product in registers. What a block walks over is copied a tile ahead.
// dbias, the column sums of dqkv: a block's tile in registers, then the blocks of a head.
// FLOPs: 14 · T · HS a query and head. Bound: tensor cores and the exponential for long sequences, memory for T = 128.
// Determinism: a key's queries, and a query's keys, are summed in order by one warp; column sums warps, then blocks in order.
#include "common/attention.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

/// What a backward block reads.
struct Saved {
    const X *qkv, *out, *dout;
    const float* lse;
};

/// What the queries' kernel leaves for the keys': delta without the factor (N, heads), and bits (N, heads, words), one for each key: whether its probability is kept.
/// `bits` is null without dropout.
struct Between {
    float* delta;
    u32* bits;
    u32 words;
};
constexpr u32 BITS = 32;

/// What the keys' kernel knows of a query.
struct alignas(16) Query {
    float lse;  // times log2 e; infinite beyond the last query, which makes probabilities 0
    float delta;
    u32 bits[TILE / BITS];  // of the block's keys
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

/// to[c] = factor · column sums of the block's 64 rows, c < HSP; `scratch` holds (ATTENTION_WARPS, HSP), free on entry and return.
template <u32 HSP>
DEVICE void sum_columns(const float (&acc)[HSP / 8][4], float factor, float* scratch, float* to, u32 head_size) {
    const u32 g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (u32 n = 0; n < HSP / 8; n++)
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            float sum = acc[n][i] + acc[n][i + 2];
            sum += shuffle_xor(sum, 4);
            sum += shuffle_xor(sum, 8);
            sum += shuffle_xor(sum, 16);
            if (g == 0) scratch[warp_id() * HSP + n * 8 + 2 * t + i] = sum * factor;
        }
    __syncthreads();  // every warp's sums are written
    if (threadIdx.x < head_size) {
        float total = 0.0f;
#pragma unroll
        for (u32 w = 0; w < ATTENTION_WARPS; w++) total += scratch[w * HSP + threadIdx.x];
        to[threadIdx.x] = total;
    }
    __syncthreads();  // all have read before scratch is written again
}

template <u32 HSP>
DEVICE void attention_bwd_queries(const Saved& s, const Between& between, X* dqkv, const Attention& a, const Dropout& dropout, const Task& k,
                                  u32 q0, float* sums) {
    constexpr u32 COLS = INNER;
    X* queries = reinterpret_cast<X*>(shared_memory());  // (64, LD)
    X* gradients = queries + TILE * LD<HSP>;             // (64, LD)
    X* keys = gradients + TILE * LD<HSP>;                // (2, COLS, LD)
    X* values = keys + 2 * COLS * LD<HSP>;               // (2, COLS, LD)
    const u64 stride = 3 * k.channels;
    const u32 g = lane_id() / 4, t = lane_id() % 4;
    const u32 warp_row = q0 + warp_id() * 16;
    const float scale = a.scale * LOG2E;
    const X* dout_rows = s.dout + static_cast<u64>(k.first + q0) * k.channels + k.head * a.head_size;
    auto fetch = [&](u32 k0, u32 stage) {
        load_tile<COLS, HSP>(keys + stage * COLS * LD<HSP>, operand(s.qkv, k, 1, k0, a.head_size), stride, k.keys - k0, a.head_size);
        load_tile<COLS, HSP>(values + stage * COLS * LD<HSP>, operand(s.qkv, k, 2, k0, a.head_size), stride, k.keys - k0, a.head_size);
    };

    load_tile<TILE, HSP>(queries, operand(s.qkv, k, 0, q0, a.head_size), stride, k.rows - q0, a.head_size);
    load_tile<TILE, HSP>(gradients, dout_rows, k.channels, k.rows - q0, a.head_size);
    fetch(0, 0);
    cp_async_commit();
    float row_lse[2], row_delta[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = warp_row + g + 8 * half;
        const bool exists = row < k.rows;
        const u64 at = static_cast<u64>(k.first + row) * a.heads + k.head;
        float sum = exists ? delta_share<HSP>(s, at, a.head_size) : 0.0f;
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        sum /= dropout.scale;
        row_lse[half] = exists ? s.lse[at] * LOG2E : INFINITE;
        row_delta[half] = sum;
        if (exists && t == 0) between.delta[at] = sum;
    }
    float dq[HSP / 8][4] = {};
    u32 stage = 0;
    for (u32 k0 = 0; k0 < k.keys; k0 += COLS, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // this round's tiles are there, and all have left the other stage
        if (k0 + COLS < k.keys) fetch(k0 + COLS, stage ^ 1);
        cp_async_commit();
        const X *key_rows = keys + stage * COLS * LD<HSP>, *value_rows = values + stage * COLS * LD<HSP>;
        float p[COLS / 8][4] = {}, ds[COLS / 8][4] = {};
        multiply_rows<HSP, COLS>(p, queries + warp_id() * 16 * LD<HSP>, key_rows);
        multiply_rows<HSP, COLS>(ds, gradients + warp_id() * 16 * LD<HSP>, value_rows);
        hide_columns<COLS>(p, k.keys - k0);
        if (dropout.threshold) {
            u32 of_row[2] = {};
#pragma unroll
            for (u32 n = 0; n < COLS / 8; n += 2) {
                const Words words = decisions(dropout, k.first + warp_row, k.head, k0 + n * 8);
#pragma unroll
                for (u32 c = 0; c < 4; c++) {
                    const u32 tile = n + c / 2, half = c % 2;
                    const bool low = keeps_low(dropout, words.w[c]), high = keeps_high(dropout, words.w[c]);
                    float* d = ds[tile] + half * 2;
                    d[0] = low ? d[0] : 0.0f;
                    d[1] = high ? d[1] : 0.0f;
                    of_row[half] |= ((low ? 1u : 0u) | (high ? 2u : 0u)) << tile * 8;
                }
            }
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                of_row[half] <<= k0 % BITS + 2 * t;
                of_row[half] |= shuffle_xor(of_row[half], 1);
                of_row[half] |= shuffle_xor(of_row[half], 2);
            }
            // Tiles are as wide as a word, or half as wide: the second half finds the first in memory.
            if (t < 2 && warp_row + g + 8 * t < k.rows) {
                const u64 at = static_cast<u64>(k.first + warp_row + g + 8 * t) * a.heads + k.head;
                u32* to = between.bits + at * between.words + k0 / BITS;
                const u32 own = t ? of_row[1] : of_row[0];
                *to = k0 % BITS ? *to | own : own;
            }
        }
#pragma unroll
        for (u32 n = 0; n < COLS / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) ds[n][i] = power_of_2(p[n][i] * scale - row_lse[i / 2]) * (ds[n][i] - row_delta[i / 2]);
        multiply_registers<HSP, COLS>(dq, ds, key_rows);
    }
    cp_async_wait<0>();  // copies may not outlive the block
    X* to = dqkv + static_cast<u64>(k.first) * stride + k.head * a.head_size;
    const float factor = a.scale * dropout.scale;
    store_rows<HSP>(dq, factor, factor, to, stride, warp_row, k.rows, a.head_size);
    __syncthreads();  // all have read the last tiles: sums may take their place
    sum_columns<HSP>(dq, factor, reinterpret_cast<float*>(queries), sums, a.head_size);
}

template <u32 HSP>
DEVICE void attention_bwd_keys(const Saved& s, const Between& between, X* dqkv, const Attention& a, const Dropout& dropout, const Task& k, u32 k0,
                               float* sums) {
    constexpr u32 ROWS = INNER;
    X* keys = reinterpret_cast<X*>(shared_memory());                                 // (64, LD)
    X* values = keys + TILE * LD<HSP>;                                               // (64, LD)
    X* queries = values + TILE * LD<HSP>;                                            // (2, ROWS, LD)
    X* gradients = queries + 2 * ROWS * LD<HSP>;                                     // (2, ROWS, LD)
    Query* about = reinterpret_cast<Query*>(gradients + 2 * ROWS * LD<HSP>);         // (2, ROWS)
    const u64 stride = 3 * k.channels;
    const u32 g = lane_id() / 4, t = lane_id() % 4;
    const u32 warp_key = k0 + warp_id() * 16;
    const u32 keys_left = k.keys > k0 ? k.keys - k0 : 0;
    const float scale = a.scale * LOG2E;
    auto fetch = [&](u32 q0, u32 stage) {
        const X* dout_rows = s.dout + static_cast<u64>(k.first + q0) * k.channels + k.head * a.head_size;
        load_tile<ROWS, HSP>(queries + stage * ROWS * LD<HSP>, operand(s.qkv, k, 0, q0, a.head_size), stride, k.rows - q0, a.head_size);
        load_tile<ROWS, HSP>(gradients + stage * ROWS * LD<HSP>, dout_rows, k.channels, k.rows - q0, a.head_size);
    };
    // Of query q0 + thread.
    auto look = [&](u32 q0) {
        Query query = {INFINITE, 0.0f, {~0u, ~0u}};
        const u32 row = q0 + threadIdx.x;
        if (threadIdx.x < ROWS && row < k.rows) {
            const u64 at = static_cast<u64>(k.first + row) * a.heads + k.head;
            query.lse = s.lse[at] * LOG2E, query.delta = between.delta[at];
#pragma unroll
            for (u32 i = 0; i < TILE / BITS; i++) {
                const u32 word = k0 / BITS + i;
                if (between.bits && word < between.words) query.bits[i] = between.bits[at * between.words + word];
            }
        }
        return query;
    };

    load_tile<TILE, HSP>(keys, operand(s.qkv, k, 1, k0, a.head_size), stride, keys_left, a.head_size);
    load_tile<TILE, HSP>(values, operand(s.qkv, k, 2, k0, a.head_size), stride, keys_left, a.head_size);
    fetch(0, 0);
    cp_async_commit();
    Query next = look(0);
    if (threadIdx.x < ROWS) about[threadIdx.x] = next;
    float dk[HSP / 8][4] = {}, dv[HSP / 8][4] = {};
    u32 stage = 0;
    // A tile of padded keys only keeps its zeros.
    for (u32 q0 = 0; q0 < (keys_left ? k.rows : 0); q0 += ROWS, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // this round's tiles are there, and all have left the other stage
        const bool more = q0 + ROWS < k.rows;
        if (more) {
            fetch(q0 + ROWS, stage ^ 1);
            next = look(q0 + ROWS);
        }
        cp_async_commit();
        const X *query_rows = queries + stage * ROWS * LD<HSP>, *gradient_rows = gradients + stage * ROWS * LD<HSP>;
        float p[ROWS / 8][4] = {}, ds[ROWS / 8][4] = {};
        multiply_rows<HSP, ROWS>(p, keys + warp_id() * 16 * LD<HSP>, query_rows);
        multiply_rows<HSP, ROWS>(ds, values + warp_id() * 16 * LD<HSP>, gradient_rows);
        hide_rows<ROWS>(p, k.keys > warp_key ? k.keys - warp_key : 0);
#pragma unroll
        for (u32 n = 0; n < ROWS / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                const Query query = about[stage * ROWS + n * 8 + 2 * t + i];
                const u32 bits = (warp_id() < 2 ? query.bits[0] : query.bits[1]) >> (warp_id() % 2 * 16 + g);
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    float &x = p[n][2 * half + i], &d = ds[n][2 * half + i];
                    const float probability = power_of_2(x * scale - query.lse);
                    const bool keep = bits >> half * 8 & 1;
                    d = probability * ((keep ? d : 0.0f) - query.delta);
                    x = keep ? probability : 0.0f;
                }
            }
        multiply_registers<HSP, ROWS>(dv, p, gradient_rows);
        multiply_registers<HSP, ROWS>(dk, ds, query_rows);
        if (more && threadIdx.x < ROWS) about[(stage ^ 1) * ROWS + threadIdx.x] = next;
    }
    cp_async_wait<0>();  // copies may not outlive the block
    X* to = dqkv + static_cast<u64>(k.first) * stride + k.head * a.head_size;
    const float factor = a.scale * dropout.scale;
    store_rows<HSP>(dk, factor, factor, to + k.channels, stride, warp_key, k.rows, a.head_size);
    store_rows<HSP>(dv, dropout.scale, dropout.scale, to + 2 * k.channels, stride, warp_key, k.rows, a.head_size);
    __syncthreads();  // all have read the last tiles: sums may take their place
    sum_columns<HSP>(dk, factor, reinterpret_cast<float*>(keys), sums, a.head_size);
    sum_columns<HSP>(dv, dropout.scale, reinterpret_cast<float*>(keys), sums + a.head_size, a.head_size);
}

/// What both kernels end with: column sums of dqkv, which their blocks add up.
struct Sums {
    float *dbias, *partials;
    u32* counters;
};

/// grid (tiles, heads, sequences); partials (sequences · tiles, heads, 3 HS); counters (heads, a tree's).
template <u32 HSP, bool OF_KEYS>
DEVICE void attention_bwd(const Saved& s, const Between& between, X* dqkv, const Sums& sums, const Attention& a, const Dropout& dropout) {
    const Task k = task(a);
    const u32 size = a.head_size, index = blockIdx.z * gridDim.x + blockIdx.x, count = gridDim.z * gridDim.x;
    // Of the queries' columns, or the keys' and the values'.
    const u32 width = OF_KEYS ? 2 * size : size;
    float* first = sums.partials + static_cast<u64>(k.head) * 3 * size + OF_KEYS * size;
    const u64 stride = static_cast<u64>(a.heads) * 3 * size;
    float* own = first + index * stride;
    if (blockIdx.x * TILE >= k.rows) {
        for (u32 c = threadIdx.x; c < width; c += ATTENTION_THREADS) own[c] = 0.0f;
    } else if (OF_KEYS) {
        attention_bwd_keys<HSP>(s, between, dqkv, a, dropout, k, blockIdx.x * TILE, own);
    } else {
        attention_bwd_queries<HSP>(s, between, dqkv, a, dropout, k, blockIdx.x * TILE, own);
    }
    add_over_blocks(first, width, stride, index, count, sums.counters + k.head * tree_counters(count), reinterpret_cast<u32*>(shared_memory()),
                    [&](u32 c, float total) {
                        const u32 which = OF_KEYS + c / size;
                        sums.dbias[which * k.channels + k.head * size + c % size] += total;
                    });
}

#ifndef WORKING_FP32
// Sequences of up to 128 tokens, in bf16: a block a sequence and head, a warp 16 keys, everything read once. dS passes through shared memory, 64
// queries at a time, where the warps take dQ = dS K from it, 16 queries and half the head each: 5 products. Blocks of a multiprocessor
// hide each other's waits.
constexpr u32 SHORT = 128;
constexpr u32 SHORT_WARPS = SHORT / 16;
constexpr u32 SHORT_THREADS = SHORT_WARPS * WARP;
/// Queries whose dS is held, the warps that share them, and elements between its rows: a key's.
constexpr u32 HALF = SHORT / 2;
constexpr u32 DOWN = HALF / 16;
constexpr u32 DS_LD = HALF + VECTOR;
/// Queries at a time in registers.
constexpr u32 FEW = 16;
/// Bytes of a query's bits.
constexpr u32 KEY_BYTES = SHORT / 8;

template <u32 HSP>
struct Whole {
    X *queries, *gradients, *keys, *values;  // (128, LD)
    X* ds;                                   // (128 keys, DS_LD)
    float2* about;                           // (128): lse · log2 e and delta of a query
    u8* bits;                                // (128, KEY_BYTES): which of a query's probabilities are kept
    float* sums;                             // (DOWN, HSP): column sums of dQ
};

template <u32 HSP>
DEVICE Whole<HSP> whole() {
    Whole<HSP> w;
    w.queries = reinterpret_cast<X*>(shared_memory());
    w.gradients = w.queries + SHORT * LD<HSP>;
    w.keys = w.gradients + SHORT * LD<HSP>;
    w.values = w.keys + SHORT * LD<HSP>;
    w.ds = w.values + SHORT * LD<HSP>;
    w.about = reinterpret_cast<float2*>(w.ds + SHORT * DS_LD);
    w.bits = reinterpret_cast<u8*>(w.about + SHORT);
    w.sums = reinterpret_cast<float*>(w.bits + SHORT * KEY_BYTES);
    return w;
}

/// Everything that the block reads.
template <u32 HSP>
DEVICE void load_whole(const Whole<HSP>& w, const Saved& s, const Attention& a, const Dropout& dropout, const Task& k) {
    const u64 stride = 3 * k.channels;
    const X* dout_rows = s.dout + static_cast<u64>(k.first) * k.channels + k.head * a.head_size;
    load_tile<SHORT, HSP, SHORT_THREADS>(w.queries, operand(s.qkv, k, 0, 0, a.head_size), stride, k.rows, a.head_size);
    load_tile<SHORT, HSP, SHORT_THREADS>(w.keys, operand(s.qkv, k, 1, 0, a.head_size), stride, k.keys, a.head_size);
    load_tile<SHORT, HSP, SHORT_THREADS>(w.gradients, dout_rows, k.channels, k.rows, a.head_size);
    load_tile<SHORT, HSP, SHORT_THREADS>(w.values, operand(s.qkv, k, 2, 0, a.head_size), stride, k.keys, a.head_size);
    cp_async_commit();
    for (u32 row = threadIdx.x / 4; row < SHORT; row += SHORT_THREADS / 4) {
        const bool exists = row < k.rows;
        const u64 at = static_cast<u64>(k.first + row) * a.heads + k.head;
        float delta = exists ? delta_share<HSP>(s, at, a.head_size) : 0.0f;
        delta += shuffle_xor(delta, 1);
        delta += shuffle_xor(delta, 2);
        if (threadIdx.x % 4 == 0) w.about[row] = float2{exists ? s.lse[at] * LOG2E : INFINITE, delta / dropout.scale};
    }
    if (dropout.threshold) {
        for (u32 i = threadIdx.x; i < SHORT * KEY_BYTES; i += SHORT_THREADS) {
            const u32 row = i / KEY_BYTES, eight = i % KEY_BYTES;
            if (row >= k.rows || eight * 8 >= k.keys) continue;
            const Words words = philox(dropout, mask_index(k.head) / 8 + eight, k.first + row);
            u32 bits = 0;
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                bits |= keeps_low(dropout, words.w[j]) ? 1u << 2 * j : 0;
                bits |= keeps_high(dropout, words.w[j]) ? 2u << 2 * j : 0;
            }
            w.bits[i] = static_cast<u8>(bits);
        }
    }
    cp_async_wait<0>();
    __syncthreads();  // everything is there
}

/// dK and dV of the warp's 16 keys from 64 queries, and their dS.
template <u32 HSP>
DEVICE void add_queries(float (&dk)[HSP / 8][4], float (&dv)[HSP / 8][4], const Whole<HSP>& w, const Attention& a, const Dropout& dropout, const Task& k,
                        u32 q0) {
    const u32 g = lane_id() / 4, t = lane_id() % 4, warp_key = warp_id() * 16;
    const float scale = a.scale * LOG2E;
#pragma unroll 1
    for (u32 q = q0; q < q0 + HALF; q += FEW) {
        float p[FEW / 8][4] = {}, ds[FEW / 8][4] = {};
        multiply_rows<HSP, FEW>(p, w.keys + warp_key * LD<HSP>, w.queries + q * LD<HSP>);
        multiply_rows<HSP, FEW>(ds, w.values + warp_key * LD<HSP>, w.gradients + q * LD<HSP>);
        hide_rows<FEW>(p, k.keys > warp_key ? k.keys - warp_key : 0);
#pragma unroll
        for (u32 n = 0; n < FEW / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                const u32 query = q + n * 8 + 2 * t + i;
                const float2 about = w.about[query];
                const u32 bits = dropout.threshold ? *reinterpret_cast<const u16*>(w.bits + query * KEY_BYTES + warp_key / 8) >> g : ~0u;
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    float &x = p[n][2 * half + i], &d = ds[n][2 * half + i];
                    const float probability = power_of_2(x * scale - about.x);
                    const bool keep = bits >> half * 8 & 1;
                    d = probability * ((keep ? d : 0.0f) - about.y);
                    x = keep ? probability : 0.0f;
                }
            }
#pragma unroll
            for (u32 half = 0; half < 2; half++)
                store2(w.ds + (warp_key + g + half * 8) * DS_LD + q - q0 + n * 8 + 2 * t, ds[n][2 * half], ds[n][2 * half + 1]);
        }
        multiply_registers<HSP, FEW>(dv, p, w.gradients + q * LD<HSP>);
        multiply_registers<HSP, FEW>(dk, ds, w.queries + q * LD<HSP>);
    }
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

/// Writes dqkv, and its column sums (3, HS) to `own`.
template <u32 HSP>
DEVICE void attention_bwd_whole(const Saved& s, X* dqkv, const Attention& a, const Dropout& dropout, const Task& k, float* own) {
    constexpr u32 ACROSS = HSP / 2;  // columns of dQ that a warp computes
    const Whole<HSP> w = whole<HSP>();
    load_whole(w, s, a, dropout, k);
    const u64 stride = 3 * k.channels;
    const float factor = a.scale * dropout.scale;
    const u32 down = warp_id() % DOWN * 16, across = warp_id() / DOWN * ACROSS;
    X* to = dqkv + static_cast<u64>(k.first) * stride + k.head * a.head_size;
    float dk[HSP / 8][4] = {}, dv[HSP / 8][4] = {};
#pragma unroll 1
    for (u32 q0 = 0; q0 < k.rows; q0 += HALF) {
        if (q0) __syncthreads();  // all have read the first half's dS
        add_queries(dk, dv, w, a, dropout, k, q0);
        __syncthreads();  // dS is whole
        float dq[ACROSS / 8][4] = {};
#pragma unroll 2
        for (u32 key = 0; key < k.keys; key += 16) {
            FragmentA<X> left;
            load_a_columns(left, w.ds + key * DS_LD + down, DS_LD);
#pragma unroll
            for (u32 n = 0; n < ACROSS; n += 16) {
                FragmentB<X> right[2];
                load_b_rows(right, w.keys + key * LD<HSP> + across + n, LD<HSP>);
                mma(dq[n / 8], left, right[0]);
                mma(dq[n / 8 + 1], left, right[1]);
            }
        }
        warp_columns(dq, factor, q0, w.sums + warp_id() % DOWN * HSP + across);
        if (across < a.head_size) store_rows<ACROSS>(dq, factor, factor, to + across, stride, q0 + down, k.rows, a.head_size - across);
    }
    store_rows<HSP>(dk, factor, factor, to + k.channels, stride, warp_id() * 16, k.rows, a.head_size);
    store_rows<HSP>(dv, dropout.scale, dropout.scale, to + 2 * k.channels, stride, warp_id() * 16, k.rows, a.head_size);
    __syncthreads();  // all have read the tiles: sums may take their place
    float* scratch = reinterpret_cast<float*>(w.queries);  // (SHORT_WARPS, 2, HSP): of dK and dV
    warp_columns(dk, factor, false, scratch + warp_id() * 2 * HSP);
    warp_columns(dv, dropout.scale, false, scratch + (warp_id() * 2 + 1) * HSP);
    __syncthreads();  // every warp's sums are written
    for (u32 c = threadIdx.x; c < 3 * HSP; c += SHORT_THREADS) {
        float total = 0.0f;
        if (c < HSP) {
            for (u32 v = 0; v < DOWN; v++) total += w.sums[v * HSP + c];
        } else {
            for (u32 v = 0; v < SHORT_WARPS; v++) total += scratch[v * 2 * HSP + c - HSP];
        }
        if (c % HSP < a.head_size) own[c / HSP * a.head_size + c % HSP] = total;
    }
    __syncthreads();  // scratch is read: its first word may be used again
}

/// grid (1, heads, sequences); partials (sequences, heads, 3 HS); counters (heads, a tree's).
template <u32 HSP>
DEVICE void attention_bwd_short(const Saved& s, X* dqkv, const Sums& sums, const Attention& a, const Dropout& dropout) {
    const Task k = task(a);
    const u32 size = a.head_size, width = 3 * size, count = gridDim.z;
    float* first = sums.partials + static_cast<u64>(k.head) * width;
    const u64 stride = static_cast<u64>(a.heads) * width;
    float* own = first + blockIdx.z * stride;
    if (k.rows == 0) {
        for (u32 c = threadIdx.x; c < width; c += SHORT_THREADS) own[c] = 0.0f;
    } else {
        attention_bwd_whole<HSP>(s, dqkv, a, dropout, k, own);
    }
    add_over_blocks(first, width, stride, blockIdx.z, count, sums.counters + k.head * tree_counters(count), reinterpret_cast<u32*>(shared_memory()),
                    [&](u32 c, float total) { sums.dbias[c / size * k.channels + k.head * size + c % size] += total; });
}

#define ATTENTION_BWD_SHORT(HSP)                                                                                                            \
    KERNEL_RESIDENT(SHORT_THREADS, 2) attention_bwd_short_##HSP(const X* qkv, const X* out, const X* dout, const float* lse, X* dqkv, Sums sums,  \
                                                                Attention a, Dropout dropout) {                                             \
        take_turn();                                                                                                                       \
        at_head_size<HSP>(a, [&](const Attention& known) {                                                                                  \
            attention_bwd_short<HSP>({qkv, out, dout, lse}, dqkv, sums, known, at_clock(dropout));                                          \
        });                                                                                                                                \
    }
ATTENTION_BWD_SHORT(32)
ATTENTION_BWD_SHORT(64)
#endif

#define ATTENTION_BWD(NAME, OF_KEYS, HSP, BLOCKS)                                                                                          \
    KERNEL_RESIDENT(ATTENTION_THREADS, BLOCKS) attention_bwd_##NAME##_##HSP(const X* qkv, const X* out, const X* dout, const float* lse,    \
                                                                             Between between, X* dqkv, Sums sums, Attention a, Dropout dropout) { \
        take_turn();                                                                                                                       \
        at_head_size<HSP>(a, [&](const Attention& known) {                                                                                  \
            attention_bwd<HSP, OF_KEYS>({qkv, out, dout, lse}, between, dqkv, sums, known, at_clock(dropout));                              \
        });                                                                                                                                \
    }
ATTENTION_BWD(queries, false, 16, 4)
ATTENTION_BWD(queries, false, 32, 4)
ATTENTION_BWD(queries, false, 64, 4)
ATTENTION_BWD(queries, false, 128, 2)
ATTENTION_BWD(keys, true, 16, 4)
ATTENTION_BWD(keys, true, 32, 4)
ATTENTION_BWD(keys, true, 64, 3)
ATTENTION_BWD(keys, true, 128, 2)

#ifdef WORKING_FP32
#define SHORT_ENTRIES
#else
#define SHORT_ENTRIES , ENTRY(attention_bwd_short_32), ENTRY(attention_bwd_short_64)
#endif
ENTRIES(attention_bwd, ENTRY(attention_bwd_queries_16), ENTRY(attention_bwd_queries_32), ENTRY(attention_bwd_queries_64),
        ENTRY(attention_bwd_queries_128), ENTRY(attention_bwd_keys_16), ENTRY(attention_bwd_keys_32), ENTRY(attention_bwd_keys_64),
        ENTRY(attention_bwd_keys_128) SHORT_ENTRIES)
