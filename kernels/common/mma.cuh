// Warp-wide products of small tiles: 16 × 16 by 16 × 8, accumulated in fp32.
//
// Fragments follow mma.sync m16n8k16. With g = lane / 4 and t = lane % 4 a lane holds
//   A (16 × 16):  (g, 2t), (g, 2t+1) · (g+8, 2t), … · (g, 2t+8), … · (g+8, 2t+8), …
//   B (16 × 8):   (2t, g), (2t+1, g) · (2t+8, g), (2t+9, g)
//   C (16 × 8):   (g, 2t), (g, 2t+1) · (g+8, 2t), (g+8, 2t+1)
// so two C tiles side by side are the A tile of the next product: probabilities never leave the registers.
// fp32 has no such instruction that keeps all its bits (TF32 has ten): there the same fragments are multiplied by fused
// multiply-adds on values that lanes pass to each other. One algorithm serves both precisions.
#pragma once
#include "bf16.cuh"

template <typename T>
struct FragmentA;
template <typename T>
struct FragmentB;
template <>
struct FragmentA<bf16> {
    u32 r[4];
};
template <>
struct FragmentB<bf16> {
    u32 r[2];
};
template <>
struct FragmentA<float> {
    float v[8];
};
template <>
struct FragmentB<float> {
    float v[4];
};

/// A from shared memory, (row, k) at tile[row · ld + k].
DEVICE void load_a(FragmentA<bf16>& a, const bf16* tile, u32 ld) {
    const u32 matrix = lane_id() / 8, r = lane_id() % 8;
    ldmatrix_x4<false>(a.r, tile + (r + matrix % 2 * 8) * ld + matrix / 2 * 8);
}
DEVICE void load_a(FragmentA<float>& a, const float* tile, u32 ld) {
    const u32 g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (u32 i = 0; i < 8; i++) a.v[i] = tile[(g + i / 2 % 2 * 8) * ld + 2 * t + i % 2 + i / 4 * 8];
}

/// The same with (row, k) at tile[k · ld + row].
DEVICE void load_a_columns(FragmentA<bf16>& a, const bf16* tile, u32 ld) {
    const u32 matrix = lane_id() / 8, r = lane_id() % 8;
    ldmatrix_x4<true>(a.r, tile + (r + matrix / 2 * 8) * ld + matrix % 2 * 8);
}
DEVICE void load_a_columns(FragmentA<float>& a, const float* tile, u32 ld) {
    const u32 g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (u32 i = 0; i < 8; i++) a.v[i] = tile[(2 * t + i % 2 + i / 4 * 8) * ld + g + i / 2 % 2 * 8];
}

/// Two B side by side, 16 × 16, (k, n) at tile[n · ld + k].
DEVICE void load_b(FragmentB<bf16> (&b)[2], const bf16* tile, u32 ld) {
    const u32 matrix = lane_id() / 8, r = lane_id() % 8;
    u32 out[4];
    ldmatrix_x4<false>(out, tile + (r + matrix / 2 * 8) * ld + matrix % 2 * 8);
    b[0] = {{out[0], out[1]}};
    b[1] = {{out[2], out[3]}};
}
DEVICE void load_b(FragmentB<float> (&b)[2], const float* tile, u32 ld) {
    const u32 g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 k = 2 * t + i % 2 + i / 2 * 8;
        b[0].v[i] = tile[g * ld + k];
        b[1].v[i] = tile[(g + 8) * ld + k];
    }
}

/// The same with (k, n) at tile[k · ld + n].
DEVICE void load_b_rows(FragmentB<bf16> (&b)[2], const bf16* tile, u32 ld) {
    const u32 matrix = lane_id() / 8, r = lane_id() % 8;
    u32 out[4];
    ldmatrix_x4<true>(out, tile + (r + matrix % 2 * 8) * ld + matrix / 2 * 8);
    b[0] = {{out[0], out[1]}};
    b[1] = {{out[2], out[3]}};
}
DEVICE void load_b_rows(FragmentB<float> (&b)[2], const float* tile, u32 ld) {
    const u32 g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 k = 2 * t + i % 2 + i / 2 * 8;
        b[0].v[i] = tile[k * ld + g];
        b[1].v[i] = tile[k * ld + g + 8];
    }
}

/// Two neighbouring C tiles as an A tile of working precision.
DEVICE void to_a(FragmentA<bf16>& a, const float (&left)[4], const float (&right)[4]) {
    a.r[0] = float2_to_bf16x2(left[0], left[1]);
    a.r[1] = float2_to_bf16x2(left[2], left[3]);
    a.r[2] = float2_to_bf16x2(right[0], right[1]);
    a.r[3] = float2_to_bf16x2(right[2], right[3]);
}
DEVICE void to_a(FragmentA<float>& a, const float (&left)[4], const float (&right)[4]) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) a.v[i] = left[i], a.v[4 + i] = right[i];
}

#ifdef ELEKTRON_HOST

/// Element `i` of a lane's fragment.
DEVICE float element(const FragmentA<bf16>& a, u32 i) { return bits_to_float(i % 2 ? a.r[i / 2] & 0xffff0000u : a.r[i / 2] << 16); }
DEVICE float element(const FragmentB<bf16>& b, u32 i) { return bits_to_float(i % 2 ? b.r[i / 2] & 0xffff0000u : b.r[i / 2] << 16); }
DEVICE float element(const FragmentA<float>& a, u32 i) { return a.v[i]; }
DEVICE float element(const FragmentB<float>& b, u32 i) { return b.v[i]; }

/// c += a · b, from the fragments that all lanes hand in.
template <typename T>
DEVICE void mma(float (&c)[4], const FragmentA<T>& a, const FragmentB<T>& b) {
    struct Both {
        FragmentA<T> a;
        FragmentB<T> b;
    };
    const Both mine = {a, b};
    const Both* all = simt::exchange(ALL_LANES, mine);
    const u32 g = lane_id() / 4, t = lane_id() % 4;
    for (u32 k = 0; k < 16; k++) {
        const u32 holder = k % 8 / 2, half = k / 8, odd = k % 2;
        for (u32 i = 0; i < 4; i++) {
            const float x = element(all[g * 4 + holder].a, half * 4 + i / 2 * 2 + odd);
            const float y = element(all[(2 * t + i % 2) * 4 + holder].b, half * 2 + odd);
            c[i] += x * y;
        }
    }
}

#else

/// c += a · b
DEVICE void mma(float (&c)[4], const FragmentA<bf16>& a, const FragmentB<bf16>& b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
}

DEVICE void mma(float (&c)[4], const FragmentA<float>& a, const FragmentB<float>& b) {
    const u32 g = lane_id() / 4, t = lane_id() % 4;
    // Not unrolled: the lane that holds an element varies, the register does not.
#pragma unroll 1
    for (u32 holder = 0; holder < 4; holder++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 half = i / 2, odd = i % 2;
            const float low = __shfl_sync(ALL_LANES, a.v[half * 4 + odd], g * 4 + holder);
            const float high = __shfl_sync(ALL_LANES, a.v[half * 4 + 2 + odd], g * 4 + holder);
            const float left = __shfl_sync(ALL_LANES, b.v[half * 2 + odd], 2 * t * 4 + holder);
            const float right = __shfl_sync(ALL_LANES, b.v[half * 2 + odd], (2 * t + 1) * 4 + holder);
            c[0] += low * left;
            c[1] += low * right;
            c[2] += high * left;
            c[3] += high * right;
        }
    }
}

#endif
