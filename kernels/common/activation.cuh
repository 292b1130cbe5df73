// Activation functions and their derivatives. GELU is the exact form x Φ(x) with the error function (Hendrycks & Gimpel 2016);
// gelu_new is the tanh form.
#pragma once
#include "ptx.cuh"

/// Numbered as the launchers number them.
enum class Activation : u32 { NONE, GELU, GELU_TANH, RELU };

constexpr float SQRT_HALF = 0.70710678118654752f;
constexpr float INV_SQRT_2PI = 0.39894228040143268f;
constexpr float TANH_SCALE = 0.79788456080286536f;  // sqrt(2 / pi)
constexpr float TANH_CUBIC = 0.044715f;

DEVICE float activate(Activation a, float x) {
    if (a == Activation::GELU) return 0.5f * x * (1.0f + erff(x * SQRT_HALF));
    if (a == Activation::GELU_TANH) return 0.5f * x * (1.0f + tanhf(TANH_SCALE * (x + TANH_CUBIC * x * x * x)));
    if (a == Activation::RELU) return x > 0.0f ? x : 0.0f;
    return x;
}

DEVICE float derivative(Activation a, float x) {
    if (a == Activation::GELU) return 0.5f * (1.0f + erff(x * SQRT_HALF)) + x * INV_SQRT_2PI * expf(-0.5f * x * x);
    if (a == Activation::GELU_TANH) {
        const float cubic = TANH_CUBIC * x * x, t = tanhf(TANH_SCALE * x * (1.0f + cubic));
        return 0.5f * (1.0f + t + x * (1.0f - t * t) * TANH_SCALE * (1.0f + 3.0f * cubic));
    }
    if (a == Activation::RELU) return x > 0.0f ? 1.0f : 0.0f;
    return 1.0f;
}
