// The forward pass of attention, as in attention_fwd.cu, for heads of 64 in bf16 by products of warpgroups (common/warpgroup.cuh).
//
// Decomposition: a block 128 queries of one sequence and head, a warp 16 of them; tiles of 64 keys and values, three of them in a ring: while one is
// multiplied with, the next two are copied. Two blocks a multiprocessor: while one multiplies, the other draws and exponentiates.
#pragma once
#include "attention_64.cuh"

/// Keys and values at a time.
constexpr u32 ROUND = 64;

/// Rows of the running softmax: two of a lane's, g and g + 8.
struct Running {
    float m[2], l[2];
};

/// Probabilities without their sums in place of scores; sums and what was added before follow a rising maximum.
DEVICE void exponentiate(float (&s)[ROUND / 8][4], Running& r, float (&acc)[TILE_WIDTH / 8][4], float scale) {
    float rescale[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float highest = -INFINITE;
#pragma unroll
        for (u32 n = 0; n < ROUND / 8; n++) highest = fmaxf(highest, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        highest = fmaxf(highest, shuffle_xor(highest, 1));
        highest = fmaxf(highest, shuffle_xor(highest, 2));
        highest = fmaxf(r.m[half], highest * scale);
        rescale[half] = power_of_2(r.m[half] - highest);  // 0 for the first tile
        r.m[half] = highest;
    }
    if (ballot(rescale[0] != 1.0f || rescale[1] != 1.0f)) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (i % 2 == 0) r.l[i / 2] *= rescale[i / 2];
#pragma unroll
            for (u32 n = 0; n < TILE_WIDTH / 8; n++) acc[n][i] *= rescale[i / 2];
        }
    }
#pragma unroll
    for (u32 n = 0; n < ROUND / 8; n++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            s[n][i] = power_of_2(s[n][i] * scale - r.m[i / 2]);
            r.l[i / 2] += s[n][i];
        }
}

DEVICE void attention_fwd_of_64(const bf16* qkv, bf16* out, float* lse, const Attention& a, const Dropout& dropout) {
    const Task k = task(a);
    const u32 q0 = blockIdx.x * BLOCK_ROWS;
    if (q0 >= k.rows) return;
    bf16* queries = reinterpret_cast<bf16*>(shared_memory());  // (128, 64)
    bf16* keys = queries + BLOCK_ROWS * TILE_WIDTH;            // (RING, ROUND, 64)
    bf16* values = keys + RING * ROUND * TILE_WIDTH;           // (RING, ROUND, 64)
    const u64 stride = 3 * k.channels;
    const u32 g = lane_id() / 4, t = lane_id() % 4;
    const u32 warp_row = q0 + warp_id() * 16;
    auto fetch = [&](u32 k0, u32 stage) {
        const u32 at = stage * ROUND * TILE_WIDTH;
        load_swizzled<ROUND, BLOCK_THREADS>(keys + at, operand(qkv, k, 1, k0, TILE_WIDTH), stride, k.keys - k0);
        load_swizzled<ROUND, BLOCK_THREADS>(values + at, operand(qkv, k, 2, k0, TILE_WIDTH), stride, k.keys - k0);
    };

    load_swizzled<BLOCK_ROWS, BLOCK_THREADS>(queries, operand(qkv, k, 0, q0, TILE_WIDTH), stride, k.rows - q0);
    fetch(0, 0);
    cp_async_commit();
    if (ROUND < k.keys) fetch(ROUND, 1);
    cp_async_commit();
    const Tile own_queries = warpgroup_rows(queries), key_tiles = tile_at(keys), value_tiles = tile_at(values);

    const float scale = a.scale * LOG2E;  // exponentials are powers of 2
    float acc[TILE_WIDTH / 8][4] = {};
    Running r = {{-INFINITE, -INFINITE}, {0.0f, 0.0f}};
    u32 stage = 0;
    for (u32 k0 = 0; k0 < k.keys; k0 += ROUND, stage = after(stage)) {
        await_copies<1>();
        __syncthreads();  // this round's tiles are there, and all have left those of the last
        if (k0 + 2 * ROUND < k.keys) fetch(k0 + 2 * ROUND, after(after(stage)));
        cp_async_commit();
        float s[ROUND / 8][4];
        begin_products();
        multiply_transposed(s, own_queries, key_tiles.from(stage * ROUND));
        end_products();
        await_products<0>(s);
        hide_columns<ROUND>(s, k.keys - k0);
        exponentiate(s, r, acc, scale);
        if (dropout.threshold) drop<ROUND>(s, dropout, k.first + warp_row, k.head, k0);
        FragmentA<bf16> p[ROUND / 16];
#pragma unroll
        for (u32 i = 0; i < ROUND / 16; i++) to_a(p[i], s[2 * i], s[2 * i + 1]);
        begin_products();
        multiply_add(acc, p, value_tiles.from(stage * ROUND));
        end_products();
        await_products<0>(acc);
    }
    cp_async_wait<0>();  // copies may not outlive the block
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        r.l[half] += shuffle_xor(r.l[half], 1);
        r.l[half] += shuffle_xor(r.l[half], 2);
        const u32 row = warp_row + g + 8 * half;
        if (t == 0 && row < k.rows) lse[static_cast<u64>(k.first + row) * a.heads + k.head] = r.m[half] * LN2 + logf(r.l[half]);
    }
    bf16* to = out + static_cast<u64>(k.first) * k.channels + k.head * TILE_WIDTH;
    store_64(acc, {dropout.scale / r.l[0], dropout.scale / r.l[1]}, to, k.channels, warp_row, k.rows);
}
