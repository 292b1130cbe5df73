// Rows read and written eight elements at a time: 16-byte accesses where the row's width allows them.
#pragma once
#include "bf16.cuh"

/// Elements of a step.
constexpr u32 EIGHT = 8;

/// Whether rows of `width` elements all start at multiples of 16 bytes (their buffer does).
DEVICE bool rows_are_aligned(u32 width) { return width % EIGHT == 0; }

/// Eight elements as they lie in memory, for loads that shall be under way while others are computed with.
template <typename T>
struct Raw8;
template <>
struct Raw8<bf16> {
    uint4 all;
};
template <>
struct Raw8<float> {
    float4 low, high;
};
/// From a multiple of 16 bytes.
DEVICE void load_raw(Raw8<bf16>& raw, const bf16* p) { raw.all = *reinterpret_cast<const uint4*>(p); }
DEVICE void load_raw(Raw8<float>& raw, const float* p) { raw.low = reinterpret_cast<const float4*>(p)[0], raw.high = reinterpret_cast<const float4*>(p)[1]; }
DEVICE void unpack(float (&x)[EIGHT], const Raw8<bf16>& raw) {
    const u32 words[4] = {raw.all.x, raw.all.y, raw.all.z, raw.all.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        x[2 * i] = bits_to_float(words[i] << 16);
        x[2 * i + 1] = bits_to_float(words[i] & 0xffff0000u);
    }
}
DEVICE void unpack(float (&x)[EIGHT], const Raw8<float>& raw) {
    x[0] = raw.low.x, x[1] = raw.low.y, x[2] = raw.low.z, x[3] = raw.low.w;
    x[4] = raw.high.x, x[5] = raw.high.y, x[6] = raw.high.z, x[7] = raw.high.w;
}

/// x = p[0 .. 8]; `count` of them exist, the others read as 0. `aligned` promises 16-byte alignment and all eight.
DEVICE void load8(float (&x)[EIGHT], const bf16* p, u32 count, bool aligned) {
    if (aligned) {
        Raw8<bf16> raw;
        load_raw(raw, p);
        unpack(x, raw);
    } else {
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[i] = i < count ? to_float(p[i]) : 0.0f;
    }
}

DEVICE void load8(float (&x)[EIGHT], const float* p, u32 count, bool aligned) {
    if (aligned) {
        Raw8<float> raw;
        load_raw(raw, p);
        unpack(x, raw);
    } else {
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) x[i] = i < count ? p[i] : 0.0f;
    }
}

/// Eight aligned floats that another block wrote: not from this multiprocessor's own cache.
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
