// What every kernel sees. Kernels need no CUDA headers: NVRTC gets one self-contained text, and the host build
// (ELEKTRON_HOST, see host/simt.hpp) gives the same words a meaning on any machine.
//
// `X` is the working type of activations and working weights: bf16, or float where WORKING_FP32 is defined.
#pragma once

#ifdef ELEKTRON_HOST
#include "../host/simt.hpp"
#else
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#define DEVICE static __device__ __forceinline__
#define DEVICE_METHOD __device__ __forceinline__
// One block a multiprocessor is enough: the compiler may use every register rather than spill.
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
// As many blocks a multiprocessor, if need be with fewer registers; one with the wider registers of fp32.
#define KERNEL_RESIDENT(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, sizeof(X) == 2 ? blocks : 1)
// Two: while one waits for memory, the other multiplies.
#define KERNEL_PAIRED(threads) extern "C" __global__ void __launch_bounds__(threads, sizeof(X) == 2 ? 2 : 1)
#define ENTRIES(...)
#define INFINITE __int_as_float(0x7f800000)

/// The block's dynamic shared memory: the only kind in use, so that the host build can poison and guard it. Aligned for the tiles of
/// warpgroup.cuh.
DEVICE u8* shared_memory() {
    extern __shared__ __align__(1024) uint4 shared_bytes[];
    return reinterpret_cast<u8*>(shared_bytes);
}
#endif

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

DEVICE u32 lane_id() { return threadIdx.x % WARP; }
DEVICE u32 warp_id() { return threadIdx.x / WARP; }

DEVICE constexpr u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }
DEVICE u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
