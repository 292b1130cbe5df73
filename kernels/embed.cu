// The embedding block: out = dropout(LN(word[id] (+ delta[id]) + type[t] + position[p])), and its gradients.
//
// Forward: a warp a token, the row in registers. Backward, two kernels: (1) `embed_bwd`, a warp a token: gradient of the sum in place of
// dout, partial dγ and dβ, and for each table row the first token that uses it (integer atomicMin: order does not matter); (2) `scatter`,
// all tables: a block a token, which leaves unless it is the first user of its row: then it finds all later users by
// ballots over the ids, its eight warps each a contiguous share of the tokens, and adds them in order; tables of a few rows (token types),
// used by all tokens, are summed by blocks over spans of tokens instead, and the spans in order.
// Bytes a token: forward 6E read, 2E written; backward about 10E + 4E for each table. Bound: memory, and the latency of the most frequent id.
// Determinism: each table row has one writer, adding in token order within shares whose borders depend on N alone.
#include "common/layernorm.cuh"

constexpr u32 EMBED_THREADS = 128;
constexpr u32 SCATTER_THREADS = 256;
constexpr u32 SCATTER_WARPS = SCATTER_THREADS / WARP;
/// Rows that a warp of `scatter` loads before it adds them.
constexpr u32 AT_ONCE = 4;

/// Where an embedding reads; mirrors `TablesArgs` of the launcher.
struct Tables {
    const u32 *ids, *positions, *types;
    const X *word, *delta, *position, *token_type, *gamma, *beta;
};

/// The lane's columns of the sum of one token's embeddings.
template <u32 CHUNKS>
DEVICE void lookup(float (&x)[CHUNKS][EIGHT], const Tables& t, u32 row, u32 width) {
    const bool aligned = rows_are_aligned(width);
    const u64 id = static_cast<u64>(t.ids[row]) * width, position = static_cast<u64>(t.positions[row]) * width;
    const u64 kind = static_cast<u64>(t.types[row]) * width;
#pragma unroll
    for (u32 j = 0; j < CHUNKS; j++) {
        const u32 col = chunk_column(j), count = columns_left(col, width);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[j][i] = 0.0f;
        if (count == 0) continue;
        float part[EIGHT];
        load8(x[j], t.word + id + col, count, aligned);
        load8(part, t.token_type + kind + col, count, aligned);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[j][i] += part[i];
        load8(part, t.position + position + col, count, aligned);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[j][i] += part[i];
        if (t.delta) {
            load8(part, t.delta + id + col, count, aligned);
#pragma unroll
            for (u32 i = 0; i < EIGHT; i++) x[j][i] += part[i];
        }
    }
}

template <u32 CHUNKS>
DEVICE void embed_fwd(const Tables& tables, float eps, const Dropout& dropout, X* out, float* mean, float* rstd, u32 rows, u32 width) {
    const u32 row = blockIdx.x * (EMBED_THREADS / WARP) + warp_id();
    if (row >= rows) return;
    const bool aligned = rows_are_aligned(width);
    float x[CHUNKS][EIGHT];
    lookup(x, tables, row, width);
    const float2 stats = row_statistics(x, width, eps);
#pragma unroll
    for (u32 j = 0; j < CHUNKS; j++) {
        const u32 col = chunk_column(j), count = columns_left(col, width);
        if (count == 0) continue;
        float g[EIGHT], b[EIGHT];
        load8(g, tables.gamma + col, count, aligned);
        load8(b, tables.beta + col, count, aligned);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[j][i] = (x[j][i] - stats.x) * stats.y * g[i] + b[i];
        drop8(x[j], dropout, row, col);
        store8(out + static_cast<u64>(row) * width + col, x[j], count, aligned);
    }
    if (lane_id() == 0) {
        mean[row] = stats.x;
        rstd[row] = stats.y;
    }
}

/// For each row of a table the first token that uses it, all ones before; mirrors `FirstUseArgs` of the launcher.
struct FirstUse {
    u32 *word, *position, *token_type;
};

