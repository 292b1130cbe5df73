// CUDA's words for the host compiler: the same kernels run on any machine, one fiber a thread.
//
// A block's threads run one after the other until each waits: at `__syncthreads` for the block, at a shuffle, ballot or matrix
// product for its warp. So whatever order the fibers take, a correct kernel gives the same bits; a kernel with a missing barrier does
// not. Blocks run one after the other. Shared memory is filled with NaN before every block and has guard bands; asynchronous copies
// and products of warpgroups arrive at the wait and not before; a warp operation whose lanes disagree, a wait that cannot end, and a kernel that does not wait for its turn
// are errors.
// What this cannot show: bank conflicts, memory ordering between blocks and towards what tensor cores read by themselves, registers that the assembler
// gives away while they are in use, occupancy, speed.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;

struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct alignas(8) uint2 {
    u32 x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};

#define DEVICE [[maybe_unused]] static inline
#define DEVICE_METHOD inline
#define KERNEL(threads) static void
#define KERNEL_RESIDENT(threads, blocks) static void
#define KERNEL_PAIRED(threads) static void
#define INFINITE (__builtin_inff())
#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_dim())
#define gridDim (simt::grid_dim())

namespace simt {

struct Dim {
    u32 x, y, z;
};

// Implemented in simt.cpp, for the thread that is running.
const Dim& thread_index();
const Dim& block_index();
const Dim& block_dim();
const Dim& grid_dim();
u8* shared_memory();
void barrier();
/// Hands `size` bytes to the other lanes of `mask` and waits for theirs; lane i's lie at result + i * stride. `kind` must agree.
const u8* meet(u32 mask, u32 kind, const void* mine, size_t size, size_t stride);
void async_copy(void* shared, const void* global, u32 size, u32 bytes);
void async_commit();
void async_wait(u32 pending);
void take_turn();

template <typename To, typename From>
To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

/// Whether the device that is emulated has `wgmma`: it has in every other order of threads.
bool has_wgmma();
/// The lane's part of acc (16 rows a warp, 8 · tiles columns) = A · B, + acc where `more`, at a later `products_wait`; A (16 × 16) from the
/// warp's fragments or, where `a` is null, 64 rows of the warpgroup as `left` tells (`by_rows`: columns), B as `descriptor` tells, one row of 64 elements an element of depth, or (not `by_rows`) of the result's columns.
void wgmma(float* acc, u32 tiles, const u32* a, u64 left, u64 descriptor, bool by_rows, bool more);
void products_commit();
void products_wait(u32 pending);

template <typename T>
const T* exchange(u32 mask, const T& mine, u32 kind = 1) {
    return reinterpret_cast<const T*>(meet(mask, kind, &mine, sizeof(T), sizeof(T)));
}

template <typename T>
T shuffle(u32 mask, T value, u32 lane) {
    return exchange(mask, value, 2)[lane % 32];
}

inline u32 ballot(u32 mask, bool predicate) {
    const u32 mine = predicate;
    const u32* all = exchange(mask, mine, 3);
    u32 bits = 0;
    for (u32 i = 0; i < 32; i++) bits |= (mask >> i & 1u) ? all[i] << i : 0u;
    return bits;
}

inline void ldmatrix(u32 (&out)[4], const void* row, bool transposed) {
    const u32 lane = thread_index().x % 32;
    const void* const* rows = exchange(0xffffffffu, row, transposed ? 4 : 5);
    for (u32 matrix = 0; matrix < 4; matrix++) {
        u16 pair[2];
        for (u32 i = 0; i < 2; i++) {
            const u32 r = transposed ? lane % 4 * 2 + i : lane / 4, c = transposed ? lane / 4 : lane % 4 * 2 + i;
            pair[i] = static_cast<const u16*>(rows[matrix * 8 + r])[c];
        }
        out[matrix] = pair[0] | static_cast<u32>(pair[1]) << 16;
    }
}

/// A kernel as the launcher finds it: name, sizes of its arguments, and a function that takes pointers to them.
struct Entry {
    const char* name;
    void (*run)(void* const* arguments);
    const u32* sizes;
    u32 count;
};

template <typename... A>
struct Signature {
    static constexpr u32 count = sizeof...(A);
    static inline const u32 sizes[sizeof...(A)] = {sizeof(A)...};
    template <void (*K)(A...), size_t... I>
    static void run(void* const* a, std::index_sequence<I...>) {
        K(*static_cast<A*>(a[I])...);
    }
    template <void (*K)(A...)>
    static void call(void* const* a) {
        run<K>(a, std::index_sequence_for<A...>{});
    }
};

template <typename... A>
Signature<std::remove_cv_t<A>...> signature(void (*)(A...));

}  // namespace simt

DEVICE u8* shared_memory() { return simt::shared_memory(); }
DEVICE void __syncthreads() { simt::barrier(); }
/// Every lane has come, and sees what the others wrote.
DEVICE void __syncwarp() { simt::ballot(0xffffffffu, true); }
DEVICE int __ffs(int x) { return __builtin_ffs(x); }
DEVICE void __threadfence() {}
template <typename T>
DEVICE T atomicAdd(T* at, T value) {
    const T before = *at;
    *at = before + value;
    return before;
}
DEVICE u32 atomicAnd(u32* at, u32 value) {
    const u32 before = *at;
    *at = before & value;
    return before;
}
DEVICE u32 atomicMax(u32* at, u32 value) {
    const u32 before = *at;
    if (value > before) *at = value;
    return before;
}
DEVICE u32 atomicMin(u32* at, u32 value) {
    const u32 before = *at;
    if (value < before) *at = value;
    return before;
}

// SIMT_TABLE is the file's name with the precision, given by the build.
#define ENTRY(name)                                                                                      \
    simt::Entry {                                                                                        \
        #name, decltype(simt::signature(&name))::call<&name>, decltype(simt::signature(&name))::sizes,  \
            decltype(simt::signature(&name))::count                                                      \
    }
#define ENTRIES(file, ...)                                     \
    extern "C" const simt::Entry SIMT_TABLE[] = {__VA_ARGS__}; \
    extern "C" const u32 SIMT_COUNT = sizeof(SIMT_TABLE) / sizeof(simt::Entry);
