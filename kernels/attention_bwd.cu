// Gradient of attention_fwd.cu; probabilities are recomputed from lse, the mask is drawn again (FlashAttention-2, Dao 2023).
//
// With P = exp(S - lse), D the dropout factors, dP = (dO Vᵀ) ∘ D and delta = rowsum(dO ∘ O):
//   dV = (P ∘ D)ᵀ dO,   dS = P ∘ (dP - delta),   dQ = dS K / √HS,   dK = dSᵀ Q / √HS.
// Decomposition: blocks of two kinds, a pair a tile. Queries: 64 of them, walking over the keys. Keys and values: 64 of them, walking over the queries.
// Scores are computed in both: 7 products instead of 5, but every gradient has one writer and no atomic addition is needed. Tiles are transposed
// in the second kind (keys down), so probabilities pass from product to product in registers. Pairs share their operands in the L2 cache.
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

/// A lane's share of Σ out ∘ dout over the channels of a head; `at` is packed row · heads + head.
DEVICE float delta_share(const Saved& s, u64 at, u32 head_size, u32 lane, u32 lanes) {
    const bool aligned = rows_are_aligned(head_size);
    float sum = 0.0f;
    for (u32 c = lane * EIGHT; c < head_size; c += lanes * EIGHT) {
        float x[EIGHT], y[EIGHT];
        load8(x, s.out + at * head_size + c, columns_left(c, head_size), aligned);
        load8(y, s.dout + at * head_size + c, columns_left(c, head_size), aligned);
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
DEVICE void attention_bwd_keys(const Saved& s, X* dqkv, const Attention& a, const Dropout& dropout, const Task& k, u32 k0, float* sums) {
    constexpr u32 ROWS = INNER<HSP>;
    X* keys = reinterpret_cast<X*>(shared_memory());                    // (64, LD)
    X* values = keys + TILE * LD<HSP>;                                  // (64, LD)
    X* queries = values + TILE * LD<HSP>;                               // (ROWS, LD)
    X* gradients = queries + ROWS * LD<HSP>;                            // (ROWS, LD)
    float* row_lse = reinterpret_cast<float*>(gradients + ROWS * LD<HSP>);  // (ROWS), times log2 e
    float* row_delta = row_lse + ROWS;                                  // (ROWS)
    const u64 stride = 3 * k.channels;
    const u32 g = lane_id() / 4, t = lane_id() % 4;
    const u32 warp_key = k0 + warp_id() * 16;
    const u32 keys_left = k.keys > k0 ? k.keys - k0 : 0;
    const float scale = a.scale * LOG2E;

    load_tile<TILE, HSP>(keys, operand(s.qkv, k, 1, k0, a.head_size), stride, keys_left, a.head_size);
    load_tile<TILE, HSP>(values, operand(s.qkv, k, 2, k0, a.head_size), stride, keys_left, a.head_size);
    float dk[HSP / 8][4] = {}, dv[HSP / 8][4] = {};
    // A tile of padded keys only keeps its zeros.
    for (u32 q0 = 0; q0 < (keys_left ? k.rows : 0); q0 += ROWS) {
        __syncthreads();  // all have read the tiles of the last round
        const X* dout_rows = s.dout + static_cast<u64>(k.first + q0) * k.channels + k.head * a.head_size;
        load_tile<ROWS, HSP>(queries, operand(s.qkv, k, 0, q0, a.head_size), stride, k.rows - q0, a.head_size);
        load_tile<ROWS, HSP>(gradients, dout_rows, k.channels, k.rows - q0, a.head_size);
        cp_async_commit();
        constexpr u32 LANES = ATTENTION_THREADS / ROWS;  // of a row
        const u32 row = threadIdx.x / LANES, lane = threadIdx.x % LANES;
        const bool has_row = q0 + row < k.rows;
        const u64 at = static_cast<u64>(k.first + q0 + row) * a.heads + k.head;
        float delta = has_row ? delta_share(s, at, a.head_size, lane, LANES) : 0.0f;
#pragma unroll
        for (u32 d = 1; d < LANES; d *= 2) delta += shuffle_xor(delta, d);
        if (lane == 0) {
            row_lse[row] = has_row ? s.lse[at] * LOG2E : INFINITE;  // an infinite lse makes probabilities 0
            row_delta[row] = delta;
        }
        cp_async_wait<0>();
        __syncthreads();  // every thread's part of the tiles has arrived

        float p[ROWS / 8][4] = {}, ds[ROWS / 8][4] = {};
        multiply_rows<HSP, ROWS>(p, keys + warp_id() * 16 * LD<HSP>, queries);
        multiply_rows<HSP, ROWS>(ds, values + warp_id() * 16 * LD<HSP>, gradients);
#pragma unroll
        for (u32 n = 0; n < ROWS / 8; n++) {
            float keep[4] = {1.0f, 1.0f, 1.0f, 1.0f};
            if (dropout.threshold) keep_keys_by_queries(keep, dropout, k.first + q0 + n * 8, k.head, warp_key);
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 column = n * 8 + 2 * t + i % 2;
                const bool exists = warp_key + g + i / 2 * 8 < k.keys;
                const float probability = exists ? power_of_2(p[n][i] * scale - row_lse[column]) : 0.0f;
                ds[n][i] = probability * (ds[n][i] * keep[i] - row_delta[column]);
                p[n][i] = probability * keep[i];
            }
        }
        multiply_registers<HSP, ROWS>(dv, p, gradients);
        multiply_registers<HSP, ROWS>(dk, ds, queries);
    }
    cp_async_wait<0>();  // copies may not outlive the block
    X* to = dqkv + static_cast<u64>(k.first) * stride + k.head * a.head_size;
    store_rows<HSP>(dk, a.scale, a.scale, to + k.channels, stride, warp_key, k.rows, a.head_size);
    store_rows<HSP>(dv, 1.0f, 1.0f, to + 2 * k.channels, stride, warp_key, k.rows, a.head_size);
    __syncthreads();  // all have read the last tiles: sums may take their place
    sum_columns<HSP>(dk, a.scale, reinterpret_cast<float*>(keys), sums, a.head_size);
    sum_columns<HSP>(dv, 1.0f, reinterpret_cast<float*>(keys), sums + a.head_size, a.head_size);
}

template <u32 HSP>
DEVICE void attention_bwd_queries(const Saved& s, X* dqkv, const Attention& a, const Dropout& dropout, const Task& k, u32 q0, float* sums) {
    constexpr u32 COLS = INNER<HSP>;
    X* queries = reinterpret_cast<X*>(shared_memory());  // (64, LD)
    X* gradients = queries + TILE * LD<HSP>;             // (64, LD)
    X* keys = gradients + TILE * LD<HSP>;                // (COLS, LD)
    X* values = keys + COLS * LD<HSP>;                   // (COLS, LD)
    const u64 stride = 3 * k.channels;
    const u32 g = lane_id() / 4, t = lane_id() % 4;
    const u32 warp_row = q0 + warp_id() * 16;
    const float scale = a.scale * LOG2E;
    const X* dout_rows = s.dout + static_cast<u64>(k.first + q0) * k.channels + k.head * a.head_size;

    load_tile<TILE, HSP>(queries, operand(s.qkv, k, 0, q0, a.head_size), stride, k.rows - q0, a.head_size);
    load_tile<TILE, HSP>(gradients, dout_rows, k.channels, k.rows - q0, a.head_size);
    float row_lse[2], row_delta[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = warp_row + g + 8 * half;
        const bool exists = row < k.rows;
        const u64 at = static_cast<u64>(k.first + row) * a.heads + k.head;
        float sum = exists ? delta_share(s, at, a.head_size, t, 4) : 0.0f;
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        row_lse[half] = exists ? s.lse[at] * LOG2E : INFINITE;
        row_delta[half] = sum;
    }
    float dq[HSP / 8][4] = {};
    for (u32 k0 = 0; k0 < k.keys; k0 += COLS) {
        __syncthreads();  // all have read the tiles of the last round
        load_tile<COLS, HSP>(keys, operand(s.qkv, k, 1, k0, a.head_size), stride, k.keys - k0, a.head_size);
        load_tile<COLS, HSP>(values, operand(s.qkv, k, 2, k0, a.head_size), stride, k.keys - k0, a.head_size);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();  // every thread's part of the tiles has arrived

        float p[COLS / 8][4] = {}, ds[COLS / 8][4] = {};
        multiply_rows<HSP, COLS>(p, queries + warp_id() * 16 * LD<HSP>, keys);
        multiply_rows<HSP, COLS>(ds, gradients + warp_id() * 16 * LD<HSP>, values);
#pragma unroll
        for (u32 n = 0; n < COLS / 8; n++) {
            float keep[4] = {1.0f, 1.0f, 1.0f, 1.0f};
            if (dropout.threshold) keep_queries_by_keys(keep, dropout, k.first + warp_row, k.head, k0 + n * 8);
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const bool exists = k0 + n * 8 + 2 * t + i % 2 < k.keys;
                const float probability = exists ? power_of_2(p[n][i] * scale - row_lse[i / 2]) : 0.0f;
                ds[n][i] = probability * (ds[n][i] * keep[i] - row_delta[i / 2]);
            }
        }
        multiply_registers<HSP, COLS>(dq, ds, keys);
    }
    X* to = dqkv + static_cast<u64>(k.first) * stride + k.head * a.head_size;
    store_rows<HSP>(dq, a.scale, a.scale, to, stride, warp_row, k.rows, a.head_size);
    __syncthreads();  // all have read the last tiles: sums may take their place
    sum_columns<HSP>(dq, a.scale, reinterpret_cast<float*>(queries), sums, a.head_size);
}