template <u32 CHUNKS>
DEVICE void embed_bwd(const Tables& tables, const Dropout& dropout, const float* mean, const float* rstd, X* dout, const FirstUse& first,
                      float* dgamma, float* dbeta, float* partials, u32* counters, u32 rows, u32 width) {
    const bool aligned = rows_are_aligned(width);
    float sums[2][CHUNKS][EIGHT] = {};  // dγ, dβ
    const u32 warps = gridDim.x * (EMBED_THREADS / WARP);
    for (u32 row = blockIdx.x * (EMBED_THREADS / WARP) + warp_id(); row < rows; row += warps) {
        const u64 start = static_cast<u64>(row) * width;
        float d[CHUNKS][EIGHT], x[CHUNKS][EIGHT];
        lookup(x, tables, row, width);
#pragma unroll
        for (u32 j = 0; j < CHUNKS; j++) {
            const u32 col = chunk_column(j), count = columns_left(col, width);
            load8(d[j], dout + start + (count ? col : 0), count, aligned && count);
            if (count) drop8(d[j], dropout, row, col);
        }
        normalize_bwd(d, x, tables.gamma, float2{mean[row], rstd[row]}, width, sums);
#pragma unroll
        for (u32 j = 0; j < CHUNKS; j++) {
            const u32 col = chunk_column(j), count = columns_left(col, width);
            if (count) store8(dout + start + col, d[j], count, aligned);
        }
        if (lane_id() == 0) {
            atomicMin(first.word + tables.ids[row], row);
            atomicMin(first.position + tables.positions[row], row);
            if (first.token_type) atomicMin(first.token_type + tables.types[row], row);
        }
    }
    float* const totals[2] = {dgamma, dbeta};
    finish_column_sums(sums, width, reinterpret_cast<float*>(shared_memory()), partials, totals, counters);
}

/// One table of `scatter`: table[ids[n]] += rows[n]. Mirrors `ScatterArgs` of the launcher.
struct Scatter {
    const u32* ids;
    /// For each of its rows the first token that uses it; null: a table of a few rows.
    const u32* first;
    float* table;
    u32 entries;
    /// The id that is left out (all ones: none).
    u32 skip;
};
struct Scatters {
    Scatter of[3];
};

/// A block a token: the first user of a row adds all its users.
DEVICE void scatter_rows(const Scatter& s, const X* rows, u32 n, u32 width) {
    const u32* ids = s.ids;
    const u32 id = ids[blockIdx.x];
    if (s.first[id] != blockIdx.x || id == s.skip) return;
    // Shares are multiples of a warp, so that a ballot never crosses their borders.
    const u32 share = ceil_div(ceil_div(n - blockIdx.x, SCATTER_WARPS), WARP) * WARP;
    const u32 begin = blockIdx.x + warp_id() * share, end = min_u32(begin + share, n);
    const bool aligned = rows_are_aligned(width);
    float* scratch = reinterpret_cast<float*>(shared_memory());  // (SCATTER_WARPS, 256)
    for (u32 col0 = 0; col0 < width; col0 += CHUNK) {
        const u32 col = col0 + lane_id() * EIGHT, count = columns_left(col, width);
        float sum[EIGHT] = {};
        for (u32 start = begin; start < end; start += WARP) {
            const u32 token = start + lane_id();
            u32 users = ballot(token < end && ids[token < n ? token : n - 1] == id);
            while (users) {
                // Several rows are under way at a time: [MASK] alone has a seventh of all tokens. They are added in order.
                float x[AT_ONCE][EIGHT];
                bool exists[AT_ONCE];
                u32 user = 0;
#pragma unroll
                for (u32 r = 0; r < AT_ONCE; r++) {
                    exists[r] = users != 0;
                    user = exists[r] ? start + __ffs(static_cast<int>(users)) - 1 : user;
                    users &= users - 1;
                    load8(x[r], rows + static_cast<u64>(user) * width + (count ? col : 0), count, aligned && count);
                }
#pragma unroll
                for (u32 r = 0; r < AT_ONCE; r++)
#pragma unroll
                    for (u32 i = 0; i < EIGHT; i++) sum[i] += exists[r] ? x[r][i] : 0.0f;
            }
        }
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) scratch[warp_id() * CHUNK + lane_id() * EIGHT + i] = sum[i];
        __syncthreads();  // every warp's share is written
        const u32 c = col0 + threadIdx.x;
        if (c < width) {
            float total = 0.0f;
            for (u32 w = 0; w < SCATTER_WARPS; w++) total += scratch[w * CHUNK + threadIdx.x];
            s.table[static_cast<u64>(id) * width + c] += total;
        }
        __syncthreads();  // all have read before scratch is written again
    }
}

