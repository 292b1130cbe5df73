// bfloat16: the upper half of a float. Arithmetic is always done in float.
#pragma once
#include "ptx.cuh"

struct bf16 {
    u16 bits;
};

#ifdef WORKING_FP32
typedef float X;
#else
typedef bf16 X;
#endif

DEVICE float to_float(bf16 x) { return bits_to_float(static_cast<u32>(x.bits) << 16); }
DEVICE float to_float(float x) { return x; }

/// Round to nearest, ties to even.
DEVICE void assign(bf16& to, float x) { to.bits = static_cast<u16>(float2_to_bf16x2(x, 0.0f) & 0xffffu); }
DEVICE void assign(float& to, float x) { to = x; }

template <typename T>
DEVICE T from_float(float x) {
    T out;
    assign(out, x);
    return out;
}

/// What is left of `x` after it was stored.
template <typename T>
DEVICE float rounded(float x) {
    return to_float(from_float<T>(x));
}

/// p[0] = a, p[1] = b in one access; `p` is a multiple of two elements.
DEVICE void store2(bf16* p, float a, float b) { *reinterpret_cast<u32*>(p) = float2_to_bf16x2(a, b); }
DEVICE void store2(float* p, float a, float b) { *reinterpret_cast<float2*>(p) = float2{a, b}; }
