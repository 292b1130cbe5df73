// Gradient of attention_fwd.cu; probabilities are recomputed from lse, the mask is drawn again, once (FlashAttention-2, Dao 2023).
//
// With P = exp(S - lse), D the dropout factors, dP = (dO Vᵀ) ∘ D and delta = rowsum(dO ∘ O):
//   dV = (P ∘ D)ᵀ dO,   dS = P ∘ (dP - delta),   dQ = dS K / √HS,   dK = dSᵀ Q / √HS.
// D is 0 or one and the same factor, which is taken out of dV, dS and delta and comes back with the results.
// Decomposition: two kernels (and one for short sequences, common/attention_short.cuh; heads of 64 in bf16 go by
// common/attention_bwd_64.cuh and attention_short_64.cuh). Queries: a block 64 of them, walking over the keys; it leaves
// delta and which probabilities are kept for the other. Keys and values: a block 64 of them, walking over the queries. Scores are computed in
// both: 7 products instead of 5, but every gradient has one writer and no atomic addition is needed. Tiles are transposed in the second (keys
// down), so probabilities pass from product to product in registers. What a block walks over is copied a tile ahead.
// dbias, the column sums of dqkv: a block's tile in registers, then the blocks of a head.
// FLOPs: 14 · T · HS a query and head. Bound: tensor cores and the exponential for long sequences, memory for T = 128.
// Determinism: a key's queries, and a query's keys, are summed in order by one warp; column sums warps, then blocks in order.
#include "common/attention_bwd.cuh"
#ifndef WORKING_FP32
#include "common/attention_short_64.cuh"
#endif

/// Words of a block's keys.
constexpr u32 TILE_WORDS = TILE / BITS;

/// Tiles that a block holds of what it walks over: while one is multiplied with, the next is copied. One where shared memory is short.
template <u32 HSP>
constexpr u32 STAGES = sizeof(X) == 4 && HSP > 64 ? 1 : 2;