/// grid (2 · tiles, heads, sequences); partials (sequences · tiles, heads, 3 HS); counters (heads, 2, a tree's).
template <u32 HSP>
DEVICE void attention_bwd(const Saved& s, X* dqkv, float* dbias, float* partials, u32* counters, const Attention& a, const Dropout& dropout) {
    const Task k = task(a);
    const u32 tiles = gridDim.x / 2, tile = blockIdx.x / 2, of_keys = blockIdx.x % 2, size = a.head_size;
    const u32 index = blockIdx.z * tiles + tile, count = gridDim.z * tiles;
    // Of the queries' columns, or the keys' and the values'.
    const u32 width = of_keys ? 2 * size : size;
    float* first = partials + static_cast<u64>(k.head) * 3 * size + of_keys * size;
    const u64 stride = static_cast<u64>(a.heads) * 3 * size;
    float* own = first + index * stride;
    if (tile * TILE >= k.rows) {
        for (u32 c = threadIdx.x; c < width; c += ATTENTION_THREADS) own[c] = 0.0f;
    } else if (of_keys) {
        attention_bwd_keys<HSP>(s, dqkv, a, dropout, k, tile * TILE, own);
    } else {
        attention_bwd_queries<HSP>(s, dqkv, a, dropout, k, tile * TILE, own);
    }
    add_over_blocks(first, width, stride, index, count, counters + (k.head * 2 + of_keys) * tree_counters(count),
                    reinterpret_cast<u32*>(shared_memory()), [&](u32 c, float total) {
                        const u32 which = of_keys + c / size;
                        dbias[which * k.channels + k.head * size + c % size] += total;
                    });
}

#define ATTENTION_BWD(HSP)                                                                                                        \
    KERNEL(ATTENTION_THREADS) attention_bwd_##HSP(const X* qkv, const X* out, const X* dout, const float* lse, X* dqkv, float* dbias, \
                                                  float* partials, u32* counters, Attention a, Dropout dropout) {                 \
        take_turn();                                                                                                              \
        attention_bwd<HSP>({qkv, out, dout, lse}, dqkv, dbias, partials, counters, a, at_clock(dropout));                          \
    }
ATTENTION_BWD(16)
ATTENTION_BWD(32)
ATTENTION_BWD(64)
ATTENTION_BWD(128)

ENTRIES(attention_bwd, ENTRY(attention_bwd_16), ENTRY(attention_bwd_32), ENTRY(attention_bwd_64), ENTRY(attention_bwd_128))
