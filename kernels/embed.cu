// The embedding block: out = dropout(LN(word[id] (+ delta[id]) + type[t] + position[p])), and its gradients.
//
// Forward: a warp a token, the row in registers. Backward: (1) `embed_bwd`, a warp a token: gradient of the sum in place of dout, partial dγ and
// dβ, and for each table a key, which row of all tables the token uses; (2) sort.cu orders tokens by keys; (3) `scatter`, a warp 64 neighbours of
// that order: rows whose users all lie among them are done, sums of those that begin before or end behind are left; (4) `scatter_ends`, a warp a
// row whose users are spread over several such spans: their sums in order. Tables of a few rows (token types), used by all tokens, are summed by
// blocks over spans of tokens instead, `scatter_few`, and the spans in order.
// Bytes a token: forward 6E read, 2E written; backward about 10E + 4E for each table. Bound: memory.
// Determinism: each table row has one writer, adding in token order within spans whose borders depend on the ids alone.
#include "common/layernorm.cuh"

constexpr u32 EMBED_THREADS = 128;
constexpr u32 SCATTER_THREADS = 256;
constexpr u32 SCATTER_WARPS = SCATTER_THREADS / WARP;
static_assert(SCATTER_THREADS == CHUNK, "a thread sums up one column of a chunk");
/// Rows of the gradient that a warp has under way at a time, and steps of ids.
constexpr u32 ROWS_AT_ONCE = 8, STEPS_AT_ONCE = 8;
/// Sorted uses of a warp.
constexpr u32 USES = 64;

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

/// The row that each token uses, counted over all tables: of words from 0 on, of positions from `position` on, of token types from `token_type` on
/// (0: these have no keys). Mirrors `KeysArgs` of the launcher.
struct Keys {
    u32* of;  // (tables, rows)
    u32 position, token_type;
};

template <u32 CHUNKS>
DEVICE void embed_bwd(const Tables& tables, const Dropout& dropout, const float* mean, const float* rstd, X* dout, const Keys& keys,
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
            keys.of[row] = tables.ids[row];
            keys.of[rows + row] = keys.position + tables.positions[row];
            if (keys.token_type) keys.of[2 * rows + row] = keys.token_type + tables.types[row];
        }
    }
    float* const totals[2] = {dgamma, dbeta};
    finish_column_sums(sums, width, reinterpret_cast<float*>(shared_memory()), partials, totals, counters);
}

/// A table's gradient and where its keys begin.
struct Table {
    float* gradient;
    u32 first, unused;
};
/// Words, positions, token types; mirrors `ScatterArgs` of the launcher.
struct Scatter {
    Table of[3];
    const u32 *keys, *numbers;  // sorted; a number is table · tokens + token
    float* ends;                // (spans, 2, width)
    u32 uses, tokens, width;
    u32 skip;  // the key that is left out (all ones: none)
};

/// Where the gradient of a key's row begins.
DEVICE float* row_of(const Scatter& s, u32 key) {
    const Table table = key >= s.of[2].first ? s.of[2] : key >= s.of[1].first ? s.of[1] : s.of[0];
    return table.gradient + static_cast<u64>(key - table.first) * s.width;
}

/// to[0 .. 8] += sum, of the lane's columns.
DEVICE void add_to_row(float* to, const float (&sum)[EIGHT], u32 count, bool aligned) {
    float x[EIGHT];
    load8(x, to, count, aligned);
#pragma unroll
    for (u32 i = 0; i < EIGHT; i++) x[i] += sum[i];
    store8(to, x, count, aligned);
}