template <u32 HSP>
DEVICE void attention_bwd_queries(const Saved& s, const Between& between, X* dqkv, const Attention& a, const Dropout& dropout, const Task& k,
                                  u32 q0, float* sums) {
    constexpr u32 COLS = INNER;
    X* queries = reinterpret_cast<X*>(shared_memory());  // (64, LD)
    X* gradients = queries + TILE * LD<HSP>;             // (64, LD)
    X* keys = gradients + TILE * LD<HSP>;                // (STAGES, COLS, LD)
    X* values = keys + STAGES<HSP> * COLS * LD<HSP>;     // (STAGES, COLS, LD)
    const u64 stride = 3 * k.channels;
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
    float2 about[2];
    know_rows<HSP>(about, s, between, a, dropout, k, warp_row);
    float dq[HSP / 8][4] = {};
    u32 stage = 0;
    for (u32 k0 = 0; k0 < k.keys; k0 += COLS, stage = (stage + 1) % STAGES<HSP>) {
        cp_async_wait<0>();
        __syncthreads();  // this round's tiles are there, and all have left the other stage
        if (STAGES<HSP> == 2 && k0 + COLS < k.keys) fetch(k0 + COLS, stage ^ 1);
        cp_async_commit();
        const X *key_rows = keys + stage * COLS * LD<HSP>, *value_rows = values + stage * COLS * LD<HSP>;
        float p[COLS / 8][4] = {}, ds[COLS / 8][4] = {};
        multiply_rows<HSP, COLS>(p, queries + warp_id() * 16 * LD<HSP>, key_rows);
        multiply_rows<HSP, COLS>(ds, gradients + warp_id() * 16 * LD<HSP>, value_rows);
        hide_columns<COLS>(p, k.keys - k0);
        const u32 kept = decide<COLS>(between, a, dropout, k, warp_row, k0);
#pragma unroll
        for (u32 n = 0; n < COLS / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                ds[n][i] = power_of_2(p[n][i] * scale - about[i / 2].x) * ((kept >> (4 * n + i) & 1 ? ds[n][i] : 0.0f) - about[i / 2].y);
        multiply_registers<HSP, COLS>(dq, ds, key_rows);
        if (STAGES<HSP> == 1 && k0 + COLS < k.keys) {
            __syncthreads();  // all have left the only tiles
            fetch(k0 + COLS, 0);
            cp_async_commit();
        }
    }
    cp_async_wait<0>();  // copies may not outlive the block
    X* to = dqkv + static_cast<u64>(k.first) * stride + k.head * a.head_size;
    const float factor = a.scale * dropout.scale;
    store_rows<HSP>(dq, factor, factor, to, stride, warp_row, k.rows, a.head_size);
    __syncthreads();  // all have read the last tiles: sums may take their place
    sum_columns<HSP, ATTENTION_WARPS>(dq, factor, reinterpret_cast<float*>(queries), sums, a.head_size);
}

template <u32 HSP>
DEVICE void attention_bwd_keys(const Saved& s, const Between& between, X* dqkv, const Attention& a, const Dropout& dropout, const Task& k, u32 k0,
                               float* sums) {
    constexpr u32 ROWS = INNER;
    X* keys = reinterpret_cast<X*>(shared_memory());                                 // (64, LD)
    X* values = keys + TILE * LD<HSP>;                                               // (64, LD)
    X* queries = values + TILE * LD<HSP>;                                            // (STAGES, ROWS, LD)
    X* gradients = queries + STAGES<HSP> * ROWS * LD<HSP>;                           // (STAGES, ROWS, LD)
    float2* about = reinterpret_cast<float2*>(gradients + STAGES<HSP> * ROWS * LD<HSP>);  // (STAGES, ROWS)
    u32* bits = reinterpret_cast<u32*>(about + STAGES<HSP> * ROWS);                  // (STAGES, TILE_WORDS, ROWS)
    const u64 stride = 3 * k.channels;
    const u32 g = lane_id() / 4, t = lane_id() % 4;
    const u32 warp_key = k0 + warp_id() * 16;
    const u32 keys_left = k.keys > k0 ? k.keys - k0 : 0;
    const float scale = a.scale * LOG2E;
    auto fetch = [&](u32 q0, u32 stage) {
        const X* dout_rows = s.dout + static_cast<u64>(k.first + q0) * k.channels + k.head * a.head_size;
        load_tile<ROWS, HSP>(queries + stage * ROWS * LD<HSP>, operand(s.qkv, k, 0, q0, a.head_size), stride, k.rows - q0, a.head_size);
        load_tile<ROWS, HSP>(gradients + stage * ROWS * LD<HSP>, dout_rows, k.channels, k.rows - q0, a.head_size);
        // Beyond the last query everything is 0: its probabilities are 1, but meet gradients of 0.
        const u32 row = q0 + threadIdx.x;
        if (threadIdx.x >= ROWS) return;
        const bool exists = row < k.rows;
        const u64 at = static_cast<u64>(k.first + (exists ? row : 0)) * a.heads + k.head;
        cp_async<8>(about + stage * ROWS + threadIdx.x, between.rows + at, exists);
        if (!dropout.threshold) return;
#pragma unroll
        for (u32 i = 0; i < TILE_WORDS; i++) {
            const u32 word = k0 / BITS + i;
            const bool drawn = exists && word < between.words;
            cp_async<4>(bits + (stage * TILE_WORDS + i) * ROWS + threadIdx.x, between.bits + at * between.words + (drawn ? word : 0), drawn);
        }
    };

    load_tile<TILE, HSP>(keys, operand(s.qkv, k, 1, k0, a.head_size), stride, keys_left, a.head_size);
    load_tile<TILE, HSP>(values, operand(s.qkv, k, 2, k0, a.head_size), stride, keys_left, a.head_size);
    fetch(0, 0);
    cp_async_commit();
    float dk[HSP / 8][4] = {}, dv[HSP / 8][4] = {};
    u32 stage = 0;
    // A tile of padded keys only keeps its zeros.
    for (u32 q0 = 0; q0 < (keys_left ? k.rows : 0); q0 += ROWS, stage = (stage + 1) % STAGES<HSP>) {
        cp_async_wait<0>();
        __syncthreads();  // this round's tiles are there, and all have left the other stage
        if (STAGES<HSP> == 2 && q0 + ROWS < k.rows) fetch(q0 + ROWS, stage ^ 1);
        cp_async_commit();
        const X *query_rows = queries + stage * ROWS * LD<HSP>, *gradient_rows = gradients + stage * ROWS * LD<HSP>;
        float p[ROWS / 8][4] = {}, ds[ROWS / 8][4] = {};
        multiply_rows<HSP, ROWS>(p, keys + warp_id() * 16 * LD<HSP>, query_rows);
        multiply_rows<HSP, ROWS>(ds, values + warp_id() * 16 * LD<HSP>, gradient_rows);
        hide_rows<ROWS>(p, k.keys > warp_key ? k.keys - warp_key : 0);
        const float2* of_queries = about + stage * ROWS;
        const u32* of_warp = bits + (stage * TILE_WORDS + warp_id() * 16 / BITS) * ROWS;
        const u32 shift = warp_id() * 16 % BITS + g;
#pragma unroll
        for (u32 n = 0; n < ROWS / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                const float2 query = of_queries[n * 8 + 2 * t + i];
                const u32 own = dropout.threshold ? of_warp[n * 8 + 2 * t + i] >> shift : ~0u;
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    differentiate(p[n][2 * half + i], ds[n][2 * half + i], scale, query, own >> half * 8 & 1);
                }
            }
        multiply_registers<HSP, ROWS>(dv, p, gradient_rows);
        multiply_registers<HSP, ROWS>(dk, ds, query_rows);
        if (STAGES<HSP> == 1 && q0 + ROWS < k.rows) {
            __syncthreads();  // all have left the only tiles
            fetch(q0 + ROWS, 0);
            cp_async_commit();
        }
    }
    cp_async_wait<0>();  // copies may not outlive the block
    X* to = dqkv + static_cast<u64>(k.first) * stride + k.head * a.head_size;
    const float factor = a.scale * dropout.scale;
    store_rows<HSP>(dk, factor, factor, to + k.channels, stride, warp_key, k.rows, a.head_size);
    store_rows<HSP>(dv, dropout.scale, dropout.scale, to + 2 * k.channels, stride, warp_key, k.rows, a.head_size);
    __syncthreads();  // all have read the last tiles: sums may take their place
    sum_columns<HSP, ATTENTION_WARPS>(dk, factor, reinterpret_cast<float*>(keys), sums, a.head_size);
    sum_columns<HSP, ATTENTION_WARPS>(dv, dropout.scale, reinterpret_cast<float*>(keys), sums + a.head_size, a.head_size);
}

