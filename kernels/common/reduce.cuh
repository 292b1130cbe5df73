// Sums and maxima over a warp and a block, always in the same order.
#pragma once
#include "ptx.cuh"

/// Every lane gets the sum; a butterfly, so all lanes add in the same order up to commutation: equal bits.
DEVICE float warp_sum(float x) {
#pragma unroll
    for (u32 d = WARP / 2; d > 0; d /= 2) x += shuffle_xor(x, d);
    return x;
}

DEVICE float warp_max(float x) {
#pragma unroll
    for (u32 d = WARP / 2; d > 0; d /= 2) x = fmaxf(x, shuffle_xor(x, d));
    return x;
}

/// The sum over the block's threads, on every thread. `scratch` holds one float a warp and is free on return.
DEVICE float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();  // the warps' sums are written
    float total = 0.0f;
    for (u32 w = 0; w < blockDim.x / WARP; w++) total += scratch[w];
    __syncthreads();  // all have read before scratch is used again
    return total;
}

/// Integers that are ordered as the floats are.
DEVICE u32 to_order(float x) {
    const u32 bits = float_to_bits(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
DEVICE float from_order(u32 order) { return bits_to_float(order >> 31 ? order & 0x7fffffffu : ~order); }

/// A score and who has it.
struct Best {
    float score;
    u32 index;
};

/// The higher score; of equals the lower index. NaN never wins.
DEVICE Best better(Best a, Best b) {
    const bool second = b.score > a.score || (b.score == a.score && b.index < a.index);
    return second ? b : a;
}

DEVICE Best warp_best(Best x) {
#pragma unroll
    for (u32 d = WARP / 2; d > 0; d /= 2) {
        const Best other = {shuffle_xor(x.score, d), shuffle_xor(x.index, d)};
        x = better(x, other);
    }
    return x;
}

/// As `block_sum`; `scratch` holds one `Best` a warp.
DEVICE Best block_best(Best x, Best* scratch) {
    x = warp_best(x);
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();  // the warps' best are written
    Best best = scratch[0];
    for (u32 w = 1; w < blockDim.x / WARP; w++) best = better(best, scratch[w]);
    __syncthreads();  // all have read before scratch is used again
    return best;
}

/// Whether this block is the last of `count` to get here; what the others wrote before is visible to it then. `counter` is 0 before the
/// first and after the last; `word` is a free word of shared memory. Which block is last varies, what it then adds up and in which
/// order does not.
DEVICE bool last_block(u32* counter, u32 count, u32* word) {
    __threadfence();   // this thread's partial sums, before the block is counted
    __syncthreads();   // every thread's
    if (threadIdx.x == 0) *word = atomicAdd(counter, 1u) + 1 == count;
    __syncthreads();  // the answer is written
    const bool last = *word != 0;
    __threadfence();  // the other blocks' partial sums, after they were counted
    if (last && threadIdx.x == 0) *counter = 0;
    __syncthreads();  // all have read the answer before its word is used again
    return last;
}

/// Blocks whose sums are added up before others'; mirrored by the launchers.
constexpr u32 GROUP = 16;

/// Counters of `add_over_blocks`: one a group of each level.
DEVICE u32 tree_counters(u32 count) {
    u32 counters = 0;
    do {
        count = ceil_div(count, GROUP);
        counters += count;
    } while (count > 1);
    return counters;
}

/// total += first[0] + first[stride] + … of `count` rows that other blocks wrote, in order, eight loads under way at a time: of one
/// column, or of four side by side.
DEVICE void column_sums(float (&total)[1], const float* first, u32 count, u64 stride) {
    for (u32 p = 0; p < count; p += 8) {
        float x[8];
#pragma unroll
        for (u32 i = 0; i < 8; i++) x[i] = load_fresh(first + (p + i < count ? p + i : 0) * stride);
#pragma unroll
        for (u32 i = 0; i < 8; i++) total[0] += p + i < count ? x[i] : 0.0f;
    }
}
DEVICE void column_sums(float (&total)[4], const float* first, u32 count, u64 stride) {
    for (u32 p = 0; p < count; p += 8) {
        float4 x[8];
#pragma unroll
        for (u32 i = 0; i < 8; i++) x[i] = load4_fresh(first + (p + i < count ? p + i : 0) * stride);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            if (p + i < count) total[0] += x[i].x, total[1] += x[i].y, total[2] += x[i].z, total[3] += x[i].w;
        }
    }
}

/// One group's rows: their sums to the first of them, or to `add` where there is no other group. COLUMNS a thread at a time.
template <u32 COLUMNS, typename Add>
DEVICE void add_group(float* first, u32 width, u64 stride, u32 members, bool top, const Add& add) {
    for (u32 c = threadIdx.x * COLUMNS; c < width; c += blockDim.x * COLUMNS) {
        float total[COLUMNS] = {};
        column_sums(total, first + c, members, stride);
#pragma unroll
        for (u32 i = 0; i < COLUMNS; i++) {
            if (top) {
                add(c + i, total[i]);
            } else {
                first[c + i] = total[i];
            }
        }
    }
}

/// Adds up the column sums of `count` blocks, in the same order every time: of every GROUP blocks the last to get here adds their
/// rows, of every GROUP groups the last the groups', and so on (one block alone would wait for memory as often as there are rows). Each
/// block calls it once its own row sums[index · stride + c], c < width, is written; one block's threads call add(c, total). `counters`
/// are zeros, and are zeros again at the end; `word` is a free word of shared memory.
template <typename Add>
DEVICE void add_over_blocks(float* sums, u32 width, u64 stride, u32 index, u32 count, u32* counters, u32* word, Add add) {
    const bool aligned = width % 4 == 0 && stride % 4 == 0 && reinterpret_cast<u64>(sums) % 16 == 0;
    while (true) {
        const u32 group = index / GROUP, groups = ceil_div(count, GROUP), members = min_u32(GROUP, count - group * GROUP);
        if (!last_block(counters + group, members, word)) return;
        float* first = sums + group * GROUP * stride;
        if (aligned) {
            add_group<4>(first, width, stride, members, groups == 1, add);
        } else {
            add_group<1>(first, width, stride, members, groups == 1, add);
        }
        if (groups == 1) return;
        counters += groups, index = group, count = groups, stride *= GROUP;
    }
}
