// Kernels with one planted fault each, for the tests of the emulator: every one must be caught.
#include "../common/warpgroup.cuh"

/// Reverses a block through shared memory without the barrier between writing and reading.
KERNEL(64) missing_barrier(float* out) {
    take_turn();
    float* shared = reinterpret_cast<float*>(shared_memory());
    shared[threadIdx.x] = static_cast<float>(threadIdx.x);
    out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

/// The same with it.
KERNEL(64) with_barrier(float* out) {
    take_turn();
    float* shared = reinterpret_cast<float*>(shared_memory());
    shared[threadIdx.x] = static_cast<float>(threadIdx.x);
    __syncthreads();  // every value is written
    out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

/// Writes before its turn has come.
KERNEL(64) out_of_turn(float* out) { out[threadIdx.x] = 1.0f; }

/// Writes one element too many.
KERNEL(64) one_past_the_end(float* out, u32 n) {
    take_turn();
    if (threadIdx.x <= n) out[threadIdx.x] = 1.0f;
}

/// Writes beyond the shared memory of the launch.
KERNEL(64) beyond_shared_memory(float* out, u32 n) {
    take_turn();
    float* shared = reinterpret_cast<float*>(shared_memory());
    shared[n + threadIdx.x] = 1.0f;
    out[threadIdx.x] = 1.0f;
}

/// Adds shared memory that nobody wrote.
KERNEL(64) uninitialised_read(float* out) {
    take_turn();
    const float* shared = reinterpret_cast<const float*>(shared_memory());
    out[threadIdx.x] = 1.0f + shared[threadIdx.x];
}

/// Half the lanes shuffle among all, the other half among themselves.
KERNEL(64) mismatched_mask(float* out) {
    take_turn();
    const u32 mask = threadIdx.x % 2 ? 0xffffffffu : 0x55555555u;
    out[threadIdx.x] = simt::shuffle(mask, 1.0f, 0);
}

/// Half the lanes never come.
KERNEL(64) missing_lanes(float* out) {
    take_turn();
    if (threadIdx.x % 2) return;
    out[threadIdx.x] = shuffle_xor(1.0f, 1);
}

/// Reads what an asynchronous copy brings without waiting for it.
KERNEL(64) unwaited_copy(const float* from, float* out) {
    take_turn();
    float* shared = reinterpret_cast<float*>(shared_memory());
    cp_async16(shared + 4 * threadIdx.x, from + 4 * threadIdx.x, 16);
    cp_async_commit();
    __syncthreads();  // a barrier does not wait for copies
    out[threadIdx.x] = shared[threadIdx.x];
}

/// The same with the wait.
KERNEL(64) waited_copy(const float* from, float* out) {
    take_turn();
    float* shared = reinterpret_cast<float*>(shared_memory());
    cp_async16(shared + 4 * threadIdx.x, from + 4 * threadIdx.x, 16);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // every thread's copy has arrived
    out[threadIdx.x] = shared[threadIdx.x];
}

/// The square of a tile of ones; reads it before the product is awaited, unless `late`.
DEVICE void squared_ones(float* out, bool late) {
    bf16* ones = reinterpret_cast<bf16*>(shared_memory());
    for (u32 i = threadIdx.x; i < 64 * TILE_WIDTH; i += blockDim.x) ones[i] = from_float<bf16>(1.0f);
    fence_products();
    __syncthreads();  // the tile is written
    float acc[8][4] = {}, seen = 0.0f;
    begin_products();
    multiply_transposed(acc, warpgroup_rows(ones), tile_at(ones));
    end_products();
    if (late) await_products<0>(acc);
    seen = *const_cast<volatile float*>(&acc[0][0]);
    await_products<0>(acc);
    out[threadIdx.x] = seen;
}
KERNEL(64) unawaited_product(float* out) {
    take_turn();
    squared_ones(out, false);
}
/// The same with the wait.
KERNEL(64) awaited_product(float* out) {
    take_turn();
    squared_ones(out, true);
}

ENTRIES(planted, ENTRY(missing_barrier), ENTRY(with_barrier), ENTRY(out_of_turn), ENTRY(one_past_the_end), ENTRY(beyond_shared_memory),
        ENTRY(uninitialised_read), ENTRY(mismatched_mask), ENTRY(missing_lanes), ENTRY(unwaited_copy), ENTRY(waited_copy),
        ENTRY(unawaited_product), ENTRY(awaited_product))
