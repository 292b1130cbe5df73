// Dynamic masking: which tokens of each row are masked and what the generator reads there, as src/data/mask.rs has it, bit for bit.
//
// Electra's rule takes the round(p · length) candidates with the lowest random words (of equals the first), txtai's every candidate whose word
// is below a threshold; candidates are all but the special tokens. Masked positions of the whole batch stand one after the other in M
// slots; slots left over have position N and weight 0.
// Decomposition: a block a row, twice. First every candidate counts the candidates before it (T² comparisons in shared memory, 16 k for
// a row of 128) and the row's masked positions are marked and counted; then each block adds up the counts of the rows before and writes
// its own, the last block the slots left over. Bytes a token: 4 read and 4 written, then 8 read and 4 written. Bound: launch.
// Determinism: integers; every element has one writer.
#include "common/philox.cuh"

constexpr u32 MASK_THREADS = 128;
constexpr u32 MASK_WARPS = MASK_THREADS / WARP;
constexpr u32 MASK_POSITION_SITE = 2, MASK_TOKEN_SITE = 3;

/// The rule and where its random words come from; mirrors `RuleArgs` of the launcher.
struct Rule {
    double probability;
    double tiny;  // each weight is 1 / (masked positions + tiny)
    u32 key0, key1;
    u32 electra;    // 1: a fixed number of positions; 0: each with the probability
    u32 slots;      // electra: the most positions of a row
    u32 limit;      // txtai: below it a position is masked
    u32 shown[2];   // words below the first show `mask_id`, below the second a random token
    u32 mask_id, vocabulary;
    u32 never[5];   // tokens that are not masked
    const Clock* clock;
};

/// Random words of the batch's sequences.
DEVICE Dropout stream(const Rule& r, u32 site) {
    return Dropout{0, 0.0f, r.key0, r.key1, site, r.clock->step, r.clock->slot0, 0, nullptr};
}

DEVICE bool may_be_masked(const Rule& r, u32 id) {
    bool may = true;
#pragma unroll
    for (u32 i = 0; i < 5; i++) may = may && id != r.never[i];
    return may;
}

/// chosen (N) = 1 where a token is masked, counts (B) = how many of each row.
KERNEL(MASK_THREADS) mask_choose(const u32* ids, const u32* cu_seqlens, Rule r, u32* chosen, u32* counts, u32 max_seqlen) {
    take_turn();
    u32* keys = reinterpret_cast<u32*>(shared_memory());
    u32* candidate = keys + max_seqlen;
    u32* totals = candidate + max_seqlen;  // candidates, masked
    const u32 row = blockIdx.x, begin = cu_seqlens[row], length = cu_seqlens[row + 1] - begin;
    if (threadIdx.x < 2) totals[threadIdx.x] = 0;
    __syncthreads();  // the totals are zero before they are added to
    const Dropout positions = stream(r, MASK_POSITION_SITE);
    u32 mine = 0;
    for (u32 i = threadIdx.x; i < length; i += MASK_THREADS) {
        keys[i] = philox(positions, i / 4, row).w[i % 4];
        candidate[i] = may_be_masked(r, ids[begin + i]);
        mine += candidate[i];
    }
    if (mine) atomicAdd(&totals[0], mine);
    __syncthreads();  // keys, candidates and their number are written
    const u32 candidates = totals[0];
    const u32 wanted = static_cast<u32>(rint(r.probability * static_cast<double>(length)));
    u32 count = min_u32(wanted, r.slots);
    count = min_u32(count > 1 ? count : 1, candidates);
    mine = 0;
    for (u32 i = threadIdx.x; i < length; i += MASK_THREADS) {
        bool masked = false;
        if (candidate[i] && r.electra) {
            u32 before = 0;
            for (u32 j = 0; j < length; j++) {
                before += candidate[j] && (keys[j] < keys[i] || (keys[j] == keys[i] && j < i));
            }
            masked = before < count;
        } else if (candidate[i]) {
            masked = keys[i] < r.limit;
        }
        chosen[begin + i] = masked;
        mine += masked;
    }
    if (mine) atomicAdd(&totals[1], mine);
    __syncthreads();  // every thread has counted
    if (threadIdx.x == 0) counts[row] = totals[1];
}

/// What stands at a masked position: [MASK], a random token, or the original.
DEVICE u32 shown(const Rule& r, u32 original, u32 row, u32 position) {
    const Words words = philox(stream(r, MASK_TOKEN_SITE), position, row);
    if (words.w[0] < r.shown[0]) return r.mask_id;
    return words.w[0] < r.shown[1] ? mul_high(words.w[1], r.vocabulary) : original;
}

/// gridDim.x is one more than the rows: the last block clears the slots left over.
KERNEL(MASK_THREADS) mask_write(const u32* ids, const u32* cu_seqlens, Rule r, const u32* chosen, const u32* counts, u32* masked_ids,
                                u32* masked_index, u32* targets, float* weight, u32 n, u32 m) {
    take_turn();
    u32* sums = reinterpret_cast<u32*>(shared_memory());  // a warp's masked tokens each, then masked before this row and in all
    const u32 rows = gridDim.x - 1, row = blockIdx.x;
    if (threadIdx.x < 2) sums[MASK_WARPS + threadIdx.x] = 0;
    __syncthreads();  // the sums are zero before they are added to
    u32 before = 0, all = 0;
    for (u32 other = threadIdx.x; other < rows; other += MASK_THREADS) {
        all += counts[other];
        before += other < row ? counts[other] : 0;
    }
    if (before) atomicAdd(&sums[MASK_WARPS], before);
    if (all) atomicAdd(&sums[MASK_WARPS + 1], all);
    __syncthreads();  // every thread has added its rows
    const u32 used = min_u32(sums[MASK_WARPS + 1], m);
    if (row == rows) {
        for (u32 slot = used + threadIdx.x; slot < m; slot += MASK_THREADS) {
            masked_index[slot] = n;
            targets[slot] = 0;
            weight[slot] = 0.0f;
        }
        return;
    }
    const float share = static_cast<float>(1.0 / (static_cast<double>(used) + r.tiny));
    const u32 begin = cu_seqlens[row], length = cu_seqlens[row + 1] - begin;
    u32 next = sums[MASK_WARPS];
    for (u32 first = 0; first < length; first += MASK_THREADS) {
        const u32 position = first + threadIdx.x;
        const bool exists = position < length, masked = exists && chosen[begin + position];
        const u32 lanes = ballot(masked);
        if (lane_id() == 0) sums[warp_id()] = popcount(lanes);
        __syncthreads();  // every warp has counted
        u32 slot = next + popcount(lanes & ((1u << lane_id()) - 1));
        for (u32 w = 0; w < MASK_WARPS; w++) {
            slot += w < warp_id() ? sums[w] : 0;
            next += sums[w];
        }
        if (exists) {
            const u32 token = begin + position, original = ids[token];
            const bool has_slot = masked && slot < m;
            masked_ids[token] = has_slot ? shown(r, original, row, position) : original;
            if (has_slot) {
                masked_index[slot] = token;
                targets[slot] = original;
                weight[slot] = share;
            }
        }
        __syncthreads();  // all have read the warps' counts before the next round
    }
}

ENTRIES(mask, ENTRY(mask_choose), ENTRY(mask_write))
