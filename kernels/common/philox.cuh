// Philox4x32-7 (Salmon et al., SC'11): the same numbers as src/rng.rs, so that every backend drops, masks and samples
// alike and nothing is stored for the backward pass.
#pragma once
#include "ptx.cuh"

/// Where a step is: what changes from one to the next lies in device memory, so that the same launches serve every step.
struct Clock {
    u32 step;
    u32 row0;   // number of the batch's first token among all tokens of the step
    u32 slot0;  // number of the batch's first sequence among all sequences of the step
};

/// Rounds of the generator: as few as pass BigCrush.
constexpr u32 ROUNDS = 7;

/// The stream (seed, site, step) and the rule of inverted dropout; mirrors `DropoutArgs` of the launchers, which leave step and row0 to
/// `at_clock`.
struct Dropout {
    u32 threshold;  // an element is dropped when its 16 bits are below; 0 switches dropout off
    float scale;    // 1 / (1 - p)
    u32 key0, key1;
    u32 site, step;
    u32 row0, unused;
    const Clock* clock;  // null where nothing is drawn
};

DEVICE Dropout at_clock(Dropout d) {
    if (d.clock) d.step = d.clock->step, d.row0 = d.clock->row0;
    return d;
}

struct Words {
    u32 w[4];
};

/// The four words at counter (index, row, site, step); `row` counts from the batch's first row.
DEVICE Words philox(const Dropout& d, u32 index, u32 row) {
    u32 c0 = index, c1 = d.row0 + row, c2 = d.site, c3 = d.step;
    u32 k0 = d.key0, k1 = d.key1;
#pragma unroll
    for (u32 round = 0; round < ROUNDS; round++) {
        if (round > 0) k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        const u32 high0 = mul_high(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const u32 high1 = mul_high(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
    }
    return Words{{c0, c1, c2, c3}};
}

/// Whether an element is kept: a block of Philox decides about eight, 16 bits each, the lower half of a word before the upper.
DEVICE bool keeps_low(const Dropout& d, u32 word) { return word << 16 >= d.threshold << 16; }
DEVICE bool keeps_high(const Dropout& d, u32 word) { return word >= d.threshold << 16; }

/// Drops eight elements of a row, from column `col` (a multiple of 8) on.
DEVICE void drop8(float (&x)[8], const Dropout& d, u32 row, u32 col) {
    if (d.threshold == 0) return;
    const Words words = philox(d, col / 8, row);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        x[2 * i] *= keeps_low(d, words.w[i]) ? d.scale : 0.0f;
        x[2 * i + 1] *= keeps_high(d, words.w[i]) ? d.scale : 0.0f;
    }
}

/// A uniform number in (0, 1) from 23 bits of a word; exact.
DEVICE float open_unit(u32 word) { return (static_cast<float>(word >> 9) + 0.5f) * (1.0f / 8388608.0f); }
