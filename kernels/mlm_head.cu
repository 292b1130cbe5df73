// The generator's loss at the masked positions: cross-entropy, its gradient and a Gumbel sample of each row of logits.
//
// nll = ln Σ exp(x) - x[target]; sample = arg-max x / temperature + g, g = -ln(-ln(u + 1e-9) + 1e-9) (Jang et al. 2017);
// dx = scale · weight · (softmax(x) - one_hot(target)), in place; between vocabulary and pitch 0.
// Decomposition: a block a row. One sweep finds the maximum, the running Σ exp (Milakov & Gimelshein 2018), the most probable
// token and the sample; a second, which finds the row in L2, writes the gradient.
// Noise is worth its two logarithms only where a cheap bound on it could win against the best score of the block so far, as far as a warp knows
// it: what it knows decides what is computed, never the result.
// Bytes a row, bf16: 2V read, 2V read from L2, 2V written. Bound: memory, and the words of noise.
// Determinism: each thread takes fixed tokens, threads are combined in order; of equal scores the lowest token wins.
#include "common/philox.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

constexpr u32 MLM_THREADS = 512;

/// Σ exp(x - highest) over what a thread has seen.
struct Exponentials {
    float highest, sum;
};

constexpr float LOG2E = 1.44269504088896341f;

/// e^(x - base): to two units in the last place is enough for bf16.
DEVICE float exponential(float x, float base) { return sizeof(X) == 2 ? exp2_approx(x * LOG2E - base * LOG2E) : expf(x - base); }

DEVICE Exponentials merge(Exponentials a, Exponentials b) {
    const float highest = a.highest > b.highest ? a.highest : b.highest;
    if (highest == -INFINITE) return {highest, 0.0f};
    return {highest, a.sum * expf(a.highest - highest) + b.sum * expf(b.highest - highest)};
}

DEVICE Exponentials block_merge(Exponentials x, Exponentials* scratch) {
#pragma unroll
    for (u32 d = 1; d < WARP; d *= 2) {
        const Exponentials other = {shuffle_xor(x.highest, d), shuffle_xor(x.sum, d)};
        // The lower lane's part comes first on both sides, so both compute the same bits.
        x = lane_id() & d ? merge(other, x) : merge(x, other);
    }
    if (lane_id() == 0) scratch[warp_id()] = x;
    __syncthreads();  // the warps' parts are written
    Exponentials total = scratch[0];
    for (u32 w = 1; w < MLM_THREADS / WARP; w++) total = merge(total, scratch[w]);
    __syncthreads();  // all have read before scratch is used again
    return total;
}

/// A score reaches `best` only if its u of `gumbel` lies so near to 1: -ln u >= 1 - u, so that 1 - u <= exp(score - best). `floor` is a little less
/// than `best`, for what is rounded on the way, and so is what u + 1, exact in the word's 23 highest bits but for half a step, is compared with.
DEVICE float floor_below(float best) { return best - 0.05f - 5e-7f * fabsf(best); }
DEVICE bool may_win(float score, u32 word, float floor) {
    return bits_to_float(word >> 9 | 0x3f800000u) >= 2.0f - 5e-7f - exponential(score, floor);
}

DEVICE float gumbel(u32 word) { return -logf(-logf(open_unit(word) + 1e-9f) + 1e-9f); }

