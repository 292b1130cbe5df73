// Keys in order with the numbers that they came with, of equal keys the lower number first: a stable radix sort from the lowest digit (Knuth,
// TAOCP 3, 5.2.5), eight bits a pass.
//
// Decomposition: a pass is three kernels. `sort_count`: a block 2,048 neighbouring keys, how often each digit is among them. `sort_scan`: one
// block, from (digits, blocks) how often to where the first goes. `sort_place`: a block as in the first; a warp 256 keys, 32 at a time: its
// lanes find those with the same digit by ballots, so keys keep their order.
// Bytes a key and pass: 16 read and written, 4 read for the count. Bound: latency. Determinism: nothing depends on who comes first.
#include "common/reduce.cuh"

constexpr u32 SORT_THREADS = 256;
constexpr u32 SORT_WARPS = SORT_THREADS / WARP;
constexpr u32 DIGIT_BITS = 8;
constexpr u32 DIGITS = 1 << DIGIT_BITS;
/// Keys of a block, and of a warp.
constexpr u32 SORT_BLOCK = 2048;
constexpr u32 SORT_SHARE = SORT_BLOCK / SORT_WARPS;
constexpr u32 SCAN_THREADS = 1024;
static_assert(DIGITS == SORT_THREADS, "a thread looks after one digit");

DEVICE u32 digit(u32 key, u32 shift) { return key >> shift & (DIGITS - 1); }

/// counts (256, blocks)
KERNEL(SORT_THREADS) sort_count(const u32* keys, u32* counts, u32 n, u32 shift) {
    take_turn();
    u32* of_block = reinterpret_cast<u32*>(shared_memory());  // (256)
    of_block[threadIdx.x] = 0;
    __syncthreads();  // counts are 0
#pragma unroll
    for (u32 i = 0; i < SORT_BLOCK; i += SORT_THREADS) {
        const u32 at = blockIdx.x * SORT_BLOCK + i + threadIdx.x;
        if (at < n) atomicAdd(of_block + digit(keys[at], shift), 1u);
    }
    __syncthreads();  // every key is counted
    counts[threadIdx.x * gridDim.x + blockIdx.x] = of_block[threadIdx.x];
}

/// counts (n, a multiple of 4) become the sums of those before each.
KERNEL(SCAN_THREADS) sort_scan(u32* counts, u32 n) {
    take_turn();
    u32* of_warps = reinterpret_cast<u32*>(shared_memory());  // (32)
    u32 total = 0;
    for (u32 start = 0; start < n; start += SCAN_THREADS * 4) {
        const u32 at = start + threadIdx.x * 4;
        uint4* four = reinterpret_cast<uint4*>(counts + at);
        const uint4 count = at < n ? *four : uint4{0, 0, 0, 0};
        const u32 own = count.x + count.y + count.z + count.w;
        u32 upto = own;
#pragma unroll
        for (u32 d = 1; d < WARP; d *= 2) {
            const u32 lower = shuffle_up(upto, d);
            if (lane_id() >= d) upto += lower;
        }
        if (lane_id() == WARP - 1) of_warps[warp_id()] = upto;
        __syncthreads();  // the warps' sums are written
        u32 before = total + upto - own;
#pragma unroll
        for (u32 w = 0; w < SCAN_THREADS / WARP; w++) {
            before += w < warp_id() ? of_warps[w] : 0;
            total += of_warps[w];
        }
        if (at < n) *four = uint4{before, before + count.x, before + count.x + count.y, before + count.x + count.y + count.z};
        __syncthreads();  // all have read the warps' sums
    }
}

/// Bit per lane that has the same digit; lanes that are not `valid` have none.
DEVICE u32 same_digit(u32 of_lane, bool valid) {
    u32 same = ballot(valid);
#pragma unroll
    for (u32 bit = 0; bit < DIGIT_BITS; bit++) {
        const u32 set = ballot(of_lane >> bit & 1);
        same &= of_lane >> bit & 1 ? set : ~set;
    }
    return same;
}

/// starts (256, blocks): where the first key of a digit and block goes. `numbers` null: a key's number is its place.
KERNEL(SORT_THREADS) sort_place(const u32* keys, const u32* numbers, const u32* starts, u32* sorted_keys, u32* sorted_numbers, u32 n, u32 shift) {
    take_turn();
    u32* of_warps = reinterpret_cast<u32*>(shared_memory());  // (warps, 256): how many, then where the next goes
    u32* mine = of_warps + warp_id() * DIGITS;
    for (u32 w = 0; w < SORT_WARPS; w++) of_warps[w * DIGITS + threadIdx.x] = 0;
    __syncthreads();  // counts are 0
    const u32 first = blockIdx.x * SORT_BLOCK + warp_id() * SORT_SHARE;
    u32 key[SORT_SHARE / WARP];
#pragma unroll
    for (u32 i = 0; i < SORT_SHARE / WARP; i++) {
        const u32 at = first + i * WARP + lane_id();
        key[i] = at < n ? keys[at] : 0;
        if (at < n) atomicAdd(mine + digit(key[i], shift), 1u);
    }
    __syncthreads();  // every warp's keys are counted
    u32 next = starts[threadIdx.x * gridDim.x + blockIdx.x];
    for (u32 w = 0; w < SORT_WARPS; w++) {
        u32& of_warp = of_warps[w * DIGITS + threadIdx.x];
        const u32 count = of_warp;
        of_warp = next;
        next += count;
    }
    __syncthreads();  // every warp knows where its keys go
#pragma unroll
    for (u32 i = 0; i < SORT_SHARE / WARP; i++) {
        const u32 at = first + i * WARP + lane_id(), d = digit(key[i], shift);
        const bool valid = at < n;
        const u32 same = same_digit(d, valid), before = popcount(same & ((1u << lane_id()) - 1));
        const u32 to = valid ? mine[d] + before : 0;
        __syncwarp();  // all lanes have read where theirs go
        if (valid && before == 0) mine[d] += popcount(same);
        __syncwarp();  // the next round begins behind this one
        if (valid) {
            sorted_keys[to] = key[i];
            sorted_numbers[to] = numbers ? numbers[at] : at;
        }
    }
}

ENTRIES(sort, ENTRY(sort_count), ENTRY(sort_scan), ENTRY(sort_place))
