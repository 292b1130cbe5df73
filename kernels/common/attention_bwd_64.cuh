// The backward pass of attention, as in attention_bwd.cu, for heads of 64 in bf16 by products of warpgroups (common/warpgroup.cuh).
//
// Decomposition: as there, but blocks of 128 queries. What a round adds to is awaited in the next.
#pragma once
#include "attention_64.cuh"
#include "attention_bwd.cuh"

/// Keys of a block.
constexpr u32 KEYS_ROWS = 64;
/// Keys that a queries' block, and queries that a keys' block takes at a time.
constexpr u32 QUERIES_ROUND = 32;
constexpr u32 KEYS_ROUND = 32;

DEVICE void attention_bwd_queries_of_64(const Saved& s, const Between& between, X* dqkv, const Attention& a, const Dropout& dropout, const Task& k, u32 q0,
                                        float* sums) {
    constexpr u32 COLS = QUERIES_ROUND;
    bf16* queries = reinterpret_cast<bf16*>(shared_memory());  // (128, 64)
    bf16* gradients = queries + BLOCK_ROWS * TILE_WIDTH;       // (128, 64)
    bf16* keys = gradients + BLOCK_ROWS * TILE_WIDTH;          // (RING, COLS, 64)
    bf16* values = keys + RING * COLS * TILE_WIDTH;            // (RING, COLS, 64)
    const u64 stride = 3 * k.channels;
    const u32 warp_row = q0 + warp_id() * 16;
    const float scale = a.scale * LOG2E;
    const bf16* dout_rows = s.dout + static_cast<u64>(k.first + q0) * k.channels + k.head * TILE_WIDTH;
    auto fetch = [&](u32 k0, u32 stage) {
        const u32 at = stage * COLS * TILE_WIDTH;
        load_swizzled<COLS, BLOCK_THREADS>(keys + at, operand(s.qkv, k, 1, k0, TILE_WIDTH), stride, k.keys - k0);
        load_swizzled<COLS, BLOCK_THREADS>(values + at, operand(s.qkv, k, 2, k0, TILE_WIDTH), stride, k.keys - k0);
    };

    load_swizzled<BLOCK_ROWS, BLOCK_THREADS>(queries, operand(s.qkv, k, 0, q0, TILE_WIDTH), stride, k.rows - q0);
    load_swizzled<BLOCK_ROWS, BLOCK_THREADS>(gradients, dout_rows, k.channels, k.rows - q0);
    fetch(0, 0);
    cp_async_commit();
    float2 about[2];
    know_rows<TILE_WIDTH>(about, s, between, a, dropout, k, warp_row);
    await_copies();
    __syncthreads();  // every thread's part of queries and gradients has arrived
    const Tile own_queries = warpgroup_rows(queries), own_gradients = warpgroup_rows(gradients), key_tiles = tile_at(keys), value_tiles = tile_at(values);
    float dq[TILE_WIDTH / 8][4] = {};
    u32 stage = 0;
    for (u32 k0 = 0; k0 < k.keys; k0 += COLS, stage = after(stage)) {
        await_copies();
        __syncthreads();  // this round's tiles are there, and all have left those of the round before the last
        if (k0 + COLS < k.keys) fetch(k0 + COLS, after(stage));
        cp_async_commit();
        const Tile key_rows = key_tiles.from(stage * COLS);
        float p[COLS / 8][4], ds[COLS / 8][4];
        begin_products();
        multiply_transposed(p, own_queries, key_rows);
        end_products();
        multiply_transposed(ds, own_gradients, value_tiles.from(stage * COLS));
        end_products();
        const u32 kept = decide<COLS>(between, a, dropout, k, warp_row, k0);
        await_products<1>(p, dq);
        hide_columns<COLS>(p, k.keys - k0);
#pragma unroll
        for (u32 n = 0; n < COLS / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) p[n][i] = power_of_2(p[n][i] * scale - about[i / 2].x);
        await_products<0>(ds);
#pragma unroll
        for (u32 n = 0; n < COLS / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) ds[n][i] = p[n][i] * ((kept >> (4 * n + i) & 1 ? ds[n][i] : 0.0f) - about[i / 2].y);
        FragmentA<bf16> left[COLS / 16];
#pragma unroll
        for (u32 i = 0; i < COLS / 16; i++) to_a(left[i], ds[2 * i], ds[2 * i + 1]);
        begin_products();
        multiply_add(dq, left, key_rows);
        end_products();
    }
    await_products<0>(dq);
    cp_async_wait<0>();  // copies may not outlive the block
    const float factor = a.scale * dropout.scale;
    store_64(dq, {factor, factor}, dqkv + static_cast<u64>(k.first) * stride + k.head * TILE_WIDTH, stride, warp_row, k.rows);
    __syncthreads();  // all have read the last tiles: sums may take their place
    sum_columns<TILE_WIDTH, BLOCK_WARPS>(dq, factor, reinterpret_cast<float*>(queries), sums, TILE_WIDTH);
}

