// Every instruction that C++ has no word for, one wrapper each, beside its twin for the host build.
#pragma once
#include "prelude.cuh"

/// A word of shared memory that other warps may be writing.
DEVICE u32 load_shared_again(const u32* at) { return *static_cast<const volatile u32*>(at); }

#ifdef ELEKTRON_HOST

/// The first statement of every kernel. Waits until what was launched before has ended and its writes are visible, then lets the blocks of
/// the next launch come as soon as there is room: from Hopper on a launch may overlap the end of the one before (programmatic dependent launch).
DEVICE void take_turn() { simt::take_turn(); }

DEVICE float bits_to_float(u32 bits) { return simt::bit_cast<float>(bits); }
DEVICE u32 float_to_bits(float x) { return simt::bit_cast<u32>(x); }

/// Two floats rounded to nearest even: `low` in the low half.
DEVICE u32 float2_to_bf16x2(float low, float high) {
    auto round = [](float x) -> u32 {
        u32 bits = float_to_bits(x);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;  // the canonical NaN of cvt
        return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    };
    return round(low) | (round(high) << 16);
}

/// 2^x.
DEVICE float exp2_approx(float x) { return ::exp2f(x); }

/// 1 / x, to the last place or so.
DEVICE float reciprocal_approx(float x) { return 1.0f / x; }
/// 1 / √x, likewise.
DEVICE float reciprocal_root_approx(float x) { return 1.0f / ::sqrtf(x); }

/// Upper half of the 64-bit product.
DEVICE u32 mul_high(u32 a, u32 b) { return static_cast<u32>((static_cast<u64>(a) * b) >> 32); }

/// Bits that are set.
DEVICE u32 popcount(u32 x) { return static_cast<u32>(__builtin_popcount(x)); }

/// A word of global memory that the compiler shall not keep in a register.
DEVICE u32 load_again(const u32* at) { return *at; }

/// What another block wrote to global memory: not from this multiprocessor's own cache.
DEVICE float load_fresh(const float* at) { return *at; }
DEVICE float4 load4_fresh(const float* at) { return *reinterpret_cast<const float4*>(at); }

template <typename T>
DEVICE T shuffle_xor(T value, u32 lane_mask) {
    return simt::shuffle(ALL_LANES, value, lane_id() ^ lane_mask);
}

/// The value of the lane `distance` before; of the first lanes their own.
DEVICE u32 shuffle_up(u32 value, u32 distance) {
    return simt::shuffle(ALL_LANES, value, lane_id() >= distance ? lane_id() - distance : lane_id());
}

/// The first lane's value, which all lanes have: so that the compiler knows.
DEVICE u32 of_first_lane(u32 value) { return simt::shuffle(ALL_LANES, value, 0); }

/// Bit per lane: whose predicate holds.
DEVICE u32 ballot(bool predicate) { return simt::ballot(ALL_LANES, predicate); }

/// 16 bytes from global to shared memory, arriving at a later `cp_async_wait`; zeros where `bytes` is 0.
DEVICE void cp_async16(void* shared, const void* global, u32 bytes) { simt::async_copy(shared, global, 16, bytes); }
/// The same of SIZE (4 or 8) bytes, through the multiprocessor's own cache.
template <u32 SIZE>
DEVICE void cp_async(void* shared, const void* global, bool exists) {
    simt::async_copy(shared, global, SIZE, exists ? SIZE : 0);
}
DEVICE void cp_async_commit() { simt::async_commit(); }
/// Waits until at most `PENDING` of this thread's committed groups are under way.
template <u32 PENDING>
DEVICE void cp_async_wait() {
    simt::async_wait(PENDING);
}

/// Orders what this thread wrote to shared memory before what tensor cores read there by themselves (`wgmma`).
DEVICE void fence_products() {}

/// Bytes from the beginning of the block's shared memory.
DEVICE u32 shared_address(const void* shared) { return static_cast<u32>(static_cast<const u8*>(shared) - simt::shared_memory()); }

/// Four 8 × 8 matrices of 16-bit elements; row r of matrix i is at the address that lane 8i + r gives.
/// A lane receives of each matrix the elements (lane / 4, 2 (lane % 4)) and the next; transposed, of its transpose.
template <bool TRANSPOSED>
DEVICE void ldmatrix_x4(u32 (&out)[4], const void* row) {
    simt::ldmatrix(out, row, TRANSPOSED);
}

#else

DEVICE void take_turn() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 float_to_bits(float x) { return __float_as_uint(x); }

DEVICE u32 float2_to_bf16x2(float low, float high) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

DEVICE float exp2_approx(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

DEVICE float reciprocal_approx(float x) {
    float out;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

DEVICE float reciprocal_root_approx(float x) {
    float out;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

DEVICE u32 mul_high(u32 a, u32 b) { return __umulhi(a, b); }

DEVICE u32 popcount(u32 x) { return static_cast<u32>(__popc(x)); }

DEVICE u32 load_again(const u32* at) {
    u32 out;
    asm volatile("ld.global.ca.u32 %0, [%1];" : "=r"(out) : "l"(at) : "memory");
    return out;
}

DEVICE float load_fresh(const float* at) {
    float out;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(out) : "l"(at) : "memory");
    return out;
}
DEVICE float4 load4_fresh(const float* at) {
    float4 out;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(out.x), "=f"(out.y), "=f"(out.z), "=f"(out.w)
                 : "l"(at)
                 : "memory");
    return out;
}

template <typename T>
DEVICE T shuffle_xor(T value, u32 lane_mask) {
    return __shfl_xor_sync(ALL_LANES, value, lane_mask);
}

DEVICE u32 shuffle_up(u32 value, u32 distance) { return __shfl_up_sync(ALL_LANES, value, distance); }

DEVICE u32 of_first_lane(u32 value) { return __shfl_sync(ALL_LANES, value, 0); }

DEVICE u32 ballot(bool predicate) { return __ballot_sync(ALL_LANES, predicate); }

DEVICE u32 shared_address(const void* shared) { return static_cast<u32>(__cvta_generic_to_shared(shared)); }

DEVICE void cp_async16(void* shared, const void* global, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}
template <u32 SIZE>
DEVICE void cp_async(void* shared, const void* global, bool exists) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(exists ? SIZE : 0), "n"(SIZE)
                 : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <u32 PENDING>
DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

DEVICE void fence_products() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

template <bool TRANSPOSED>
DEVICE void ldmatrix_x4(u32 (&out)[4], const void* row) {
    if (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(shared_address(row))
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(shared_address(row))
                     : "memory");
    }
}

#endif
