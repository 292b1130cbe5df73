// Losses of a forward pass, and what it adds to the run's metrics: the generator's hits, and a histogram of the discriminator's scores for
// original and for replaced tokens, from which follow accuracy, precision, recall and the area under the ROC curve.
//
// Decomposition: a block a span of tokens and of masked positions; it counts into shared memory, then adds what it has to the totals,
// which grow over the steps until someone reads them. The block that comes last adds up the blocks' shares of the losses.
// Bytes a token, bf16: 14 read. Bound: memory.
// Determinism: counts are integers, losses are added in order.
#include "common/bf16.cuh"
#include "common/reduce.cuh"

constexpr u32 METRICS_THREADS = 512;
constexpr u32 SCORE_BINS = 4096;

/// The twelve leading bits of a score in the order of numbers; scores above 0 have the upper half.
DEVICE u32 score_bin(float score) {
    const u32 bits = score == 0.0f ? 0x80000000u : float_to_bits(score);
    return (bits >> 31 ? ~bits : bits | 0x80000000u) >> 20;
}

/// counts: masked positions, hits, original tokens by bin, replaced tokens by bin. partials: 2 floats a block.
KERNEL(METRICS_THREADS) metrics(const X* logits, const u32* is_fake, const float* rtd_nll, const float* rtd_weight, const u32* best,
                                const u32* targets, const float* mlm_nll, const float* mlm_weight, float* losses, u64* counts,
                                float* partials, u32* counter, u32 n, u32 m, u32 n_span, u32 m_span, u32 labels) {
    take_turn();
    u32* own = reinterpret_cast<u32*>(shared_memory());  // as counts
    constexpr u32 COUNTS = 2 + 2 * SCORE_BINS;
    u8* scratch = reinterpret_cast<u8*>(own + COUNTS);
    for (u32 i = threadIdx.x; i < COUNTS; i += METRICS_THREADS) own[i] = 0;
    __syncthreads();  // the block's counts are zero before they are added to
    float mlm = 0.0f, rtd = 0.0f;
    const u32 m_begin = blockIdx.x * m_span, m_end = min_u32(m_begin + m_span, m);
    for (u32 i = m_begin + threadIdx.x; i < m_end; i += METRICS_THREADS) {
        mlm += mlm_weight[i] * mlm_nll[i];
        if (mlm_weight[i] > 0.0f) {
            atomicAdd(&own[0], 1u);
            if (best[i] == targets[i]) atomicAdd(&own[1], 1u);
        }
    }
    const u32 n_begin = blockIdx.x * n_span, n_end = min_u32(n_begin + n_span, n);
    for (u32 i = n_begin + threadIdx.x; i < n_end; i += METRICS_THREADS) {
        rtd += rtd_weight[i] * rtd_nll[i];
        if (rtd_weight[i] > 0.0f) {
            const float score = labels == 1 ? to_float(logits[i]) : to_float(logits[2 * i + 1]) - to_float(logits[2 * i]);
            atomicAdd(&own[2 + (is_fake[i] ? SCORE_BINS : 0) + score_bin(score)], 1u);
        }
    }
    mlm = block_sum(mlm, reinterpret_cast<float*>(scratch));
    rtd = block_sum(rtd, reinterpret_cast<float*>(scratch));  // its barriers also end the counting
    for (u32 i = threadIdx.x; i < COUNTS; i += METRICS_THREADS) {
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