/// `sampled` null: samples are given elsewhere. `gradient` 0: the logits stay.
KERNEL(MLM_THREADS) mlm_loss(X* logits, const u32* targets, const u32* masked_index, const float* weight, float scale,
                             float inverse_temperature, u32 disallow_correct, Dropout noise, u32 gradient, float* nll, u32* best,
                             u32* sampled, u32 vocabulary, u32 pitch) {
    take_turn();
    u8* scratch = shared_memory();
    noise = at_clock(noise);
    const u32 row = blockIdx.x, target = targets[row];
    X* x = logits + static_cast<u64>(row) * pitch;
    const u32 noise_row = masked_index[row];
    Exponentials seen = {-INFINITE, 0.0f};
    Best highest = {-INFINITE, 0xffffffffu}, drawn = {-INFINITE, 0xffffffffu};
    const bool aligned = rows_are_aligned(pitch);
    u32* best_of_block = reinterpret_cast<u32*>(scratch) + 2 * MLM_THREADS / WARP;  // a score's order among all
    if (threadIdx.x == 0) *best_of_block = to_order(-INFINITE);
    u32 found = 0xffffffffu;  // where the thread's highest eight begin
    __syncthreads();  // the block's best is set
    auto visit = [&](u32 first, u32 count, bool whole) {
        float values[EIGHT], most = -INFINITE;
        load8(values, x + (count ? first : 0), count, whole);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) {
            if (!whole) values[i] = i < count ? values[i] : -INFINITE;
            most = fmaxf(most, values[i]);
        }
        if (count && (most > highest.score || found > vocabulary)) highest.score = most, found = first;
        const float now = fmaxf(seen.highest, most), base = now == -INFINITE ? 0.0f : now;
        seen.sum *= exponential(seen.highest, base);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) seen.sum += exponential(values[i], base);
        seen.highest = now;
        if (!sampled) return;
        const Words words[2] = {philox(noise, first / 4, noise_row), philox(noise, first / 4 + 1, noise_row)};
        float best_now = from_order(load_shared_again(best_of_block));
        if (ballot(best_now == -INFINITE)) {
            // Nothing is known yet: of each thread the score with the highest noise is a first bound.
            u32 word = 0, token = first;
            float score = -INFINITE;
#pragma unroll
            for (u32 i = 0; i < EIGHT; i++) {
                const u32 other = words[i / 4].w[i % 4];
                if (i < count && other >= word) word = other, score = values[i], token = first + i;
            }
            const bool counts = count && !(disallow_correct && token == target);
            best_now = fmaxf(best_now, warp_max(counts ? score * inverse_temperature + gumbel(word) : -INFINITE));
        }
        const float floor = floor_below(best_now);
        bool candidate = false;
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) candidate |= may_win(values[i] * inverse_temperature, words[i / 4].w[i % 4], floor);
        bool better_now = false;
        if (candidate) {
#pragma unroll
            for (u32 i = 0; i < EIGHT; i++) {
                const u32 token = first + i, word = words[i / 4].w[i % 4];
                const float score = values[i] * inverse_temperature;
                if (i >= count || !may_win(score, word, floor) || (disallow_correct && token == target)) continue;
                drawn = better(drawn, Best{score + gumbel(word), token});
                better_now |= drawn.score >= best_now;
            }
        }
        if (ballot(better_now)) {
            const float best = warp_max(drawn.score);
            if (lane_id() == 0) atomicMax(best_of_block, to_order(best));
        }
    };
    u32 start = 0;  // warps stay together
    for (; aligned && start + MLM_THREADS * EIGHT <= vocabulary; start += MLM_THREADS * EIGHT) visit(start + threadIdx.x * EIGHT, EIGHT, true);
    for (; start < vocabulary; start += MLM_THREADS * EIGHT) {
        const u32 first = start + threadIdx.x * EIGHT;
        visit(first, columns_left(first, vocabulary), false);
    }
    // Of the thread's highest eight the first that is as high: read again, which costs less than keeping track.
    if (found <= vocabulary) {
        const u32 count = columns_left(found, vocabulary);
        float values[EIGHT];
        load8(values, x + found, count, aligned && count == EIGHT);
#pragma unroll
        for (u32 i = EIGHT; i-- > 0;) highest.index = i < count && values[i] == highest.score ? found + i : highest.index;
    }
    seen = block_merge(seen, reinterpret_cast<Exponentials*>(scratch));
    highest = block_best(highest, reinterpret_cast<Best*>(scratch));
    if (sampled) drawn = block_best(drawn, reinterpret_cast<Best*>(scratch));
    if (threadIdx.x == 0) {
        nll[row] = seen.highest + logf(seen.sum) - to_float(x[target]);
        best[row] = min_u32(highest.index, vocabulary - 1);  // a row of NaN has no best: any token does
        if (sampled) sampled[row] = min_u32(drawn.index, vocabulary - 1);
    }
    if (!gradient) return;
    // A loss that is not finite spoils its gradient, so that the update sees it.
    const float loss = seen.highest + logf(seen.sum) - to_float(x[target]);
    __syncthreads();  // all have read the target's logit
    const float share = weight[row] * scale;
    const float factor = share == 0.0f || loss - loss == 0.0f ? share / seen.sum : loss - loss;
    auto differentiate = [&](u32 first, u32 count, u32 to_write, bool whole) {
        float d[EIGHT];
        load8(d, x + first, count, whole);
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) d[i] = whole || i < count ? factor * exponential(d[i], seen.highest) : 0.0f;
        if (target - first < EIGHT) {
#pragma unroll
            for (u32 i = 0; i < EIGHT; i++) d[i] -= first + i == target ? share : 0.0f;
        }
        store8(x + first, d, to_write, aligned && to_write == EIGHT);
    };
    u32 first = threadIdx.x * EIGHT;
    for (; aligned && first + EIGHT <= vocabulary; first += MLM_THREADS * EIGHT) differentiate(first, EIGHT, EIGHT, true);
    for (; first < pitch; first += MLM_THREADS * EIGHT) differentiate(first, columns_left(first, vocabulary), columns_left(first, pitch), false);
}

ENTRIES(mlm_head, ENTRY(mlm_loss))