/// A block a row of the table and a span of tokens; partials (spans, entries, width).
DEVICE void scatter_few(const Scatter& s, const X* rows, float* partials, u32* counters, u32 n, u32 width, u32 span) {
    const u32 entry = blockIdx.x % s.entries, index = blockIdx.x / s.entries, count = ceil_div(n, span);
    if (index >= count) return;
    const u32 begin = index * span, end = min_u32(begin + span, n);
    const u64 stride = static_cast<u64>(s.entries) * width;
    float* own = partials + static_cast<u64>(entry) * width;
    for (u32 c = threadIdx.x; c < width; c += SCATTER_THREADS) {
        float sum = 0.0f;
        for (u32 token = begin; token < end; token++) {
            if (s.ids[token] == entry) sum += to_float(rows[static_cast<u64>(token) * width + c]);
        }
        own[index * stride + c] = sum;
    }
    float* table = s.table + static_cast<u64>(entry) * width;
    add_over_blocks(own, width, stride, index, count, counters + entry * tree_counters(count), reinterpret_cast<u32*>(shared_memory()),
                    [&](u32 c, float total) { table[c] += total; });
}

/// grid (blocks, tables): all tables at once.
KERNEL(SCATTER_THREADS) scatter(Scatters all, const X* rows, float* partials, u32* counters, u32 n, u32 width, u32 span) {
    take_turn();
    const Scatter s = blockIdx.y == 0 ? all.of[0] : blockIdx.y == 1 ? all.of[1] : all.of[2];
    if (!s.first) {
        scatter_few(s, rows, partials, counters, n, width, span);
    } else if (blockIdx.x < n) {
        scatter_rows(s, rows, n, width);
    }
}

#define EMBED(CHUNKS)                                                                                                          \
    KERNEL(EMBED_THREADS) embed_fwd_##CHUNKS(Tables tables, float eps, Dropout dropout, X* out, float* mean, float* rstd,       \
                                             u32 rows, u32 width) {                                                            \
        take_turn();                                                                                                           \
        embed_fwd<CHUNKS>(tables, eps, at_clock(dropout), out, mean, rstd, rows, width);                                        \
    }                                                                                                                          \
    KERNEL(EMBED_THREADS) embed_bwd_##CHUNKS(Tables tables, Dropout dropout, const float* mean, const float* rstd, X* dout,     \
                                             FirstUse first, float* dgamma, float* dbeta, float* partials, u32* counters,      \
                                             u32 rows, u32 width) {                                                            \
        take_turn();                                                                                                           \
        embed_bwd<CHUNKS>(tables, at_clock(dropout), mean, rstd, dout, first, dgamma, dbeta, partials, counters, rows, width);  \
    }
EMBED(1)
EMBED(2)
EMBED(3)
EMBED(4)

ENTRIES(embed, ENTRY(embed_fwd_1), ENTRY(embed_fwd_2), ENTRY(embed_fwd_3), ENTRY(embed_fwd_4), ENTRY(embed_bwd_1),
        ENTRY(embed_bwd_2), ENTRY(embed_bwd_3), ENTRY(embed_bwd_4), ENTRY(scatter))
