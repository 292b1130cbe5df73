// The backward pass of attention, as in attention_bwd.cu, for sequences of up to 128 tokens in one kernel.
//
// Decomposition: a block a sequence and head, a warp 16 keys, everything read once. dS passes through shared memory, 64 queries at a time, where the
// warps take dQ = dS K from it, 16 queries and half the head each: 5 products instead of 7. Blocks of a multiprocessor hide each
// other's waits. FLOPs: 10 · T · HS a query and head. Bound: shared memory, instructions.
// In fp32 the tiles exceed shared memory: there are no such kernels.
// Determinism: as there.
#pragma once
#include "attention_bwd.cuh"

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

/// What is known of each query: lse · log2 e and delta, and which of its probabilities are kept, (128) and (128, KEY_BYTES).
template <u32 HSP>
DEVICE void know_queries(float2* about, u8* kept, const Saved& s, const Attention& a, const Dropout& dropout, const Task& k) {
    for (u32 row = threadIdx.x / 4; row < SHORT; row += SHORT_THREADS / 4) {
        const bool exists = row < k.rows;
        const u64 at = static_cast<u64>(k.first + row) * a.heads + k.head;
        const float2 query = know_query<HSP>(s, at, exists, a.head_size, dropout);
        if (threadIdx.x % 4 == 0) about[row] = query;
    }
    if (dropout.threshold) {
        // Four lanes a row and 32 keys.
        for (u32 i = threadIdx.x; i < SHORT * KEY_BYTES; i += SHORT_THREADS) {
            const u32 row = i / KEY_BYTES, key = i % KEY_BYTES / 4 * BITS;
            u32 bits = 0;
            if (row < k.rows && key < k.keys) {
                const Words words = decisions(dropout, k.first + row, k.head, key);
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    bits |= keeps_low(dropout, words.w[j]) ? 1u << 8 * j : 0;
                    bits |= keeps_high(dropout, words.w[j]) ? 2u << 8 * j : 0;
                }
                bits <<= 2 * (lane_id() % 4);
            }
            bits |= shuffle_xor(bits, 1);
            bits |= shuffle_xor(bits, 2);
            if (i % 4 == 0) *reinterpret_cast<u32*>(kept + i) = bits;
        }
    }
}

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
    know_queries<HSP>(w.about, w.bits, s, a, dropout, k);
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
                    differentiate(p[n][2 * half + i], ds[n][2 * half + i], scale, about, bits >> half * 8 & 1);
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

/// grid (1, heads, sequences); partials (sequences, heads, 3 HS); counters (heads, a tree's). `block` computes dqkv and its column sums.
template <typename Block>
DEVICE void attention_bwd_short(const Task& k, const Sums& sums, const Attention& a, Block block) {
    const u32 size = a.head_size, width = 3 * size, count = gridDim.z;
    float* first = sums.partials + static_cast<u64>(k.head) * width;
    const u64 stride = static_cast<u64>(a.heads) * width;
    float* own = first + blockIdx.z * stride;
    if (k.rows == 0) {
        for (u32 c = threadIdx.x; c < width; c += SHORT_THREADS) own[c] = 0.0f;
    } else {
        block(own);
    }
    add_over_blocks(first, width, stride, blockIdx.z, count, sums.counters + k.head * tree_counters(count), reinterpret_cast<u32*>(shared_memory()),
                    [&](u32 c, float total) { sums.dbias[c / size * k.channels + k.head * size + c % size] += total; });
}
