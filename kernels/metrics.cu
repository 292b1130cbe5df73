// Losses of a forward pass, and what it adds to the run's metrics: the generator's hits and losses,
// and histograms of the discriminator's scores for original tokens that could have been masked, for
// replaced tokens, and for tokens that cannot be masked; accuracy, precision, recall and the area
// under the ROC curve follow from these.
//
// Decomposition: each block has a span of tokens and of masked positions. It counts into shared
// memory, then adds its counts to the totals, which grow over the steps until the host reads them.
// The last block adds up the blocks' shares of the losses. Sequences have about
// two tokens that cannot be masked: these go to the totals directly, since a third histogram would exceed 48 KiB of
// shared memory.
// Bytes per token, bf16: 18 read; per masked position: 24. Bound: memory.
// Determinism: counts are integers, the losses they sum are in fixed point, mean losses are added
// in order.
#include "common/bf16.cuh"
#include "common/reduce.cuh"

constexpr u32 METRICS_THREADS = 512;
constexpr u32 SCORE_BINS = 4096;

/// The twelve leading bits of a score in the order of numbers; scores above 0 have the upper half.
DEVICE u32 score_bin(float score) {
    const u32 bits = score == 0.0f ? 0x80000000u : float_to_bits(score);
    return (bits >> 31 ? ~bits : bits | 0x80000000u) >> 20;
}

/// Tokens that cannot be masked, and the one that stands for a masked token; mirrors `SpecialArgs`
/// of the launcher.
struct Special {
    u32 never[5];
    u32 mask;
};

DEVICE bool may_be_masked(const Special& special, u32 id) {
    bool may = true;
#pragma unroll
    for (u32 i = 0; i < 5; i++) may = may && id != special.never[i];
    return may;
}

/// counts: masked positions, hits, positions that show [MASK], hits there, their losses in nats and
/// in 65536ths of one; then the tokens by bin: originals that could have been masked, replaced
/// ones, those that cannot be masked. partials: 2 floats per block.
KERNEL(METRICS_THREADS) metrics(const X* logits, const u32* is_fake, const u32* ids, const float* rtd_nll, const float* rtd_weight,
                                const u32* best, const u32* targets, const u32* masked_ids, const u32* masked_index,
                                const float* mlm_nll, const float* mlm_weight, float* losses, u64* counts, float* partials,
                                u32* counter, Special special, u32 n, u32 m, u32 n_span, u32 m_span, u32 labels) {
    take_turn();
    constexpr u32 GENERATOR_COUNTS = 6, BLOCK_COUNTS = GENERATOR_COUNTS + 2 * SCORE_BINS;
    u32* own = reinterpret_cast<u32*>(shared_memory());  // the first BLOCK_COUNTS of the counts
    u8* scratch = reinterpret_cast<u8*>(own + BLOCK_COUNTS);
    for (u32 i = threadIdx.x; i < BLOCK_COUNTS; i += METRICS_THREADS) own[i] = 0;
    __syncthreads();  // the block's counts are zero before they are added to
    float mlm = 0.0f, rtd = 0.0f;
    u32 generator[GENERATOR_COUNTS] = {0, 0, 0, 0, 0, 0};
    const u32 m_begin = blockIdx.x * m_span, m_end = min_u32(m_begin + m_span, m);
    for (u32 i = m_begin + threadIdx.x; i < m_end; i += METRICS_THREADS) {
        const float nll = mlm_nll[i];
        mlm += mlm_weight[i] * nll;
        if (mlm_weight[i] > 0.0f && nll - nll == 0.0f) {  // a finite loss
            const u32 hit = best[i] == targets[i];
            generator[0]++;
            generator[1] += hit;
            if (masked_ids[masked_index[i]] == special.mask) {
                const float bounded = nll > 0.0f ? (nll < 65535.0f ? nll : 65535.0f) : 0.0f;
                const u32 fixed = static_cast<u32>(bounded * 65536.0f + 0.5f);
                generator[2]++;
                generator[3] += hit;
                generator[4] += fixed >> 16;
                generator[5] += fixed & 0xffff;
            }
        }
    }
#pragma unroll
    for (u32 k = 0; k < GENERATOR_COUNTS; k++) {
        if (generator[k]) atomicAdd(&own[k], generator[k]);
    }
    const u32 n_begin = blockIdx.x * n_span, n_end = min_u32(n_begin + n_span, n);
    for (u32 i = n_begin + threadIdx.x; i < n_end; i += METRICS_THREADS) {
        rtd += rtd_weight[i] * rtd_nll[i];
        if (rtd_weight[i] > 0.0f) {
            const float score = labels == 1 ? to_float(logits[i]) : to_float(logits[2 * i + 1]) - to_float(logits[2 * i]);
            const u32 bin = score_bin(score);
            if (is_fake[i]) {
                atomicAdd(&own[GENERATOR_COUNTS + SCORE_BINS + bin], 1u);
            } else if (may_be_masked(special, ids[i])) {
                atomicAdd(&own[GENERATOR_COUNTS + bin], 1u);
            } else {
                atomicAdd(&counts[BLOCK_COUNTS + bin], static_cast<u64>(1));
            }
        }
    }
    mlm = block_sum(mlm, reinterpret_cast<float*>(scratch));
    rtd = block_sum(rtd, reinterpret_cast<float*>(scratch));  // its barriers also end the counting
    for (u32 i = threadIdx.x; i < BLOCK_COUNTS; i += METRICS_THREADS) {
        if (own[i]) atomicAdd(&counts[i], static_cast<u64>(own[i]));
    }
    if (threadIdx.x == 0) {
        partials[2 * blockIdx.x] = mlm;
        partials[2 * blockIdx.x + 1] = rtd;
    }
    if (!last_block(counter, gridDim.x, reinterpret_cast<u32*>(scratch))) return;
    if (threadIdx.x < 2) {
        float total = 0.0f;
        for (u32 b = 0; b < gridDim.x; b++) total += load_fresh(partials + 2 * b + threadIdx.x);
        losses[threadIdx.x] = total;
    }
}

ENTRIES(metrics, ENTRY(metrics))