/// grid (blocks of spans, 1, chunks of columns)
KERNEL(SCATTER_THREADS) scatter(Scatter s, const X* rows) {
    take_turn();
    const u32 span = blockIdx.x * SCATTER_WARPS + warp_id(), begin = span * USES, end = min_u32(begin + USES, s.uses);
    if (begin >= s.uses) return;
    const u32 col = blockIdx.z * CHUNK + lane_id() * EIGHT, count = columns_left(col, s.width);
    const bool aligned = rows_are_aligned(s.width) && count;
    const u32 before = begin ? s.keys[begin - 1] : ~0u, behind = end < s.uses ? s.keys[end] : ~0u;
    float sum[EIGHT] = {};
    bool begins = begin == 0 || before != s.keys[begin];  // the row's first user is in this span
    for (u32 start = begin; start < end; start += ROWS_AT_ONCE) {
        float x[ROWS_AT_ONCE][EIGHT];
        u32 key[ROWS_AT_ONCE + 1];
#pragma unroll
        for (u32 i = 0; i < ROWS_AT_ONCE; i++) {
            const u32 at = min_u32(start + i, end - 1);
            key[i] = s.keys[at];
            const u32 token = s.numbers[at] % s.tokens;
            load8(x[i], rows + static_cast<u64>(token) * s.width + (count ? col : 0), count, aligned);
        }
        key[ROWS_AT_ONCE] = start + ROWS_AT_ONCE < end ? s.keys[start + ROWS_AT_ONCE] : behind;
#pragma unroll
        for (u32 i = 0; i < ROWS_AT_ONCE; i++) {
            if (start + i >= end) break;
#pragma unroll
            for (u32 j = 0; j < EIGHT; j++) sum[j] += x[i][j];
            const u32 next = start + i + 1 < end ? key[i + 1] : behind;
            const bool last = start + i + 1 == end, goes_on = last && end < s.uses && next == key[i];
            if (next == key[i] && !last) continue;
            if (count && key[i] != s.skip) {
                if (begins && !goes_on) {
                    add_to_row(row_of(s, key[i]) + col, sum, count, aligned);
                } else {
                    // Users before or behind this span: what is its own comes to the others' in scatter_ends.
                    store8(s.ends + (static_cast<u64>(span) * 2 + begins) * s.width + col, sum, count, aligned);
                }
            }
            begins = true;
#pragma unroll
            for (u32 j = 0; j < EIGHT; j++) sum[j] = 0.0f;
        }
    }
}

/// Rows whose first user is in one span and whose last in another. Grid as of `scatter`.
KERNEL(SCATTER_THREADS) scatter_ends(Scatter s) {
    take_turn();
    const u32 span = blockIdx.x * SCATTER_WARPS + warp_id(), begin = span * USES, behind = begin + USES;
    if (behind >= s.uses) return;
    const u32 key = s.keys[behind], col = blockIdx.z * CHUNK + lane_id() * EIGHT, count = columns_left(col, s.width);
    const bool began_before = s.keys[begin] == key && begin && s.keys[begin - 1] == key;
    if (s.keys[behind - 1] != key || began_before || key == s.skip || !count) return;
    const bool aligned = rows_are_aligned(s.width);
    float sum[EIGHT];
    load8(sum, s.ends + (static_cast<u64>(span) * 2 + 1) * s.width + col, count, aligned);
    for (u32 first = span + 1; first * USES < s.uses && s.keys[first * USES] == key; first += ROWS_AT_ONCE) {
        float x[ROWS_AT_ONCE][EIGHT];
        bool exists[ROWS_AT_ONCE];
#pragma unroll
        for (u32 i = 0; i < ROWS_AT_ONCE; i++) {
            const u32 other = first + i;
            exists[i] = other * USES < s.uses && s.keys[other * USES] == key;
            load8(x[i], s.ends + static_cast<u64>(exists[i] ? other : first) * 2 * s.width + col, count, aligned);
        }
#pragma unroll
        for (u32 i = 0; i < ROWS_AT_ONCE; i++)
#pragma unroll
            for (u32 j = 0; j < EIGHT; j++) sum[j] += exists[i] ? x[i][j] : 0.0f;
    }
    add_to_row(row_of(s, key) + col, sum, count, aligned);
}

/// The lane's columns of a row of the gradient, and the tokens that it is summed over.
struct Summand {
    const u32* ids;
    const X* rows;
    u32 n, width, id;
};

/// sum += the rows of the tokens from `begin` to `end` with this id, in order.
DEVICE void add_users(float (&sum)[EIGHT], const Summand& s, u32 begin, u32 end, u32 col) {
    const u32 count = columns_left(col, s.width);
    const bool aligned = rows_are_aligned(s.width);
    for (u32 start = begin; start < end; start += STEPS_AT_ONCE * WARP) {
        u32 users[STEPS_AT_ONCE];
#pragma unroll
        for (u32 r = 0; r < STEPS_AT_ONCE; r++) {
            const u32 token = start + r * WARP + lane_id();
            users[r] = s.ids[token < end ? token : begin];
        }
#pragma unroll
        for (u32 r = 0; r < STEPS_AT_ONCE; r++) users[r] = ballot(start + r * WARP + lane_id() < end && users[r] == s.id);
#pragma unroll
        for (u32 r = 0; r < STEPS_AT_ONCE; r++) {
            for (u32 left = users[r]; left;) {
                // Several rows are under way at a time: [MASK] alone has a seventh of all tokens. They are added in order.
                float x[ROWS_AT_ONCE][EIGHT];
                u32 exist = 0, user = begin;
#pragma unroll
                for (u32 i = 0; i < ROWS_AT_ONCE; i++) {
                    if (left) user = start + r * WARP + __ffs(static_cast<int>(left)) - 1, exist++;
                    left &= left - 1;
                    load8(x[i], s.rows + static_cast<u64>(user) * s.width + (count ? col : 0), count, aligned && count);
                }
#pragma unroll
                for (u32 i = 0; i < ROWS_AT_ONCE; i++)
#pragma unroll
                    for (u32 j = 0; j < EIGHT; j++) sum[j] += i < exist ? x[i][j] : 0.0f;
            }
        }
    }
}