/// grid (tiles, heads, sequences); partials (sequences · tiles, heads, 3 HS); counters (heads, a tree's). `block` computes the ROWS queries or keys
/// from a row on and their columns' sums.
template <bool OF_KEYS, u32 ROWS, typename Block>
DEVICE void attention_bwd(const Task& k, const Sums& sums, const Attention& a, Block block) {
    const u32 size = a.head_size, index = blockIdx.z * gridDim.x + blockIdx.x, count = gridDim.z * gridDim.x;
    // Of the queries' columns, or the keys' and the values'.
    const u32 width = OF_KEYS ? 2 * size : size;
    float* first = sums.partials + static_cast<u64>(k.head) * 3 * size + OF_KEYS * size;
    const u64 stride = static_cast<u64>(a.heads) * 3 * size;
    float* own = first + index * stride;
    if (blockIdx.x * ROWS >= k.rows) {
        for (u32 c = threadIdx.x; c < width; c += blockDim.x) own[c] = 0.0f;
    } else {
        block(blockIdx.x * ROWS, own);
    }
    add_over_blocks(first, width, stride, index, count, sums.counters + k.head * tree_counters(count), reinterpret_cast<u32*>(shared_memory()),
                    [&](u32 c, float total) {
                        const u32 which = OF_KEYS + c / size;
                        sums.dbias[which * k.channels + k.head * size + c % size] += total;
                    });
}

