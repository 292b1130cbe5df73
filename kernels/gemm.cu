// C (m, n) = A (m, k) · B (k, n) (+ bias), or C +=, any layout, any size: for machines without cuBLASLt and shapes that it refuses.
//
// Decomposition: a block 64 × 64 of C, a warp 16 rows of it, steps of 32 along k through shared memory, tensor cores on fragments. Operands
// are read element by element along their contiguous side, so nothing needs to be aligned: right everywhere, fast nowhere. Bound: the loads.
// Determinism: each element of C is summed in order of k by one warp.
#include "common/mma.cuh"

constexpr u32 GEMM_THREADS = 128;
constexpr u32 GEMM_TILE = 64;
constexpr u32 GEMM_STEP = 32;
constexpr u32 GEMM_LD = GEMM_STEP + 16 / sizeof(X);

/// Mirrors the launcher's flags.
constexpr u32 A_TRANSPOSED = 1, B_TRANSPOSED = 2, C_EXACT = 4, ACCUMULATE = 8;

/// tile[row][step] of a matrix whose element (row, step) lies at row · row_stride + step · step_stride; 0 beyond its ends.
DEVICE void load_operand(X* tile, const X* from, u32 row0, u32 rows, u64 row_stride, u32 step0, u32 steps, u64 step_stride) {
    for (u32 i = threadIdx.x; i < GEMM_TILE * GEMM_STEP; i += GEMM_THREADS) {
        // Neighbouring threads read neighbouring elements.
        const u32 row = step_stride == 1 ? i / GEMM_STEP : i % GEMM_TILE, step = step_stride == 1 ? i % GEMM_STEP : i / GEMM_TILE;
        const bool exists = row0 + row < rows && step0 + step < steps;
        tile[row * GEMM_LD + step] = exists ? from[(row0 + row) * row_stride + (step0 + step) * step_stride] : from_float<X>(0.0f);
    }
}

KERNEL(GEMM_THREADS) gemm(const X* a, const X* b, void* c, const X* bias, u32 m, u32 n, u32 k, u32 flags) {
    X* a_tile = reinterpret_cast<X*>(shared_memory());  // (64, LD)
    X* b_tile = a_tile + GEMM_TILE * GEMM_LD;           // (64, LD): columns of B
    const u32 row0 = blockIdx.y * GEMM_TILE, col0 = blockIdx.x * GEMM_TILE;
    const u32 g = lane_id() / 4, t = lane_id() % 4;
    float acc[GEMM_TILE / 8][4] = {};
    for (u32 step = 0; step < k; step += GEMM_STEP) {
        __syncthreads();  // all have read the tiles of the last step
        load_operand(a_tile, a, row0, m, flags & A_TRANSPOSED ? 1 : k, step, k, flags & A_TRANSPOSED ? m : 1);
        load_operand(b_tile, b, col0, n, flags & B_TRANSPOSED ? k : 1, step, k, flags & B_TRANSPOSED ? 1 : n);
        __syncthreads();  // the tiles are whole
#pragma unroll
        for (u32 s = 0; s < GEMM_STEP; s += 16) {
            FragmentA<X> rows;
            load_a(rows, a_tile + warp_id() * 16 * GEMM_LD + s, GEMM_LD);
#pragma unroll
            for (u32 j = 0; j < GEMM_TILE; j += 16) {
                FragmentB<X> cols[2];
                load_b(cols, b_tile + j * GEMM_LD + s, GEMM_LD);
                mma(acc[j / 8], rows, cols[0]);
                mma(acc[j / 8 + 1], rows, cols[1]);
            }
        }
    }
#pragma unroll
    for (u32 j = 0; j < GEMM_TILE / 8; j++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 row = row0 + warp_id() * 16 + g + i / 2 * 8, col = col0 + j * 8 + 2 * t + i % 2;
            if (row >= m || col >= n) continue;
            const u64 at = static_cast<u64>(row) * n + col;
            float value = acc[j][i] + (bias ? to_float(bias[col]) : 0.0f);
            if (flags & C_EXACT) {
                float* out = static_cast<float*>(c) + at;
                *out = flags & ACCUMULATE ? *out + value : value;
            } else {
                X* out = static_cast<X*>(c) + at;
                *out = from_float<X>(flags & ACCUMULATE ? to_float(*out) + value : value);
            }
        }
}

ENTRIES(gemm, ENTRY(gemm))