/// The warps' sums in order, of column `threadIdx.x` of a chunk; `scratch` holds (SCATTER_WARPS, 256), free on entry and return.
DEVICE float sum_of_warps(const float (&sum)[EIGHT], float* scratch) {
    store8(scratch + warp_id() * CHUNK + lane_id() * EIGHT, sum, EIGHT, true);
    __syncthreads();  // every warp's sum is written
    float total = 0.0f;
    for (u32 w = 0; w < SCATTER_WARPS; w++) total += scratch[w * CHUNK + threadIdx.x];
    __syncthreads();  // all have read before scratch is written again
    return total;
}

/// A table of a few rows: a block one of them and a span of tokens; grid (entries · spans, 1, chunks of columns), partials (spans, entries,
/// width).
KERNEL_PAIRED(SCATTER_THREADS) scatter_few(const u32* ids, const X* rows, float* gradient, float* partials, u32* counters, u32 n, u32 width, u32 entries,
                                           u32 span) {
    take_turn();
    const u32 entry = blockIdx.x % entries, index = blockIdx.x / entries, count = ceil_div(n, span), col0 = blockIdx.z * CHUNK;
    const u32 begin = index * span, end = min_u32(begin + span, n);
    const u64 stride = static_cast<u64>(entries) * width;
    float* own = partials + static_cast<u64>(entry) * width + col0;
    const u32 share = ceil_div(end - begin, SCATTER_WARPS), first = min_u32(begin + warp_id() * share, end), last = min_u32(first + share, end);
    float sum[EIGHT] = {};
    add_users(sum, {ids, rows, n, width, entry}, first, last, col0 + lane_id() * EIGHT);
    const float of_thread = sum_of_warps(sum, reinterpret_cast<float*>(shared_memory()));
    if (col0 + threadIdx.x < width) own[index * stride + threadIdx.x] = of_thread;
    float* table = gradient + static_cast<u64>(entry) * width + col0;
    add_over_blocks(own, min_u32(CHUNK, width - col0), stride, index, count, counters + (blockIdx.z * entries + entry) * tree_counters(count),
                    reinterpret_cast<u32*>(shared_memory()), [&](u32 c, float total) { table[c] += total; });
}

#define EMBED(CHUNKS)                                                                                                          \
    KERNEL(EMBED_THREADS) embed_fwd_##CHUNKS(Tables tables, float eps, Dropout dropout, X* out, float* mean, float* rstd,       \
                                             u32 rows, u32 width) {                                                            \
        take_turn();                                                                                                           \
        embed_fwd<CHUNKS>(tables, eps, at_clock(dropout), out, mean, rstd, rows, width);                                        \
    }                                                                                                                          \
    KERNEL(EMBED_THREADS) embed_bwd_##CHUNKS(Tables tables, Dropout dropout, const float* mean, const float* rstd, X* dout,     \
                                             Keys keys, float* dgamma, float* dbeta, float* partials, u32* counters,      \
                                             u32 rows, u32 width) {                                                            \
        take_turn();                                                                                                           \
        embed_bwd<CHUNKS>(tables, at_clock(dropout), mean, rstd, dout, keys, dgamma, dbeta, partials, counters, rows, width);  \
    }
EMBED(1)
EMBED(2)
EMBED(3)
EMBED(4)

ENTRIES(embed, ENTRY(embed_fwd_1), ENTRY(embed_fwd_2), ENTRY(embed_fwd_3), ENTRY(embed_fwd_4), ENTRY(embed_bwd_1),
        ENTRY(embed_bwd_2), ENTRY(embed_bwd_3), ENTRY(embed_bwd_4), ENTRY(scatter), ENTRY(scatter_ends), ENTRY(scatter_few))
