// Dropout alone, rows gathered and scattered, casts.
//
// Decomposition: a thread eight elements of a row. Bytes an element, bf16: 4 (dropout, gather), 6 (cast from fp32). Bound: memory.
// Determinism: every element has one writer.
#include "common/philox.cuh"
#include "common/vec.cuh"

constexpr u32 ELEMENTWISE_THREADS = 256;

/// A thread's row and column, and how many of its eight columns exist (0 beyond the last row).
struct Place {
    u32 row, col, count;
};

DEVICE Place place(u32 rows, u32 width) {
    const u32 steps = ceil_div(width, EIGHT);
    const u64 index = static_cast<u64>(blockIdx.x) * ELEMENTWISE_THREADS + threadIdx.x;
    const u32 row = static_cast<u32>(index / steps), col = static_cast<u32>(index % steps) * EIGHT;
    return {row, col, row < rows ? columns_left(col, width) : 0};
}

/// out (N, C) = dropout(inp); its own backward pass.
KERNEL(ELEMENTWISE_THREADS) dropout(const X* inp, X* out, Dropout rule, u32 rows, u32 width) {
    take_turn();
    const Place p = place(rows, width);
    if (p.count == 0) return;
    const u64 at = static_cast<u64>(p.row) * width + p.col;
    float x[EIGHT];
    load8(x, inp + at, p.count, rows_are_aligned(width));
    drop8(x, at_clock(rule), p.row, p.col);
    store8(out + at, x, p.count, rows_are_aligned(width));
}

/// out (M, C) = rows `index` (M) of inp (N, C), zeros for an index of N or more.
KERNEL(ELEMENTWISE_THREADS) gather_rows_fwd(const u32* index, const X* inp, X* out, u32 rows, u32 width, u32 n) {
    take_turn();
    const Place p = place(rows, width);
    if (p.count == 0) return;
    float x[EIGHT] = {};
    const u32 from = index[p.row];
    if (from < n) load8(x, inp + static_cast<u64>(from) * width + p.col, p.count, rows_are_aligned(width));
    store8(out + static_cast<u64>(p.row) * width + p.col, x, p.count, rows_are_aligned(width));
}

/// Rows `index` of dinp (N, C) = dout (M, C), an index of N or more is passed over; the others were set to zero before.
KERNEL(ELEMENTWISE_THREADS) gather_rows_bwd(const u32* index, const X* dout, X* dinp, u32 rows, u32 width, u32 n) {
    take_turn();
    const Place p = place(rows, width);
    if (p.count == 0 || index[p.row] >= n) return;
    float x[EIGHT];
    load8(x, dout + static_cast<u64>(p.row) * width + p.col, p.count, rows_are_aligned(width));
    store8(dinp + static_cast<u64>(index[p.row]) * width + p.col, x, p.count, rows_are_aligned(width));
}

/// Working copy of fp32 values.
KERNEL(ELEMENTWISE_THREADS) cast(const float* from, X* to, u64 n) {
    take_turn();
    const u64 at = (static_cast<u64>(blockIdx.x) * ELEMENTWISE_THREADS + threadIdx.x) * EIGHT;
    if (at >= n) return;
    const u32 count = n - at < EIGHT ? static_cast<u32>(n - at) : EIGHT;
    float x[EIGHT];
    load8(x, from + at, count, false);
    store8(to + at, x, count, false);
}

/// A few words, handed over with the launch: what a step changes in device memory, in the order of the launches.
struct Note {
    u32 w[16];
};

KERNEL(WARP) note(Note from, u32* to, u32 words) {
    take_turn();
    if (threadIdx.x < words) to[threadIdx.x] = from.w[threadIdx.x];
}

ENTRIES(elementwise, ENTRY(note), ENTRY(dropout), ENTRY(gather_rows_fwd), ENTRY(gather_rows_bwd), ENTRY(cast))