#define ATTENTION_BWD(NAME, OF_KEYS, HSP, BLOCK, ROWS, BLOCKS)                                                                             \
    KERNEL_RESIDENT(ROWS / 16 * WARP, BLOCKS) attention_bwd_##NAME##_##HSP(const X* qkv, const X* out, const X* dout, const float* lse,     \
                                                                           Between between, X* dqkv, Sums sums, Attention a, Dropout dropout) { \
        take_turn();                                                                                                                       \
        const Saved saved = {qkv, out, dout, lse};                                                                                         \
        const Attention known = known_head<HSP>(a);                                                                                        \
        const Dropout drawn = at_clock(dropout);                                                                                           \
        const Task k = task(known);                                                                                                        \
        attention_bwd<OF_KEYS, ROWS>(k, sums, known, [&](u32 row, float* own) { BLOCK(saved, between, dqkv, known, drawn, k, row, own); }); \
    }
ATTENTION_BWD(queries, false, 16, attention_bwd_queries<16>, TILE, 4)
ATTENTION_BWD(queries, false, 32, attention_bwd_queries<32>, TILE, 4)
ATTENTION_BWD(queries, false, 128, attention_bwd_queries<128>, TILE, 2)
ATTENTION_BWD(keys, true, 16, attention_bwd_keys<16>, TILE, 4)
ATTENTION_BWD(keys, true, 32, attention_bwd_keys<32>, TILE, 4)
ATTENTION_BWD(keys, true, 128, attention_bwd_keys<128>, TILE, 2)
#ifdef WORKING_FP32
ATTENTION_BWD(queries, false, 64, attention_bwd_queries<64>, TILE, 4)
ATTENTION_BWD(keys, true, 64, attention_bwd_keys<64>, TILE, 3)
#else
ATTENTION_BWD(queries, false, 64, attention_bwd_queries_of_64, BLOCK_ROWS, PAIR)
ATTENTION_BWD(keys, true, 64, attention_bwd_keys_of_64, KEYS_ROWS, 3)
#endif

#ifdef WORKING_FP32
#define SHORT_ENTRIES
#else
#define ATTENTION_BWD_SHORT(HSP, BLOCK, BLOCKS)                                                                                                     \
    KERNEL_RESIDENT(SHORT_THREADS, BLOCKS) attention_bwd_short_##HSP(const X* qkv, const X* out, const X* dout, const float* lse, X* dqkv, Sums sums,  \
                                                                Attention a, Dropout dropout) {                                             \
        take_turn();                                                                                                                       \
        const Saved saved = {qkv, out, dout, lse};                                                                                         \
        const Attention known = known_head<HSP>(a);                                                                                        \
        const Dropout drawn = at_clock(dropout);                                                                                           \
        const Task k = task(known);                                                                                                        \
        attention_bwd_short(k, sums, known, [&](float* own) { BLOCK(saved, dqkv, known, drawn, k, own); });                                 \
    }
ATTENTION_BWD_SHORT(32, attention_bwd_whole<32>, 2)
ATTENTION_BWD_SHORT(64, attention_bwd_short_of_64, PAIR)
#define SHORT_ENTRIES , ENTRY(attention_bwd_short_32), ENTRY(attention_bwd_short_64)
#endif

ENTRIES(attention_bwd, ENTRY(attention_bwd_queries_16), ENTRY(attention_bwd_queries_32), ENTRY(attention_bwd_queries_64),
        ENTRY(attention_bwd_queries_128), ENTRY(attention_bwd_keys_16), ENTRY(attention_bwd_keys_32), ENTRY(attention_bwd_keys_64),
        ENTRY(attention_bwd_keys_128) SHORT_ENTRIES)
