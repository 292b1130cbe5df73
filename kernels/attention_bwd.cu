// Gradient of attention_fwd.cu; probabilities are recomputed from lse, the mask is drawn again (FlashAttention-2, Dao 2023).
//
// With P = exp(S - lse), D the dropout factors, dP = (dO Vᵀ) ∘ D and delta = rowsum(dO ∘ O):
//   dV = (P ∘ D)ᵀ dO,   dS = P ∘ (dP - delta),   dQ = dS K / √HS,   dK = dSᵀ Q / √HS.
// Decomposition, two kernels: queries (a block 64 queries, walking over the keys), which also leaves delta for the other; keys and values
// (a block 64 keys, walking over the queries). Scores are computed in both: 7 products instead of 5, but every gradient has one writer and no
// atomic addition is needed. Tiles are transposed in the second kernel (keys down), so probabilities pass from product to product in registers.
// FLOPs: 14 · T · HS a query and head. Bound: tensor cores and the exponential for long sequences, memory for T = 128.
// Determinism: a key's queries, and a query's keys, are summed in order by one warp.
#include "common/attention.cuh"
#include "common/reduce.cuh"

template <u32 HSP>
DEVICE void attention_bwd_keys(const X* qkv, const X* dout, const float* lse, const float* delta, X* dqkv, const Attention& a,
                               const Dropout& dropout) {
    constexpr u32 ROWS = INNER<HSP>;
    const Task k = task(a);
    const u32 k0 = blockIdx.x * TILE;
    if (k0 >= k.rows) return;
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

    load_tile<TILE, HSP>(keys, operand(qkv, k, 1, k0, a.head_size), stride, keys_left, a.head_size);
    load_tile<TILE, HSP>(values, operand(qkv, k, 2, k0, a.head_size), stride, keys_left, a.head_size);
    float dk[HSP / 8][4] = {}, dv[HSP / 8][4] = {};
    // A tile of padded keys only keeps its zeros.
    for (u32 q0 = 0; q0 < (keys_left ? k.rows : 0); q0 += ROWS) {
        __syncthreads();  // all have read the tiles of the last round
        const X* dout_rows = dout + static_cast<u64>(k.first + q0) * k.channels + k.head * a.head_size;
        load_tile<ROWS, HSP>(queries, operand(qkv, k, 0, q0, a.head_size), stride, k.rows - q0, a.head_size);
        load_tile<ROWS, HSP>(gradients, dout_rows, k.channels, k.rows - q0, a.head_size);
        cp_async_commit();
        for (u32 i = threadIdx.x; i < ROWS; i += ATTENTION_THREADS) {
            const u64 at = static_cast<u64>(k.first + q0 + i) * a.heads + k.head;
            row_lse[i] = q0 + i < k.rows ? lse[at] * LOG2E : INFINITE;  // an infinite lse makes probabilities 0
            row_delta[i] = q0 + i < k.rows ? delta[at] : 0.0f;
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
}

template <u32 HSP>
DEVICE void attention_bwd_queries(const X* qkv, const X* out, const X* dout, const float* lse, float* delta, X* dqkv, const Attention& a,
                                  const Dropout& dropout) {
    constexpr u32 COLS = INNER<HSP>;
    const Task k = task(a);
    const u32 q0 = blockIdx.x * TILE;
    if (q0 >= k.rows) return;
    X* queries = reinterpret_cast<X*>(shared_memory());  // (64, LD)
    X* gradients = queries + TILE * LD<HSP>;             // (64, LD)
    X* keys = gradients + TILE * LD<HSP>;                // (COLS, LD)
    X* values = keys + COLS * LD<HSP>;                   // (COLS, LD)
    const u64 stride = 3 * k.channels;
    const u32 g = lane_id() / 4, t = lane_id() % 4;
    const u32 warp_row = q0 + warp_id() * 16;
    const float scale = a.scale * LOG2E;
    const X* dout_rows = dout + static_cast<u64>(k.first + q0) * k.channels + k.head * a.head_size;

    load_tile<TILE, HSP>(queries, operand(qkv, k, 0, q0, a.head_size), stride, k.rows - q0, a.head_size);
    load_tile<TILE, HSP>(gradients, dout_rows, k.channels, k.rows - q0, a.head_size);
    float row_lse[2], row_delta[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = warp_row + g + 8 * half;
        const bool exists = row < k.rows;
        const u64 at = static_cast<u64>(k.first + row) * a.heads + k.head;
        // Σ out ∘ dout over the head's channels, a row by four lanes: heads lie side by side, so its channels start at `at` · HS.
        float sum = 0.0f;
        for (u32 c = t; exists && c < a.head_size; c += 4) {
            sum += to_float(out[at * a.head_size + c]) * to_float(dout[at * a.head_size + c]);
        }
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        if (exists && t == 0) delta[at] = sum;
        row_lse[half] = exists ? lse[at] * LOG2E : INFINITE;
        row_delta[half] = sum;
    }
    float dq[HSP / 8][4] = {};
    for (u32 k0 = 0; k0 < k.keys; k0 += COLS) {
        __syncthreads();  // all have read the tiles of the last round
        load_tile<COLS, HSP>(keys, operand(qkv, k, 1, k0, a.head_size), stride, k.keys - k0, a.head_size);
        load_tile<COLS, HSP>(values, operand(qkv, k, 2, k0, a.head_size), stride, k.keys - k0, a.head_size);
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
}

#define ATTENTION_BWD(HSP)                                                                                                        \
    KERNEL(ATTENTION_THREADS) attention_bwd_keys_##HSP(const X* qkv, const X* dout, const float* lse, const float* delta, X* dqkv, \
                                                       Attention a, Dropout dropout) {                                            \
        attention_bwd_keys<HSP>(qkv, dout, lse, delta, dqkv, a, at_clock(dropout));                                                \
    }                                                                                                                             \
    KERNEL(ATTENTION_THREADS) attention_bwd_queries_##HSP(const X* qkv, const X* out, const X* dout, const float* lse,            \
                                                          float* delta, X* dqkv, Attention a, Dropout dropout) {                  \
        attention_bwd_queries<HSP>(qkv, out, dout, lse, delta, dqkv, a, at_clock(dropout));                                        \
    }
ATTENTION_BWD(16)
ATTENTION_BWD(32)
ATTENTION_BWD(64)
ATTENTION_BWD(128)

ENTRIES(attention_bwd, ENTRY(attention_bwd_keys_16), ENTRY(attention_bwd_keys_32), ENTRY(attention_bwd_keys_64),
        ENTRY(attention_bwd_keys_128), ENTRY(attention_bwd_queries_16), ENTRY(attention_bwd_queries_32),
        ENTRY(attention_bwd_queries_64), ENTRY(attention_bwd_queries_128))
