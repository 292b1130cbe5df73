// out = dropout(softmax(Q Kᵀ / √HS)) V for packed sequences, bidirectional, in the way of FlashAttention-2 (Dao 2023): scores exist
// 64 × 64 at a time, in registers.
//
// Heads of 64 in bf16 go by common/attention_fwd_64.cuh. The others:
// Decomposition: a block 64 queries of one sequence and head, a warp 16 of them; tiles of 64 keys and values come by asynchronous copies, the
// next keys while this tile's values are multiplied. Running maximum m and sum l a row; when m rises, what was summed is rescaled.
// FLOPs: 4 · T · HS a query and head. Bytes: qkv once, keys and values once more for every further 64 queries (L2), out. Bound: tensor cores and
// the exponential for long sequences, memory for T = 128.
// Saved: lse = m + ln l of the scaled scores. Determinism: a query's keys are summed in order by one warp.
#include "common/attention.cuh"
#ifndef WORKING_FP32
#include "common/attention_fwd_64.cuh"
#endif

template <u32 HSP>
DEVICE void attention_fwd(const X* qkv, X* out, float* lse, const Attention& a, const Dropout& dropout) {
    const Task k = task(a);
    const u32 q0 = blockIdx.x * TILE;
    if (q0 >= k.rows) return;
    X* queries = reinterpret_cast<X*>(shared_memory());  // (64, LD)
    X* keys = queries + TILE * LD<HSP>;                  // (64, LD)
    X* values = keys + TILE * LD<HSP>;                   // (64, LD)
    const u64 stride = 3 * k.channels;
    const u32 g = lane_id() / 4, t = lane_id() % 4;
    const u32 warp_row = q0 + warp_id() * 16;

    load_tile<TILE, HSP>(queries, operand(qkv, k, 0, q0, a.head_size), stride, k.rows - q0, a.head_size);
    load_tile<TILE, HSP>(keys, operand(qkv, k, 1, 0, a.head_size), stride, k.keys, a.head_size);
    cp_async_commit();
    load_tile<TILE, HSP>(values, operand(qkv, k, 2, 0, a.head_size), stride, k.keys, a.head_size);
    cp_async_commit();

    const float scale = a.scale * LOG2E;  // exponentials are powers of 2
    float acc[HSP / 8][4] = {};
    float m[2] = {-INFINITE, -INFINITE}, l[2] = {0.0f, 0.0f};
    for (u32 k0 = 0; k0 < k.keys; k0 += TILE) {
        const u32 next = k0 + TILE;
        cp_async_wait<1>();
        __syncthreads();  // every thread's part of the keys (and queries) has arrived
        float s[TILE / 8][4] = {};
        multiply_rows<HSP, TILE>(s, queries + warp_id() * 16 * LD<HSP>, keys);
        __syncthreads();  // all have read the keys: the next may come
        if (next < k.keys) load_tile<TILE, HSP>(keys, operand(qkv, k, 1, next, a.head_size), stride, k.keys - next, a.head_size);
        cp_async_commit();

        hide_columns<TILE>(s, k.keys - k0);
        float highest[2] = {-INFINITE, -INFINITE};
#pragma unroll
        for (u32 n = 0; n < TILE / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) highest[i / 2] = fmaxf(highest[i / 2], s[n][i]);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            highest[half] = fmaxf(highest[half], shuffle_xor(highest[half], 1));
            highest[half] = fmaxf(highest[half], shuffle_xor(highest[half], 2));
            highest[half] = fmaxf(m[half], highest[half] * scale);
            const float rescale = power_of_2(m[half] - highest[half]);  // 0 for the first tile
            m[half] = highest[half];
            l[half] *= rescale;
#pragma unroll
            for (u32 n = 0; n < HSP / 8; n++) acc[n][2 * half] *= rescale, acc[n][2 * half + 1] *= rescale;
        }
#pragma unroll
        for (u32 n = 0; n < TILE / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                s[n][i] = power_of_2(s[n][i] * scale - m[i / 2]);
                l[i / 2] += s[n][i];
            }
        if (dropout.threshold) drop<TILE>(s, dropout, k.first + warp_row, k.head, k0);
        cp_async_wait<1>();
        __syncthreads();  // every thread's part of the values has arrived
        multiply_registers<HSP, TILE>(acc, s, values);
        __syncthreads();  // all have read the values: the next may come
        if (next < k.keys) load_tile<TILE, HSP>(values, operand(qkv, k, 2, next, a.head_size), stride, k.keys - next, a.head_size);
        cp_async_commit();
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        l[half] += shuffle_xor(l[half], 1);
        l[half] += shuffle_xor(l[half], 2);
        const u32 row = warp_row + g + 8 * half;
        if (t == 0 && row < k.rows) lse[static_cast<u64>(k.first + row) * a.heads + k.head] = m[half] * LN2 + logf(l[half]);
    }
    X* to = out + static_cast<u64>(k.first) * k.channels + k.head * a.head_size;
    store_rows<HSP>(acc, dropout.scale / l[0], dropout.scale / l[1], to, k.channels, warp_row, k.rows, a.head_size);
}

#define ATTENTION_FWD(HSP)                                                                                                   \
    KERNEL_RESIDENT(ATTENTION_THREADS, HSP <= 64 ? 4 : 2) attention_fwd_##HSP(const X* qkv, X* out, float* lse, Attention a, Dropout dropout) {          \
        take_turn();                                                                                                         \
        attention_fwd<HSP>(qkv, out, lse, known_head<HSP>(a), at_clock(dropout));                                             \
    }
ATTENTION_FWD(16)
ATTENTION_FWD(32)
ATTENTION_FWD(128)
#ifdef WORKING_FP32
ATTENTION_FWD(64)
#else
KERNEL_RESIDENT(BLOCK_THREADS, 2) attention_fwd_64(const X* qkv, X* out, float* lse, Attention a, Dropout dropout) {
    take_turn();
    attention_fwd_of_64(qkv, out, lse, known_head<64>(a), at_clock(dropout));
}
#endif

ENTRIES(attention_fwd, ENTRY(attention_fwd_16), ENTRY(attention_fwd_32), ENTRY(attention_fwd_64), ENTRY(attention_fwd_128))
