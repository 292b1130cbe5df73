// Replaced token detection: the corrupted input, and the discriminator's losses on one or two logits a token.
//
// Softmax over two labels is the logistic function of their difference d: nll = softplus(d) - fake · d, the gradient of d
// scale · weight · (sigmoid(d) - fake).
// Decomposition: a thread a token or a masked position; masked positions are distinct, so each element has one writer. Bound: launch.
#include "common/bf16.cuh"
#include "common/reduce.cuh"

constexpr u32 RTD_THREADS = 256;

/// corrupted = ids and is_fake = 0, but at the masked positions the samples, and whether they differ: written by the last block, once all
/// others are done. A position of n or more is a slot left over.
KERNEL(RTD_THREADS) corrupt(const u32* ids, const u32* masked_index, const u32* sampled, u32* corrupted, u32* is_fake, u32* counter, u32 m,
                            u32 n) {
    take_turn();
    const u32 token = blockIdx.x * RTD_THREADS + threadIdx.x;
    if (token < n) {
        corrupted[token] = ids[token];
        is_fake[token] = 0;
    }
    if (!last_block(counter, gridDim.x, reinterpret_cast<u32*>(shared_memory()))) return;
    for (u32 i = threadIdx.x; i < m; i += RTD_THREADS) {
        const u32 position = masked_index[i];
        if (position >= n) continue;
        corrupted[position] = sampled[i];
        is_fake[position] = sampled[i] != ids[position];
    }
}

KERNEL(RTD_THREADS) rtd_loss(const u32* is_fake, const float* weight, float scale, const X* logits, float* nll, X* dlogits, u32 n, u32 labels) {
    take_turn();
    const u32 token = blockIdx.x * RTD_THREADS + threadIdx.x;
    if (token >= n) return;
    const float d = labels == 1 ? to_float(logits[token]) : to_float(logits[2 * token + 1]) - to_float(logits[2 * token]);
    const float fake = is_fake[token] ? 1.0f : 0.0f;
    // ln(1 + e^d) without overflow, and without losing small values.
    nll[token] = (d > 0.0f ? d : 0.0f) + log1pf(expf(-fabsf(d))) - fake * d;
    float gradient = weight[token] * scale * (1.0f / (1.0f + expf(-d)) - fake);
    // A loss that is not finite spoils its gradient, so that the update sees it.
    if (weight[token] > 0.0f && !(nll[token] - nll[token] == 0.0f)) gradient = nll[token] - nll[token];
    if (labels == 1) {
        dlogits[token] = from_float<X>(gradient);
    } else {
        dlogits[2 * token] = from_float<X>(-gradient);
        dlogits[2 * token + 1] = from_float<X>(gradient);
    }
}

ENTRIES(rtd_head, ENTRY(corrupt), ENTRY(rtd_loss))
