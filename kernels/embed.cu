// The embedding block: out = dropout(LN(word[id] (+ delta[id]) + type[t] + position[p])), and its gradients.
//
// Forward: a warp a token, the row in registers. Backward, two kernels: (1) `embed_bwd`, a warp a token: gradient of the sum in place of
// dout, partial dγ and dβ, and for each table row its users: the first token and which of 128 groups of tokens hold any (atomicMin and atomicAnd
// of integers: order does not matter); (2) `scatter`, all tables: a warp a token, which adds all users of its row if it is the first of
// them: it looks for them in their groups alone, by ballots over the ids. Rows with users in many groups are done by the whole block, its
// warps each a contiguous share of the groups; tables of a few rows (token types), used by all tokens, are summed by blocks over spans of
// tokens instead, and the spans in order.
// Bytes a token: forward 6E read, 2E written; backward about 10E + 4E for each table. Bound: memory, and the latency of the most frequent id.
// Determinism: each table row has one writer, adding in token order within shares whose borders depend on the ids alone.
#include "common/layernorm.cuh"

constexpr u32 EMBED_THREADS = 128;
constexpr u32 SCATTER_THREADS = 256;
constexpr u32 SCATTER_WARPS = SCATTER_THREADS / WARP;
static_assert(SCATTER_THREADS == CHUNK, "a thread sums up one column of a chunk");
/// What a warp of `scatter` has under way at a time: rows of the gradient, and steps of ids.
constexpr u32 ROWS_AT_ONCE = 8, STEPS_AT_ONCE = 8;
/// Groups of tokens.
constexpr u32 GROUPS = 128;
/// With users in more groups than this a row is the whole block's.
constexpr u32 ALONE = 16;

/// Tokens of a group, whole warps.
DEVICE u32 group_size(u32 n) { return ceil_div(ceil_div(n, GROUPS), WARP) * WARP; }

/// Who uses a row of a table; all ones before. Mirrors `USE_WORDS` of the launcher.
struct alignas(16) Use {
    u32 first;
    u32 absent[GROUPS / WARP];  // bit per group: no token in it
    u32 unused[3];
};

/// Token `token`, in group `group`, uses the row. What others have noted already is not noted again: many tokens share a row.
DEVICE void note_use(Use* use, u32 token, u32 group) {
    u32* absent = use->absent + group / WARP;
    const u32 bit = 1u << group % WARP;
    if (load_again(&use->first) > token) atomicMin(&use->first, token);
    if (load_again(absent) & bit) atomicAnd(absent, ~bit);
}

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

/// For each row of the tables its users; mirrors `UsesArgs` of the launcher.
struct Uses {
    Use *word, *position, *token_type;
};

template <u32 CHUNKS>
DEVICE void embed_bwd(const Tables& tables, const Dropout& dropout, const float* mean, const float* rstd, X* dout, const Uses& uses,
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
            const u32 group = row / group_size(rows);
            note_use(uses.word + tables.ids[row], row, group);
            note_use(uses.position + tables.positions[row], row, group);
            if (uses.token_type) note_use(uses.token_type + tables.types[row], row, group);
        }
    }
    float* const totals[2] = {dgamma, dbeta};
    finish_column_sums(sums, width, reinterpret_cast<float*>(shared_memory()), partials, totals, counters);
}

/// One table of `scatter`: table[ids[n]] += rows[n]. Mirrors `ScatterArgs` of the launcher.
struct Scatter {
    const u32* ids;
    /// Of each of its rows; null: a table of a few rows.
    const Use* uses;
    float* table;
    u32 entries;
    /// The id that is left out (all ones: none).
    u32 skip;
};
struct Scatters {
    Scatter of[3];
};

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

