// The optimizer over flat buffers: global gradient norm, AdamW with the clip factor applied on the way, working copy written, gradients zeroed.
//
// Decomposition: the norm by blocks over fixed spans (their number depends on the length alone), the last of them over the partial
// sums; AdamW a thread four elements. Bytes a parameter: norm 4 read; AdamW 16 1/8 read, 16 + sizeof X written. Bound: memory.
// A norm that is not finite leaves everything but the gradients as it was: the caller reads the norm and decides.
// Determinism: fixed spans, fixed trees.
#include "common/reduce.cuh"
#include "common/vec.cuh"

constexpr u32 OPTIM_THREADS = 256;

/// out (1) = Σ x². partials (gridDim.x): over each block's span of elements, span a multiple of 256.
KERNEL(OPTIM_THREADS) norm_squared(const float* x, float* out, float* partials, u32* counter, u64 n, u64 span) {
    take_turn();
    float* scratch = reinterpret_cast<float*>(shared_memory());
    const u64 begin = blockIdx.x * span, end = begin + span < n ? begin + span : n;
    float sum = 0.0f;
    for (u64 i = begin + threadIdx.x; i < end; i += OPTIM_THREADS) sum += x[i] * x[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
    if (!last_block(counter, gridDim.x, reinterpret_cast<u32*>(scratch))) return;
    sum = 0.0f;
    for (u32 i = threadIdx.x; i < gridDim.x; i += OPTIM_THREADS) sum += load_fresh(partials + i);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) out[0] = sum;
}

/// The constants of one update, in device memory as `Clock`; mirrors `UpdateArgs` of the launcher.
struct Update {
    float beta1, beta2, eps;
    float rate;      // lr, divided by 1 - beta1^t with bias correction
    float root;      // 1 / sqrt(1 - beta2^t), or 1
    float decay;     // lr · weight decay
    float max_norm;  // 0: no clipping
    float unused;
};

/// In two accesses.
DEVICE Update read(const Update* rule) {
    const float4 low = reinterpret_cast<const float4*>(rule)[0], high = reinterpret_cast<const float4*>(rule)[1];
    return {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
}

/// `decayed`: a bit per element, whether it decays.
KERNEL(OPTIM_THREADS) adamw(float* grads, float* m, float* v, float* master, X* working, const float* norm_squared, const Update* rule, const u32* decayed,
                            u64 n) {
    take_turn();
    const u64 begin = (static_cast<u64>(blockIdx.x) * OPTIM_THREADS + threadIdx.x) * 4;
    if (begin >= n) return;
    const u32 here = n - begin < 4 ? static_cast<u32>(n - begin) : 4;
    // All loads are under way before any is waited for.
    float g[4], m4[4], v4[4], p[4];
    load4(g, grads + begin, here);
    load4(m4, m + begin, here);
    load4(v4, v + begin, here);
    load4(p, master + begin, here);
    const u32 decays = decayed[begin / 32] >> begin % 32;
    const Update u = read(rule);
    const float norm = sqrtf(norm_squared[0]);
    const bool finite = norm - norm == 0.0f;
    const float clip = u.max_norm > 0.0f && norm > u.max_norm ? u.max_norm / norm : 1.0f;
    const float zeros[4] = {};
    store4(grads + begin, zeros, here);
    if (!finite) return;
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        g[j] *= clip;
        m4[j] = u.beta1 * m4[j] + (1.0f - u.beta1) * g[j];
        v4[j] = u.beta2 * v4[j] + (1.0f - u.beta2) * g[j] * g[j];
        p[j] = p[j] - (decays >> j & 1 ? u.decay * p[j] : 0.0f) - u.rate * m4[j] / (sqrtf(v4[j]) * u.root + u.eps);
    }
    store4(m + begin, m4, here);
    store4(v + begin, v4, here);
    store4(master + begin, p, here);
    store4(working + begin, p, here);
}

ENTRIES(optim, ENTRY(norm_squared), ENTRY(adamw))
