// The backward pass of attention for sequences of up to 128 tokens, as in attention_short.cuh, for heads of 64 by products of warpgroups.
//
// Decomposition: a block a sequence and head, a warp 16 keys; 16 queries at a time. dS passes through shared memory, where a warpgroup takes
// dQ = dS K of 64 queries from it: 5 products instead of 7, everything read once.
#pragma once
#include "attention_bwd_64.cuh"
#include "attention_short.cuh"

static_assert(SHORT == BLOCK_ROWS && SHORT_THREADS == BLOCK_THREADS, "a block is a whole sequence");

/// Writes dqkv, and its column sums (3, 64) to `own`.
DEVICE void attention_bwd_short_of_64(const Saved& s, bf16* dqkv, const Attention& a, const Dropout& dropout, const Task& k, float* own) {
    bf16* queries = reinterpret_cast<bf16*>(shared_memory());            // (128, 64)
    bf16* gradients = queries + SHORT * TILE_WIDTH;                      // (128, 64)
    bf16* keys = gradients + SHORT * TILE_WIDTH;                         // (128, 64)
    bf16* values = keys + SHORT * TILE_WIDTH;                            // (128, 64)
    bf16* all_ds = values + SHORT * TILE_WIDTH;                          // (2 halves of the queries, 128 keys, 64)
    float2* about = reinterpret_cast<float2*>(all_ds + 2 * SHORT * TILE_WIDTH);  // (128)
    u8* kept = reinterpret_cast<u8*>(about + SHORT);                     // (128, KEY_BYTES)
    const u64 stride = 3 * k.channels;
    const u32 g = lane_id() / 4, t = lane_id() % 4, warp_key = warp_id() * 16;
    const float scale = a.scale * LOG2E;
    load_swizzled<SHORT, SHORT_THREADS>(queries, operand(s.qkv, k, 0, 0, TILE_WIDTH), stride, k.rows);
    load_swizzled<SHORT, SHORT_THREADS>(keys, operand(s.qkv, k, 1, 0, TILE_WIDTH), stride, k.keys);
    load_swizzled<SHORT, SHORT_THREADS>(gradients, s.dout + static_cast<u64>(k.first) * k.channels + k.head * TILE_WIDTH, k.channels, k.rows);
    load_swizzled<SHORT, SHORT_THREADS>(values, operand(s.qkv, k, 2, 0, TILE_WIDTH), stride, k.keys);
    cp_async_commit();
    know_queries<TILE_WIDTH>(about, kept, s, a, dropout, k);
    await_copies();
    __syncthreads();  // everything is there

    const Tile own_keys = warpgroup_rows(keys), own_values = warpgroup_rows(values), query_tile = tile_at(queries), gradient_tile = tile_at(gradients);
    float dk[TILE_WIDTH / 8][4] = {}, dv[TILE_WIDTH / 8][4] = {};
    // Whole halves: beyond the last query dS is 0.
    const u32 end = ceil_div(k.rows, TILE_WIDTH) * TILE_WIDTH;
#pragma unroll 1
    for (u32 q = 0; q < end; q += FEW) {
        float p[FEW / 8][4], ds[FEW / 8][4];
        begin_products();
        multiply_transposed(p, own_keys, query_tile.from(q));
        multiply_transposed(ds, own_values, gradient_tile.from(q));
        end_products();
        await_products<0>(p, ds);
        hide_rows<FEW>(p, k.keys > warp_key ? k.keys - warp_key : 0);
#pragma unroll
        for (u32 n = 0; n < FEW / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                const u32 query = q + n * 8 + 2 * t + i;
                const u32 bits = dropout.threshold ? *reinterpret_cast<const u16*>(kept + query * KEY_BYTES + warp_key / 8) >> g : ~0u;
#pragma unroll
                for (u32 half = 0; half < 2; half++)
                    differentiate(p[n][2 * half + i], ds[n][2 * half + i], scale, about[query], bits >> half * 8 & 1);
            }
        FragmentA<bf16> left[1], right[1];
        to_a(left[0], p[0], p[1]);
        to_a(right[0], ds[0], ds[1]);
        begin_products();
        multiply_add(dv, left, gradient_tile.from(q));
        multiply_add(dk, right, query_tile.from(q));
        end_products();
        bf16* to = all_ds + q / TILE_WIDTH * SHORT * TILE_WIDTH;
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            *reinterpret_cast<u32*>(to + swizzled(warp_key + g + i % 2 * 8, q % TILE_WIDTH / CHUNK + i / 2) + 2 * t) = right[0].r[i];
        await_products<0>(dv, dk);
    }
    fence_products();
    __syncthreads();  // dS is whole, and nobody reads queries and gradients again

    const u32 half = threadIdx.x / WARPGROUP;  // of the queries
    float dq[TILE_WIDTH / 8][4];
    begin_products();
    multiply_columns<SHORT>(dq, {all_ds + half * SHORT * TILE_WIDTH, of_first_lane(tile_at(all_ds).from(half * SHORT).low)}, tile_at(keys));
    end_products();
    const float factor = a.scale * dropout.scale;
    bf16* to = dqkv + static_cast<u64>(k.first) * stride + k.head * TILE_WIDTH;
    float* scratch = reinterpret_cast<float*>(queries);
    store_64(dk, {factor, factor}, to + k.channels, stride, warp_key, k.rows);
    sum_columns<TILE_WIDTH, SHORT_WARPS>(dk, factor, scratch, own + TILE_WIDTH, TILE_WIDTH);
    store_64(dv, {dropout.scale, dropout.scale}, to + 2 * k.channels, stride, warp_key, k.rows);
    sum_columns<TILE_WIDTH, SHORT_WARPS>(dv, dropout.scale, scratch, own + 2 * TILE_WIDTH, TILE_WIDTH);
    await_products<0>(dq);
    // Without a query in this half its dS was never written.
    if (half * TILE_WIDTH >= k.rows) clear(dq);
    store_64(dq, {factor, factor}, to, stride, warp_key, k.rows);
    sum_columns<TILE_WIDTH, SHORT_WARPS>(dq, factor, scratch, own, TILE_WIDTH);
}