DEVICE void attention_bwd_keys_of_64(const Saved& s, const Between& between, X* dqkv, const Attention& a, const Dropout& dropout, const Task& k, u32 k0,
                                     float* sums) {
    constexpr u32 ROWS = KEYS_ROUND, OWN = KEYS_ROWS, THREADS = OWN / 16 * WARP, WORDS = OWN / BITS;
    bf16* keys = reinterpret_cast<bf16*>(shared_memory());                                    // (OWN, 64)
    bf16* values = keys + OWN * TILE_WIDTH;                                            // (OWN, 64)
    bf16* queries = values + OWN * TILE_WIDTH;                                         // (RING, ROWS, 64)
    bf16* gradients = queries + RING * ROWS * TILE_WIDTH;                                     // (RING, ROWS, 64)
    float2* about = reinterpret_cast<float2*>(gradients + RING * ROWS * TILE_WIDTH);          // (RING, ROWS)
    u32* bits = reinterpret_cast<u32*>(about + RING * ROWS);                                  // (RING, WORDS, ROWS)
    const u64 stride = 3 * k.channels;
    const u32 g = lane_id() / 4, t = lane_id() % 4;
    const u32 warp_key = k0 + warp_id() * 16;
    const u32 keys_left = k.keys > k0 ? k.keys - k0 : 0;
    const float scale = a.scale * LOG2E;
    auto fetch = [&](u32 q0, u32 stage) {
        const bf16* dout_rows = s.dout + static_cast<u64>(k.first + q0) * k.channels + k.head * TILE_WIDTH;
        const u32 to = stage * ROWS * TILE_WIDTH;
        load_swizzled<ROWS, THREADS>(queries + to, operand(s.qkv, k, 0, q0, TILE_WIDTH), stride, k.rows - q0);
        load_swizzled<ROWS, THREADS>(gradients + to, dout_rows, k.channels, k.rows - q0);
        // Beyond the last query everything is 0: its probabilities are 1, but meet gradients of 0.
        const u32 row = threadIdx.x % ROWS, part = threadIdx.x / ROWS;
        const bool exists = q0 + row < k.rows;
        const u64 at = static_cast<u64>(k.first + q0 + (exists ? row : 0)) * a.heads + k.head;
        if (part == 0) cp_async<8>(about + stage * ROWS + row, between.rows + at, exists);
        if (!dropout.threshold) return;
        for (u32 i = part; i < WORDS; i += THREADS / ROWS) {
            const u32 word = k0 / BITS + i;
            const bool drawn = exists && word < between.words;
            cp_async<4>(bits + (stage * WORDS + i) * ROWS + row, between.bits + at * between.words + (drawn ? word : 0), drawn);
        }
    };

    load_swizzled<OWN, THREADS>(keys, operand(s.qkv, k, 1, k0, TILE_WIDTH), stride, keys_left);
    load_swizzled<OWN, THREADS>(values, operand(s.qkv, k, 2, k0, TILE_WIDTH), stride, keys_left);
    fetch(0, 0);
    cp_async_commit();
    await_copies();
    __syncthreads();  // every thread's part of keys and values has arrived
    const Tile own_keys = warpgroup_rows(keys), own_values = warpgroup_rows(values), query_tiles = tile_at(queries), gradient_tiles = tile_at(gradients);
    float dk[TILE_WIDTH / 8][4] = {}, dv[TILE_WIDTH / 8][4] = {};
    u32 stage = 0;
    // A tile of padded keys only keeps its zeros.
    for (u32 q0 = 0; q0 < (keys_left ? k.rows : 0); q0 += ROWS, stage = after(stage)) {
        await_copies();
        __syncthreads();  // this round's tiles are there, and all have left those of the round before the last
        if (q0 + ROWS < k.rows) fetch(q0 + ROWS, after(stage));
        cp_async_commit();
        const Tile query_rows = query_tiles.from(stage * ROWS), gradient_rows = gradient_tiles.from(stage * ROWS);
        float p[ROWS / 8][4], ds[ROWS / 8][4];
        begin_products();
        multiply_transposed(p, own_keys, query_rows);
        multiply_transposed(ds, own_values, gradient_rows);
        end_products();
        const float2* of_queries = about + stage * ROWS;
        const u32* of_warp = bits + (stage * WORDS + warp_id() * 16 / BITS) * ROWS;
        // The bits of the lane's two keys.
        const u32 of_key[2] = {1u << (warp_id() * 16 % BITS + g), 0x100u << (warp_id() * 16 % BITS + g)};
        await_products<0>(p, ds, dv, dk);
        hide_rows<ROWS>(p, k.keys > warp_key ? k.keys - warp_key : 0);
#pragma unroll
        for (u32 n = 0; n < ROWS / 8; n++) {
            const u32 query = n * 8 + 2 * t;
            const float4 two = *reinterpret_cast<const float4*>(of_queries + query);  // lse and delta of the lane's two queries
            const uint2 words = dropout.threshold ? *reinterpret_cast<const uint2*>(of_warp + query) : uint2{~0u, ~0u};
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                differentiate(p[n][2 * half], ds[n][2 * half], scale, float2{two.x, two.y}, words.x & of_key[half]);
                differentiate(p[n][2 * half + 1], ds[n][2 * half + 1], scale, float2{two.z, two.w}, words.y & of_key[half]);
            }
        }
        FragmentA<bf16> left[ROWS / 16], right[ROWS / 16];
#pragma unroll
        for (u32 i = 0; i < ROWS / 16; i++) to_a(left[i], p[2 * i], p[2 * i + 1]), to_a(right[i], ds[2 * i], ds[2 * i + 1]);
        begin_products();
        multiply_add(dv, left, gradient_rows);
        multiply_add(dk, right, query_rows);
        end_products();
    }
    await_products<0>(dv, dk);
    cp_async_wait<0>();  // copies may not outlive the block
    const float factor = a.scale * dropout.scale;
    bf16* to = dqkv + static_cast<u64>(k.first) * stride + k.head * TILE_WIDTH;
    store_64(dk, {factor, factor}, to + k.channels, stride, warp_key, k.rows);
    store_64(dv, {dropout.scale, dropout.scale}, to + 2 * k.channels, stride, warp_key, k.rows);
    __syncthreads();  // all have read the last tiles: sums may take their place
    sum_columns<TILE_WIDTH, OWN / 16>(dk, factor, reinterpret_cast<float*>(keys), sums, TILE_WIDTH);
    sum_columns<TILE_WIDTH, OWN / 16>(dv, dropout.scale, reinterpret_cast<float*>(keys), sums + TILE_WIDTH, TILE_WIDTH);
}
