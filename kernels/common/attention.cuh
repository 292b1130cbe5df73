// What attention_fwd.cu and attention_bwd.cu share: geometry, tiles, dropout of probabilities.
//
// Sequences are packed: sequence s is rows cu_seqlens[s] .. cu_seqlens[s + 1] of qkv (N, 3C), and its first key_len[s] rows serve as
// keys. A block works on one sequence and head; HSP is the head size padded to what the kernel is compiled for, with zeros.
#pragma once
#include "mma.cuh"
#include "philox.cuh"

constexpr u32 ATTENTION_THREADS = 128;
constexpr u32 ATTENTION_WARPS = ATTENTION_THREADS / WARP;
/// Rows of a block's own tile: 16 a warp.
constexpr u32 TILE = ATTENTION_WARPS * 16;
constexpr float LOG2E = 1.44269504088896341f;
constexpr float LN2 = 0.69314718055994531f;

/// Elements of a 16-byte access.
constexpr u32 VECTOR = 16 / sizeof(X);

/// Elements between rows of a tile in shared memory: one access more than the row, so that the eight rows of a matrix that
/// `ldmatrix` reads lie in different banks.
template <u32 HSP>
constexpr u32 LD = HSP + VECTOR;

/// Rows of the tiles that a backward pass walks over; fewer where shared memory is short (fp32).
constexpr u32 INNER = 64 / sizeof(X);

/// Mirrors `AttentionArgs` of the launcher.
struct Attention {
    const u32 *cu_seqlens, *key_len;
    u32 heads, head_size;
    float scale;  // 1 / sqrt(head size)
};

/// Kernels for heads of up to 64 serve those of 64 alone, which most models have: the compiler knows that they need no padding.
template <u32 HSP>
DEVICE Attention known_head(Attention a) {
    if (HSP == 64) a.head_size = HSP;
    return a;
}

/// This block's sequence and head.
struct Task {
    u32 first, rows, keys, head, channels;
};

DEVICE Task task(const Attention& a) {
    const u32 first = a.cu_seqlens[blockIdx.z];
    return {first, a.cu_seqlens[blockIdx.z + 1] - first, a.key_len[blockIdx.z], blockIdx.y, a.heads * a.head_size};
}

/// Queries, keys or values (`which` 0, 1, 2) of the task's rows from `row` on.
DEVICE const X* operand(const X* qkv, const Task& k, u32 which, u32 row, u32 head_size) {
    return qkv + static_cast<u64>(k.first + row) * 3 * k.channels + which * k.channels + k.head * head_size;
}

/// ROWS × HSP from global to shared memory, rows `stride` apart; what lies beyond `rows` or the head is 0. Asynchronous where rows
/// allow 16-byte accesses: the caller commits and waits.
template <u32 ROWS, u32 HSP, u32 THREADS = ATTENTION_THREADS>
DEVICE void load_tile(X* tile, const X* from, u64 stride, u32 rows, u32 head_size) {
    if (head_size % VECTOR == 0) {
        constexpr u32 ACROSS = HSP / VECTOR;
#pragma unroll
        for (u32 j = 0; j < ceil_div(ROWS * ACROSS, THREADS); j++) {
            const u32 i = j * THREADS + threadIdx.x, row = i / ACROSS, col = i % ACROSS * VECTOR;
            if (ROWS * ACROSS % THREADS && i >= ROWS * ACROSS) break;
            const bool exists = row < rows && col < head_size;
            cp_async16(tile + row * LD<HSP> + col, exists ? from + row * stride + col : from, exists ? 16 : 0);
        }
    } else {
        for (u32 i = threadIdx.x; i < ROWS * HSP; i += THREADS) {
            const u32 row = i / HSP, col = i % HSP;
            tile[row * LD<HSP> + col] = row < rows && col < head_size ? from[row * stride + col] : from_float<X>(0.0f);
        }
    }
}

/// 2^x: to two units in the last place is enough for bf16.
DEVICE float power_of_2(float x) { return sizeof(X) == 2 ? exp2_approx(x) : exp2f(x); }

/// Index of the dropout decision about a head's first key.
DEVICE u32 mask_index(u32 head) { return head << 20; }

