// Rows read and written eight elements at a time: 16-byte accesses where the row's width allows them.
#pragma once
#include "bf16.cuh"

/// Elements of a step.
constexpr u32 EIGHT = 8;

/// Whether rows of `width` elements all start at multiples of 16 bytes (their buffer does).
DEVICE bool rows_are_aligned(u32 width) { return width % EIGHT == 0; }

/// x = p[0 .. 8]; `count` of them exist, the others read as 0. `aligned` promises 16-byte alignment and all eight.
DEVICE void load8(float (&x)[EIGHT], const bf16* p, u32 count, bool aligned) {
    if (aligned) {
        const uint4 packed = *reinterpret_cast<const uint4*>(p);
        const u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            x[2 * i] = bits_to_float(words[i] << 16);
            x[2 * i + 1] = bits_to_float(words[i] & 0xffff0000u);
        }
    } else {
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[i] = i < count ? to_float(p[i]) : 0.0f;
    }
}

DEVICE void load8(float (&x)[EIGHT], const float* p, u32 count, bool aligned) {
    if (aligned) {
        const float4 low = reinterpret_cast<const float4*>(p)[0], high = reinterpret_cast<const float4*>(p)[1];
        x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
        x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
    } else {
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[i] = i < count ? p[i] : 0.0f;
    }
}

/// The same, of aligned floats that another block wrote: not from this multiprocessor's own cache.
DEVICE void load8_fresh(float (&x)[EIGHT], const float* p) {
    const float4 low = load4_fresh(p), high = load4_fresh(p + 4);
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

/// p[0 .. 8] = x, or the first `count` of them.
DEVICE void store8(bf16* p, const float (&x)[EIGHT], u32 count, bool aligned) {
    if (aligned) {
        uint4 packed;
        packed.x = float2_to_bf16x2(x[0], x[1]);
        packed.y = float2_to_bf16x2(x[2], x[3]);
        packed.z = float2_to_bf16x2(x[4], x[5]);
        packed.w = float2_to_bf16x2(x[6], x[7]);
        *reinterpret_cast<uint4*>(p) = packed;
    } else {
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) {
            if (i < count) p[i] = from_float<bf16>(x[i]);
        }
    }
}

DEVICE void store8(float* p, const float (&x)[EIGHT], u32 count, bool aligned) {
    if (aligned) {
        reinterpret_cast<float4*>(p)[0] = float4{x[0], x[1], x[2], x[3]};
        reinterpret_cast<float4*>(p)[1] = float4{x[4], x[5], x[6], x[7]};
    } else {
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) {
            if (i < count) p[i] = x[i];
        }
    }
}

/// x = p[0 .. 4] of floats, in one access where all four exist: `p` is a multiple of four elements.
DEVICE void load4(float (&x)[4], const float* p, u32 count) {
    if (count == 4) {
        const float4 all = *reinterpret_cast<const float4*>(p);
        x[0] = all.x, x[1] = all.y, x[2] = all.z, x[3] = all.w;
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; i++) x[i] = i < count ? p[i] : 0.0f;
    }
}

/// p[0 .. 4] = x, or the first `count` of them.
DEVICE void store4(float* p, const float (&x)[4], u32 count) {
    if (count == 4) {
        *reinterpret_cast<float4*>(p) = float4{x[0], x[1], x[2], x[3]};
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (i < count) p[i] = x[i];
        }
    }
}

DEVICE void store4(bf16* p, const float (&x)[4], u32 count) {
    if (count == 4) {
        *reinterpret_cast<uint2*>(p) = uint2{float2_to_bf16x2(x[0], x[1]), float2_to_bf16x2(x[2], x[3])};
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (i < count) p[i] = from_float<bf16>(x[i]);
        }
    }
}

/// How many of the eight elements from column `col` on exist.
DEVICE u32 columns_left(u32 col, u32 width) { return col >= width ? 0 : min_u32(width - col, EIGHT); }