/// sum += the rows of those users that lie in the groups number `first` to `last` among the groups that hold any.
DEVICE void add_groups(float (&sum)[EIGHT], const Summand& s, const Use& use, u32 first, u32 last, u32 col) {
    const u32 size = group_size(s.n);
    u32 number = 0;
#pragma unroll
    for (u32 word = 0; word < GROUPS / WARP; word++) {
        for (u32 present = ~use.absent[word]; present; present &= present - 1, number++) {
            if (number < first || number >= last) continue;
            const u32 begin = (word * WARP + __ffs(static_cast<int>(present)) - 1) * size;
            add_users(sum, s, begin, min_u32(begin + size, s.n), col);
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

DEVICE u32 groups_of(const Use& use) {
    u32 groups = GROUPS;
#pragma unroll
    for (u32 i = 0; i < GROUPS / WARP; i++) groups -= popcount(use.absent[i]);
    return groups;
}

/// A warp a token, those of a block far from each other: the first users of rows that many use lie side by side.
DEVICE void scatter_rows(const Scatter& s, const X* rows, u32 n, u32 width, u32 col0) {
    const u32 blocks = ceil_div(n, SCATTER_WARPS);
    if (blockIdx.x >= blocks) return;
    float* scratch = reinterpret_cast<float*>(shared_memory());             // (SCATTER_WARPS, 256)
    u32* busy = reinterpret_cast<u32*>(scratch + SCATTER_WARPS * CHUNK);  // (SCATTER_WARPS)
    const u32 token = blockIdx.x + warp_id() * blocks;
    const u32 id = s.ids[token < n ? token : 0];
    const Use use = s.uses[id];
    const bool mine = token < n && use.first == token && id != s.skip, alone = groups_of(use) <= ALONE;
    if (lane_id() == 0) busy[warp_id()] = mine && !alone;
    const u32 col = col0 + lane_id() * EIGHT;
    if (mine && alone) {
        float sum[EIGHT] = {}, before[EIGHT];
        add_groups(sum, {s.ids, rows, n, width, id}, use, 0, GROUPS, col);
        const u32 count = columns_left(col, width);
        const bool whole = rows_are_aligned(width) && count;
        float* to = s.table + static_cast<u64>(id) * width + (count ? col : 0);
        load8(before, to, count, whole);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) sum[i] += before[i];
        if (count) store8(to, sum, count, whole);
    }
    __syncthreads();  // every warp has said whether its row is the block's
    for (u32 w = 0; w < SCATTER_WARPS; w++) {
        if (!busy[w]) continue;
        const u32 shared_id = s.ids[blockIdx.x + w * blocks];
        const Use users = s.uses[shared_id];
        const u32 groups = groups_of(users), first = warp_id() * groups / SCATTER_WARPS, last = (warp_id() + 1) * groups / SCATTER_WARPS;
        float sum[EIGHT] = {};
        add_groups(sum, {s.ids, rows, n, width, shared_id}, users, first, last, col);
        const float total = sum_of_warps(sum, scratch);
        if (col0 + threadIdx.x < width) s.table[static_cast<u64>(shared_id) * width + col0 + threadIdx.x] += total;
    }
}

/// A block a row of the table and a span of tokens; partials (spans, entries, width).
DEVICE void scatter_few(const Scatter& s, const X* rows, float* partials, u32* counters, u32 n, u32 width, u32 span, u32 col0) {
    const u32 entry = blockIdx.x % s.entries, index = blockIdx.x / s.entries, count = ceil_div(n, span);
    if (index >= count) return;
    const u32 begin = index * span, end = min_u32(begin + span, n);
    const u64 stride = static_cast<u64>(s.entries) * width;
    float* own = partials + static_cast<u64>(entry) * width + col0;
    const u32 share = ceil_div(end - begin, SCATTER_WARPS), first = begin + warp_id() * share, last = min_u32(first + share, end);
    float sum[EIGHT] = {};
    add_users(sum, {s.ids, rows, n, width, entry}, first, last, col0 + lane_id() * EIGHT);
    const float of_thread = sum_of_warps(sum, reinterpret_cast<float*>(shared_memory()));
    if (col0 + threadIdx.x < width) own[index * stride + threadIdx.x] = of_thread;
    float* table = s.table + static_cast<u64>(entry) * width + col0;
    add_over_blocks(own, min_u32(CHUNK, width - col0), stride, index, count, counters + (blockIdx.z * s.entries + entry) * tree_counters(count),
                    reinterpret_cast<u32*>(shared_memory()), [&](u32 c, float total) { table[c] += total; });
}

/// grid (blocks, tables, chunks of columns): all tables at once.
KERNEL_PAIRED(SCATTER_THREADS) scatter(Scatters all, const X* rows, float* partials, u32* counters, u32 n, u32 width, u32 span) {
    take_turn();
    const Scatter s = blockIdx.y == 0 ? all.of[0] : blockIdx.y == 1 ? all.of[1] : all.of[2];
    const u32 col0 = blockIdx.z * CHUNK;
    if (!s.uses) {
        scatter_few(s, rows, partials, counters, n, width, span, col0);
    } else {
        scatter_rows(s, rows, n, width, col0);
    }
}

#define EMBED(CHUNKS)                                                                                                          \
    KERNEL(EMBED_THREADS) embed_fwd_##CHUNKS(Tables tables, float eps, Dropout dropout, X* out, float* mean, float* rstd,       \
                                             u32 rows, u32 width) {                                                            \
        take_turn();                                                                                                           \
        embed_fwd<CHUNKS>(tables, eps, at_clock(dropout), out, mean, rstd, rows, width);                                        \
    }                                                                                                                          \
    KERNEL(EMBED_THREADS) embed_bwd_##CHUNKS(Tables tables, Dropout dropout, const float* mean, const float* rstd, X* dout,     \
                                             Uses uses, float* dgamma, float* dbeta, float* partials, u32* counters,      \
                                             u32 rows, u32 width) {                                                            \
        take_turn();                                                                                                           \
        embed_bwd<CHUNKS>(tables, at_clock(dropout), mean, rstd, dout, uses, dgamma, dbeta, partials, counters, rows, width);  \
    }
EMBED(1)
EMBED(2)
EMBED(3)
EMBED(4)

ENTRIES(embed, ENTRY(embed_fwd_1), ENTRY(embed_fwd_2), ENTRY(embed_fwd_3), ENTRY(embed_fwd_4), ENTRY(embed_bwd_1),
        ENTRY(embed_bwd_2), ENTRY(embed_bwd_3), ENTRY(embed_bwd_4), ENTRY(scatter))
