// Activation functions and their derivatives. GELU is the exact form x Φ(x) with the error function (Hendrycks & Gimpel 2016);
// gelu_new is the tanh form.
#pragma once
#include "bf16.cuh"

/// Numbered as the launchers number them.
enum class Activation : u32 { NONE, GELU, GELU_TANH, RELU };

constexpr float LOG2E_HALF = 0.72134752044448170f;
constexpr float SQRT_HALF = 0.70710678118654752f;
constexpr float INV_SQRT_2PI = 0.39894228040143268f;
constexpr float TANH_SCALE = 0.79788456080286536f;  // sqrt(2 / pi)
constexpr float TANH_CUBIC = 0.044715f;

/// Φ(x) and its derivative φ(x), up to a factor.
struct Normal {
    float distribution, density;  // Φ(x), φ(x) · √(2π)
};

/// For bf16 by Abramowitz and Stegun 7.1.26, which needs no more than the exponential of the density: 1.5e-7 of 1, and 0.2 % of a tail
/// of 3e-7 (x = -5), where bf16 resolves 0.4 %.
DEVICE Normal normal(float x) {
    if (sizeof(X) > 2) return {0.5f * (1.0f + erff(x * SQRT_HALF)), expf(-0.5f * x * x)};
    const float density = exp2_approx(-LOG2E_HALF * x * x);
    const float t = reciprocal_approx(1.0f + 0.3275911f * SQRT_HALF * fabsf(x));
    const float series = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    const float tail = 0.5f * series * density;
    return {x < 0.0f ? tail : 1.0f - tail, density};
}

DEVICE float activate(Activation a, float x) {
    if (a == Activation::GELU) return x * normal(x).distribution;
    if (a == Activation::GELU_TANH) return 0.5f * x * (1.0f + tanhf(TANH_SCALE * (x + TANH_CUBIC * x * x * x)));
    if (a == Activation::RELU) return x > 0.0f ? x : 0.0f;
    return x;
}

DEVICE float derivative(Activation a, float x) {
    if (a == Activation::GELU) {
        const Normal n = normal(x);
        return n.distribution + x * INV_SQRT_2PI * n.density;
    }
    if (a == Activation::GELU_TANH) {
        const float cubic = TANH_CUBIC * x * x, t = tanhf(TANH_SCALE * x * (1.0f + cubic));
        return 0.5f * (1.0f + t + x * (1.0f - t * t) * TANH_SCALE * (1.0f + 3.0f * cubic));
    }
    if (a == Activation::RELU) return x > 0.0f ? 1.0f : 0.0f;
    return 1.0f;
}
