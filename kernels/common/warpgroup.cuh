// Products of a warpgroup, four warps of 16 rows each, with tiles of 64 columns of bf16 in shared memory.
//
// On Hopper by `wgmma`: asynchronous, the tile straight from shared memory. Elsewhere every warp loads fragments and multiplies by `mma.sync`.
// Results lie in the same registers either way, and so do left operands that were computed, those of mma.cuh. A caller says `begin_products`, what is
// to be multiplied, `end_products`, and reads results and overwrites operands after `await_products` alone. Left operands that serve several
// rounds of a loop stay in shared memory: held in registers, the assembler (CUDA 13.0) gives these away after the first round. It orders products one
// after the other (and says so, C7512 to C7515) where anything else writes to their registers in between.
//
// A tile's rows take 128 bytes; 16 bytes c of row r lie at c ^ r % 8, so that neither eight rows of one column nor eight columns of one row
// meet in a bank. Tiles begin at multiples of 1,024 bytes (a "128-byte swizzle" of the PTX manual, "asynchronous warpgroup level matrix
// instructions").
#pragma once
#include "mma.cuh"

#if defined(ELEKTRON_HOST) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ELEKTRON_WGMMA
#endif

constexpr u32 WARPGROUP = 4 * WARP;
/// Columns of a tile.
constexpr u32 TILE_WIDTH = 64;
/// Elements of 16 bytes, and those 16 bytes in a row.
constexpr u32 CHUNK = 8;
constexpr u32 CHUNKS_OF_ROW = TILE_WIDTH / CHUNK;

/// Where the 16 bytes at (row, 8 · chunk) of a tile begin.
DEVICE u32 swizzled(u32 row, u32 chunk) { return row * TILE_WIDTH + (chunk ^ row % 8) * CHUNK; }

/// A tile as products find it: where it begins, and the lower half of what describes it to `wgmma`.
struct Tile {
    const bf16* at;
    u32 low;
    /// From `row` on, a multiple of 8.
    DEVICE_METHOD Tile from(u32 row) const { return {at + row * TILE_WIDTH, low + row * CHUNKS_OF_ROW}; }
};

/// Both distances of a description are those of eight rows, in units of 16 bytes.
constexpr u32 EIGHT_ROWS = 8 * CHUNKS_OF_ROW;

DEVICE Tile tile_at(const bf16* tile) {
#ifdef ELEKTRON_WGMMA
    return {tile, (shared_address(tile) & 0x3ffff) >> 4 | EIGHT_ROWS << 16};
#else
    return {tile, 0};
#endif
}

/// The 64 rows of a block's own tile that are the warpgroup's.
DEVICE Tile warpgroup_rows(const bf16* tile) {
    const Tile own = tile_at(tile).from(threadIdx.x / WARPGROUP * 64);
    return {own.at, of_first_lane(own.low)};
}

/// The warp's 16 rows of the warpgroup's left operand, 16 columns from 16k on.
DEVICE void load_left(FragmentA<bf16>& a, const bf16* rows, u32 k) {
    const u32 matrix = lane_id() / 8, r = warp_id() % 4 * 16 + lane_id() % 8 + matrix % 2 * 8;
    ldmatrix_x4<false>(a.r, rows + swizzled(r, 2 * k + matrix / 2));
}
/// The same of a left operand whose rows are the tile's columns, 16 of the tile's rows from 16k on.
DEVICE void load_left_columns(FragmentA<bf16>& a, const bf16* tile, u32 k) {
    const u32 matrix = lane_id() / 8, r = k * 16 + lane_id() % 8 + matrix / 2 * 8;
    ldmatrix_x4<true>(a.r, tile + swizzled(r, warp_id() % 4 * 2 + matrix % 2));
}

/// By mma.sync: acc (16 × 8 · TILES) += A (16 × 16) · B, B rows n of the tile, columns 16k and on; or, BY_ROWS, rows 16k and on of the tile.
template <bool BY_ROWS, u32 TILES>
DEVICE void multiply_by_warps(float (&acc)[TILES][4], const FragmentA<bf16>& a, const bf16* tile, u32 k) {
    const u32 matrix = lane_id() / 8, r = lane_id() % 8;
#pragma unroll
    for (u32 n = 0; n < TILES; n += 2) {
        u32 out[4];
        if (BY_ROWS) {
            ldmatrix_x4<true>(out, tile + swizzled(k * 16 + r + matrix % 2 * 8, n + matrix / 2));
        } else {
            ldmatrix_x4<false>(out, tile + swizzled(n * 8 + r + matrix / 2 * 8, 2 * k + matrix % 2));
        }
        mma(acc[n], a, FragmentB<bf16>{{out[0], out[1]}});
        mma(acc[n + 1], a, FragmentB<bf16>{{out[2], out[3]}});
    }
}