/// What decides about a row's probabilities of the 32 keys from `key` on, a multiple of 32, as far as they are the lane's: word j is of C tile j, its
/// lower half of the lane's first column, its upper half of the second. `row` is the packed row. Four blocks of Philox serve the four lanes.
DEVICE Words decisions(const Dropout& d, u32 row, u32 head, u32 key) { return philox(d, (mask_index(head) + key) / 8 + lane_id() % 4, row); }

/// Drops probabilities of the warp's 16 rows, packed from `row` on, of the COLS keys from `key` on.
template <u32 COLS>
DEVICE void drop(float (&p)[COLS / 8][4], const Dropout& dropout, u32 row, u32 head, u32 key) {
#pragma unroll
    for (u32 n = 0; n < COLS / 8; n += 4)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const Words words = decisions(dropout, row + lane_id() / 4 + half * 8, head, key + n * 8);
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                float* pair = p[n + j] + 2 * half;
                pair[0] = keeps_low(dropout, words.w[j]) ? pair[0] : 0.0f;
                pair[1] = keeps_high(dropout, words.w[j]) ? pair[1] : 0.0f;
            }
        }
}

/// Scores of keys that do not exist: `columns` of them do.
template <u32 COLS>
DEVICE void hide_columns(float (&s)[COLS / 8][4], u32 columns) {
    if (columns >= COLS) return;
#pragma unroll
    for (u32 n = 0; n < COLS / 8; n++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) s[n][i] = n * 8 + lane_id() % 4 * 2 + i % 2 < columns ? s[n][i] : -INFINITE;
}

/// The same where keys are rows.
template <u32 COLS>
DEVICE void hide_rows(float (&s)[COLS / 8][4], u32 rows) {
    if (rows >= 16) return;
#pragma unroll
    for (u32 n = 0; n < COLS / 8; n++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) s[n][i] = lane_id() / 4 + i / 2 * 8 < rows ? s[n][i] : -INFINITE;
}

/// acc (16 × COLS) += A · B over HSP, A's rows and B's columns both rows of tiles in shared memory.
template <u32 HSP, u32 COLS>
DEVICE void multiply_rows(float (&acc)[COLS / 8][4], const X* a_rows, const X* b_rows) {
#pragma unroll
    for (u32 k = 0; k < HSP; k += 16) {
        FragmentA<X> a;
        load_a(a, a_rows + k, LD<HSP>);
#pragma unroll
        for (u32 n = 0; n < COLS; n += 16) {
            FragmentB<X> b[2];
            load_b(b, b_rows + n * LD<HSP> + k, LD<HSP>);
            mma(acc[n / 8], a, b[0]);
            mma(acc[n / 8 + 1], a, b[1]);
        }
    }
}

/// acc (16 × HSP) += P · B, P (16 × DEPTH) from registers, B the DEPTH rows of a tile in shared memory.
template <u32 HSP, u32 DEPTH>
DEVICE void multiply_registers(float (&acc)[HSP / 8][4], const float (&p)[DEPTH / 8][4], const X* b_rows) {
#pragma unroll
    for (u32 k = 0; k < DEPTH; k += 16) {
        FragmentA<X> a;
        to_a(a, p[k / 8], p[k / 8 + 1]);
#pragma unroll
        for (u32 n = 0; n < HSP; n += 16) {
            FragmentB<X> b[2];
            load_b_rows(b, b_rows + k * LD<HSP> + n, LD<HSP>);
            mma(acc[n / 8], a, b[0]);
            mma(acc[n / 8 + 1], a, b[1]);
        }
    }
}

/// Writes factor · acc (16 × HSP) to rows of global memory, those below `rows` and columns within the head: two elements at a time where
/// heads are even.
template <u32 HSP>
DEVICE void store_rows(const float (&acc)[HSP / 8][4], float low_factor, float high_factor, X* to, u64 stride, u32 row, u32 rows, u32 head_size) {
    const u32 g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (u32 n = 0; n < HSP / 8; n++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 r = row + g + half * 8, col = n * 8 + 2 * t;
            if (r >= rows || col >= head_size) continue;
            const float factor = half ? high_factor : low_factor;
            const float x[2] = {acc[n][2 * half] * factor, acc[n][2 * half + 1] * factor};
            X* at = to + r * stride + col;
            if (head_size % 2 == 0) {
                store2(at, x[0], x[1]);
            } else {
                at[0] = from_float<X>(x[0]);
                if (col + 1 < head_size) at[1] = from_float<X>(x[1]);
            }
        }
}
