// Sums and maxima over a warp and a block, always in the same order.
#pragma once
#include "ptx.cuh"

/// Every lane gets the sum; a butterfly, so all lanes add in the same order up to commutation: equal bits.
DEVICE float warp_sum(float x) {
#pragma unroll
    for (u32 d = WARP / 2; d > 0; d /= 2) x += shuffle_xor(x, d);
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