template <u32 TILES>
DEVICE void clear(float (&acc)[TILES][4]) {
#pragma unroll
    for (u32 n = 0; n < TILES; n++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) acc[n][i] = 0.0f;
}

#ifdef ELEKTRON_WGMMA
/// Describes the part of a tile that one instruction multiplies with: 16 columns from 16k on, or 16 rows.
DEVICE u64 descriptor(const Tile& tile, u32 k, bool by_rows) {
    constexpr u64 HIGH = EIGHT_ROWS | 1u << 30;  // a swizzle of 128 bytes
    return HIGH << 32 | (tile.low + k * (by_rows ? 2 * EIGHT_ROWS : 2));
}
#endif

#ifdef ELEKTRON_HOST

DEVICE void begin_products() {}
DEVICE void end_products() { simt::products_commit(); }
template <u32 PENDING, typename... Acc>
DEVICE void await_products(Acc&...) {
    simt::products_wait(PENDING);
}

/// acc += A · B, A from registers, B 16 rows of a tile.
DEVICE void add_product(float (&acc)[8][4], const FragmentA<bf16>& a, const Tile& tile, u32 k) {
    if (simt::has_wgmma()) {
        simt::wgmma(acc[0], 8, a.r, 0, descriptor(tile, k, true), true, true);
    } else {
        multiply_by_warps<true>(acc, a, tile.at, k);
    }
}

/// acc = A · B, or += where MORE: 16 columns of `rows`, and of the rows of a tile; BY_ROWS: 16 rows of either, whose columns are the result's rows and
/// columns.
template <bool BY_ROWS, bool MORE, u32 TILES>
DEVICE void multiply_step(float (&acc)[TILES][4], const Tile& rows, const Tile& tile, u32 k) {
    if (simt::has_wgmma()) {
        simt::wgmma(acc[0], TILES, nullptr, descriptor(rows, k, BY_ROWS), descriptor(tile, k, BY_ROWS), BY_ROWS, MORE);
        return;
    }
    FragmentA<bf16> a;
    if (!MORE) clear(acc);
    BY_ROWS ? load_left_columns(a, rows.at, k) : load_left(a, rows.at, k);
    multiply_by_warps<BY_ROWS>(acc, a, tile.at, k);
}

#elif defined(ELEKTRON_WGMMA)

DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// The compiler shall take the registers for written here.
template <u32 TILES>
DEVICE void settle(float (&acc)[TILES][4]) {
#pragma unroll
    for (u32 n = 0; n < TILES; n++) asm volatile("" : "+f"(acc[n][0]), "+f"(acc[n][1]), "+f"(acc[n][2]), "+f"(acc[n][3])::"memory");
}
template <u32 PENDING, typename... Acc>
DEVICE void await_products(Acc&... acc) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    (settle(acc), ...);
}

#define SET(x) "=f"(x)
#define ADD(x) "+f"(x)
#define FOUR(sign, n) sign(acc[n][0]), sign(acc[n][1]), sign(acc[n][2]), sign(acc[n][3])
#define RESULTS_2(sign) FOUR(sign, 0), FOUR(sign, 1)
#define RESULTS_4(sign) RESULTS_2(sign), FOUR(sign, 2), FOUR(sign, 3)
#define RESULTS_8(sign) RESULTS_4(sign), FOUR(sign, 4), FOUR(sign, 5), FOUR(sign, 6), FOUR(sign, 7)
#define NAMES_2 "%0, %1, %2, %3, %4, %5, %6, %7"
#define NAMES_4 NAMES_2 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_8 NAMES_4 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"

DEVICE void add_product(float (&acc)[8][4], const FragmentA<bf16>& a, const Tile& tile, u32 k) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_8 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : RESULTS_8(ADD)
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(descriptor(tile, k, true)));
}

