// What the kernels of attention for heads of 64 in bf16 share: their blocks and how these load and store (common/warpgroup.cuh).
#pragma once
#include "attention.cuh"
#include "warpgroup.cuh"

constexpr u32 BLOCK_ROWS = 128;
constexpr u32 BLOCK_WARPS = BLOCK_ROWS / 16;
constexpr u32 BLOCK_THREADS = BLOCK_WARPS * WARP;
/// Blocks a multiprocessor: while one multiplies, another draws and exponentiates. Where the assembler would spill registers for two, one.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr u32 PAIR = 1;
#else
constexpr u32 PAIR = 2;
#endif
/// Tiles in shared memory of what a block walks over: one is multiplied with; two are being copied, or one and products with the last are under
/// way.
constexpr u32 RING = 3;

DEVICE u32 after(u32 stage) { return stage + 1 < RING ? stage + 1 : 0; }

/// Lane t of four holds row t of a 4 × 4 matrix before, column t after.
DEVICE void transpose_quad(u32 (&w)[4]) {
    const bool high = lane_id() & 2, odd = lane_id() & 1;
    const u32 x = shuffle_xor(high ? w[0] : w[2], 2), y = shuffle_xor(high ? w[1] : w[3], 2);
    (high ? w[0] : w[2]) = x, (high ? w[1] : w[3]) = y;
    const u32 p = shuffle_xor(odd ? w[0] : w[1], 1), q = shuffle_xor(odd ? w[2] : w[3], 1);
    (odd ? w[0] : w[1]) = p, (odd ? w[2] : w[3]) = q;
}

/// Writes factor · acc to rows of 64 columns of global memory, those below `rows`: the lanes of four exchange words for accesses of 16 bytes.
DEVICE void store_64(const float (&acc)[TILE_WIDTH / 8][4], const float (&factor)[2], bf16* to, u64 stride, u32 row, u32 rows) {
#pragma unroll
    for (u32 half = 0; half < 2; half++)
#pragma unroll
        for (u32 n = 0; n < TILE_WIDTH / 8; n += 4) {
            u32 words[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) words[i] = float2_to_bf16x2(acc[n + i][2 * half] * factor[half], acc[n + i][2 * half + 1] * factor[half]);
            transpose_quad(words);
            const u32 r = row + lane_id() / 4 + half * 8;
            bf16* at = to + r * stride + n * 8 + lane_id() % 4 * CHUNK;
            if (r < rows) *reinterpret_cast<uint4*>(at) = uint4{words[0], words[1], words[2], words[3]};
        }
}