// What is only set has no value before: the assembler would order its writing.
#define MULTIPLY_STEP(TILES, WIDTH, LEFT, RIGHT)                                                                                       \
    template <bool BY_ROWS, bool MORE>                                                                                                \
    DEVICE void multiply_step(float (&acc)[TILES][4], const Tile& rows, const Tile& tile, u32 k) {                                     \
        const u64 left = descriptor(rows, k, BY_ROWS), right = descriptor(tile, k, BY_ROWS);                                           \
        if (MORE) {                                                                                                                   \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" WIDTH "k16.f32.bf16.bf16 {" NAMES_##TILES "}, " LEFT ", " RIGHT ";"         \
                         : RESULTS_##TILES(ADD)                                                                                       \
                         : "l"(left), "l"(right), "n"(1), "n"(BY_ROWS ? 1 : 0));                                                       \
        } else {                                                                                                                      \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" WIDTH "k16.f32.bf16.bf16 {" NAMES_##TILES "}, " LEFT ", " RIGHT ";"         \
                         : RESULTS_##TILES(SET)                                                                                       \
                         : "l"(left), "l"(right), "n"(0), "n"(BY_ROWS ? 1 : 0));                                                       \
        }                                                                                                                             \
    }
MULTIPLY_STEP(2, "16", "%8", "%9, %10, 1, 1, %11, %11")
MULTIPLY_STEP(4, "32", "%16", "%17, %18, 1, 1, %19, %19")
MULTIPLY_STEP(8, "64", "%32", "%33, %34, 1, 1, %35, %35")

#undef SET
#undef ADD
#undef FOUR
#undef RESULTS_2
#undef RESULTS_4
#undef RESULTS_8
#undef NAMES_2
#undef NAMES_4
#undef NAMES_8
#undef MULTIPLY_STEP

#else

DEVICE void begin_products() {}
DEVICE void end_products() {}
template <u32 PENDING, typename... Acc>
DEVICE void await_products(Acc&...) {}

DEVICE void add_product(float (&acc)[8][4], const FragmentA<bf16>& a, const Tile& tile, u32 k) { multiply_by_warps<true>(acc, a, tile.at, k); }

template <bool BY_ROWS, bool MORE, u32 TILES>
DEVICE void multiply_step(float (&acc)[TILES][4], const Tile& rows, const Tile& tile, u32 k) {
    FragmentA<bf16> a;
    if (!MORE) clear(acc);
    BY_ROWS ? load_left_columns(a, rows.at, k) : load_left(a, rows.at, k);
    multiply_by_warps<BY_ROWS>(acc, a, tile.at, k);
}

#endif

/// acc = A · Bᵀ: A the warpgroup's 64 `rows`, B the first 8 · TILES rows of a tile.
template <u32 TILES>
DEVICE void multiply_transposed(float (&acc)[TILES][4], const Tile& rows, const Tile& tile) {
    multiply_step<false, false>(acc, rows, tile, 0);
#pragma unroll
    for (u32 k = 1; k < TILE_WIDTH / 16; k++) multiply_step<false, true>(acc, rows, tile, k);
}

/// acc = Aᵀ · B of the first ROWS rows of two tiles.
template <u32 ROWS>
DEVICE void multiply_columns(float (&acc)[TILE_WIDTH / 8][4], const Tile& columns, const Tile& tile) {
    multiply_step<true, false>(acc, columns, tile, 0);
#pragma unroll
    for (u32 k = 1; k < ROWS / 16; k++) multiply_step<true, true>(acc, columns, tile, k);
}

/// acc (16 × 64) += A · B: A of 16 · DEPTH columns, B as many rows of a tile.
template <u32 DEPTH>
DEVICE void multiply_add(float (&acc)[TILE_WIDTH / 8][4], const FragmentA<bf16> (&a)[DEPTH], const Tile& tile) {
#pragma unroll
    for (u32 k = 0; k < DEPTH; k++) add_product(acc, a[k], tile, k);
}

/// ROWS rows of a tile from global memory, `stride` elements apart; those beyond `rows` are 0. The caller commits and waits.
template <u32 ROWS, u32 THREADS>
DEVICE void load_swizzled(bf16* tile, const bf16* from, u64 stride, u32 rows) {
    static_assert(ROWS * CHUNKS_OF_ROW % THREADS == 0, "every thread copies as much");
#pragma unroll
    for (u32 j = 0; j < ROWS * CHUNKS_OF_ROW / THREADS; j++) {
        const u32 i = j * THREADS + threadIdx.x, row = i / CHUNKS_OF_ROW, chunk = i % CHUNKS_OF_ROW;
        const bool exists = row < rows;
        cp_async16(tile + swizzled(row, chunk), exists ? from + row * stride + chunk * CHUNK : from, exists ? 16 : 0);
    }
}

/// All copies of this thread but the last PENDING groups have arrived, and products may read what they brought once the block has met.
template <u32 PENDING = 0>
DEVICE void await_copies() {
    cp_async_wait<PENDING>();
    fence_products();
}
