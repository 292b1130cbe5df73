// The scheduler behind simt.hpp: fibers, barriers, warp meetings, asynchronous copies, and the one function that Rust calls.
#include "simt.hpp"

#include <sys/mman.h>

#include <cstdio>
#include <string>
#include <vector>

namespace {

constexpr size_t STACK_BYTES = 128 << 10;
constexpr size_t GUARD_BYTES = 256;
constexpr u8 GUARD = 0xA5;
constexpr u8 POISON = 0xFF;  // NaN as float and as bf16, a huge number as an integer
constexpr size_t LANE_BYTES = 64;
constexpr size_t SHARED_ALIGNMENT = 1024;
/// Of the 128-byte swizzle: rows that it repeats after, their bytes, and those that move together.
constexpr u32 SWIZZLE_ROWS = 8, SWIZZLE_ROW = 128, SWIZZLE_CHUNK = 16;

enum class State : u8 { READY, BARRIER, MEETING, DONE };

struct Copy {
    void* to;
    const void* from;
    u32 size;
    u32 bytes;  // that exist; the others are zeros
    u32 group;
};

/// A product of a warpgroup that has been asked for: the lane's two rows of A, or where all rows begin; its results.
struct Product {
    float* acc;
    float a[2][16];
    const u16* rows;
    const u16* tile;
    u32 tiles;
    bool by_rows, more;
    u32 group;
};

struct Fiber {
    void* stack_pointer = nullptr;
    u8* stack = nullptr;
    State state = State::READY;
    simt::Dim thread = {};
    u32 group = 0;  // number of the group that is being filled
    std::vector<Copy> copies;
    u32 product_group = 0;
    std::vector<Product> products;
};

/// What the lanes of a warp hand to each other. Two sets of slots in turn: a lane that is already at the next meeting does not overwrite
/// what a slower one still reads.
struct Warp {
    u32 arrived = 0, mask = 0, kind = 0, turn = 0;
    alignas(64) u8 slots[2][32 * LANE_BYTES];
};

struct Scheduler {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<u8> shared;
    size_t shared_bytes = 0;
    simt::Dim block = {}, grid = {}, size = {};
    Fiber* running = nullptr;
    void* own_stack = nullptr;
    void (*kernel)(void* const*) = nullptr;
    void* const* arguments = nullptr;
    std::string error;
    /// Calls of take_turn.
    u64 turns = 0;
    bool wgmma = false;

    u8* shared_start() {
        u8* raw = shared.data() + GUARD_BYTES;
        return raw + (SHARED_ALIGNMENT - reinterpret_cast<uintptr_t>(raw) % SHARED_ALIGNMENT) % SHARED_ALIGNMENT;
    }
};

Scheduler& scheduler() {
    static thread_local Scheduler s;
    return s;
}

}  // namespace

#if defined(__x86_64__)
extern "C" void simt_switch(void** save, void* load);
// Pushes what a callee must keep, swaps stacks, pops the other side's.
asm(R"(
.text
.globl simt_switch
.type simt_switch, @function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size simt_switch, .-simt_switch
)");
#else
#include <ucontext.h>
// The portable way: a stack pointer is a pointer to a context.
extern "C" void simt_switch(void** save, void* load) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, static_cast<ucontext_t*>(load));
}
#endif

namespace {

void leave() {
    Scheduler& s = scheduler();
    simt_switch(&s.running->stack_pointer, s.own_stack);
}

/// Ends the launch with an error; the fibers are abandoned where they stand.
[[noreturn]] void fail(const char* what) {
    Scheduler& s = scheduler();
    if (s.error.empty()) {
        char text[256];
        std::snprintf(text, sizeof text, "block (%u, %u, %u), thread %u: %s", s.block.x, s.block.y, s.block.z,
                      s.running->thread.x, what);
        s.error = text;
    }
    s.running->state = State::DONE;
    for (;;) leave();
}

void fiber_main() {
    Scheduler& s = scheduler();
    s.kernel(s.arguments);
    s.running->state = State::DONE;
    for (;;) leave();
}

void start(Fiber& fiber) {
    if (!fiber.stack) {
        void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        fiber.stack = static_cast<u8*>(stack);
    }
    fiber.state = State::READY;
    fiber.group = 0;
    fiber.copies.clear();
    fiber.product_group = 0;
    fiber.products.clear();
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(fiber.stack + STACK_BYTES);
    *--top = nullptr;  // alignment: at entry the stack is 8 beyond a multiple of 16, as after a call
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_pointer = top;
#else
    ucontext_t* context = reinterpret_cast<ucontext_t*>(fiber.stack);
    getcontext(context);
    context->uc_stack.ss_sp = fiber.stack + sizeof(ucontext_t);
    context->uc_stack.ss_size = STACK_BYTES - sizeof(ucontext_t);
    context->uc_link = nullptr;
    makecontext(context, fiber_main, 0);
    fiber.stack_pointer = context;
#endif
}

/// splitmix64
u64 next_random(u64& state) {
    u64 z = (state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

/// Runs all threads of the current block; `order`: 0 ascending, 1 descending, else the seed of a shuffle.
void run_block(u32 order) {
    Scheduler& s = scheduler();
    const size_t n = s.fibers.size();
    std::vector<u32> turns(n);
    for (size_t i = 0; i < n; i++) turns[i] = static_cast<u32>(order == 1 ? n - 1 - i : i);
    u64 random = (static_cast<u64>(order) << 32) ^ (s.block.x + s.block.y * 977u + s.block.z * 65537u);
    for (Fiber& fiber : s.fibers) start(fiber);
    for (Warp& warp : s.warps) warp.arrived = 0;
    for (;;) {
        if (order > 1) {
            for (size_t i = n - 1; i > 0; i--) std::swap(turns[i], turns[next_random(random) % (i + 1)]);
        }
        bool moved = false;
        size_t waiting = 0, done = 0;
        for (u32 turn : turns) {
            Fiber& fiber = s.fibers[turn];
            if (fiber.state == State::READY) {
                moved = true;
                s.running = &fiber;
                simt_switch(&s.own_stack, fiber.stack_pointer);
                if (!s.error.empty()) return;
            }
        }
        for (const Fiber& fiber : s.fibers) {
            waiting += fiber.state == State::BARRIER;
            done += fiber.state == State::DONE;
        }
        if (done == n) return;
        if (waiting + done == n) {  // threads that have returned count as arrived
            for (Fiber& fiber : s.fibers) {
                if (fiber.state == State::BARRIER) fiber.state = State::READY;
            }
        } else if (!moved) {
            for (Fiber& fiber : s.fibers) {
                if (fiber.state == State::MEETING) s.running = &fiber;
            }
            s.error.clear();
            char text[256];
            std::snprintf(text, sizeof text, "block (%u, %u, %u), thread %u: waits in a warp operation for lanes that never come",
                          s.block.x, s.block.y, s.block.z, s.running->thread.x);
            s.error = text;
            return;
        }
    }
}

bool guards_are_whole(u8* start, size_t bytes, const std::vector<u8>& all) {
    for (const u8* p = all.data(); p < start; p++) {
        if (*p != GUARD) return false;
    }
    for (const u8* p = start + bytes; p < all.data() + all.size(); p++) {
        if (*p != GUARD) return false;
    }
    return true;
}

}  // namespace

namespace simt {

const Dim& thread_index() { return scheduler().running->thread; }
const Dim& block_index() { return scheduler().block; }
const Dim& block_dim() { return scheduler().size; }
const Dim& grid_dim() { return scheduler().grid; }
u8* shared_memory() { return scheduler().shared_start(); }

void barrier() {
    scheduler().running->state = State::BARRIER;
    leave();
}

const u8* meet(u32 mask, u32 kind, const void* mine, size_t size, size_t stride) {
    Scheduler& s = scheduler();
    const u32 thread = s.running->thread.x, lane = thread % 32;
    Warp& warp = s.warps[thread / 32];
    if (size > LANE_BYTES) fail("a lane hands over more than the emulator holds");
    if (!(mask >> lane & 1u)) fail("a warp operation's mask lacks the lane that calls it");
    if (warp.arrived == 0) {
        warp.mask = mask;
        warp.kind = kind;
    } else if (warp.mask != mask || warp.kind != kind) {
        fail("lanes of a warp meet with different masks or in different operations");
    }
    u8* slots = warp.slots[warp.turn];
    std::memcpy(slots + lane * stride, mine, size);
    warp.arrived |= 1u << lane;
    if (warp.arrived == mask) {
        warp.arrived = 0;
        warp.turn ^= 1;
        for (u32 i = 0; i < 32; i++) {
            const size_t other = thread / 32 * 32 + i;
            if ((mask >> i & 1u) && other < s.fibers.size() && s.fibers[other].state == State::MEETING) {
                s.fibers[other].state = State::READY;
            }
        }
    } else {
        s.running->state = State::MEETING;
        leave();
    }
    return slots;
}

void async_copy(void* shared, const void* global, u32 size, u32 bytes) {
    Fiber& fiber = *scheduler().running;
    if (reinterpret_cast<uintptr_t>(shared) % size || (bytes && reinterpret_cast<uintptr_t>(global) % size)) {
        fail("an asynchronous copy from or to an address that is no multiple of its size");
    }
    fiber.copies.push_back({shared, global, size, bytes, fiber.group});
}

void async_commit() { scheduler().running->group++; }

void async_wait(u32 pending) {
    Fiber& fiber = *scheduler().running;
    std::vector<Copy> later;
    for (const Copy& copy : fiber.copies) {
        if (copy.group + pending >= fiber.group) {
            later.push_back(copy);
            continue;
        }
        std::memset(copy.to, 0, copy.size);
        std::memcpy(copy.to, copy.from, copy.bytes);
    }
    fiber.copies.swap(later);
}

bool has_wgmma() { return scheduler().wgmma; }

/// Where a tile begins that a descriptor tells of.
const u16* described(u64 descriptor) {
    const u32 group_bytes = static_cast<u32>(descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1 || group_bytes != SWIZZLE_ROWS * SWIZZLE_ROW) fail("a descriptor of a tile with another swizzle or other rows");
    return reinterpret_cast<const u16*>(simt::shared_memory() + (static_cast<u32>(descriptor & 0x3fff) << 4));
}

/// Element (row, column) from a described place on. The hardware's swizzle: bits 4 to 6 of an address change by bits 7 to 9.
float element(const u16* tile, u32 row, u32 column) {
    const size_t at = reinterpret_cast<const u8*>(tile) - simt::shared_memory() + row * SWIZZLE_ROW + column * 2;
    const size_t place = at ^ (at / SWIZZLE_ROW % SWIZZLE_ROWS * SWIZZLE_CHUNK);
    u16 bits;
    std::memcpy(&bits, simt::shared_memory() + place, sizeof bits);
    return bit_cast<float>(static_cast<u32>(bits) << 16);
}

void wgmma(float* acc, u32 tiles, const u32* a, u64 left, u64 descriptor, bool by_rows, bool more) {
    struct Fragment {
        u32 r[4];
    } mine = {};
    if (a) std::memcpy(mine.r, a, sizeof mine);
    const Fragment* all = exchange(0xffffffffu, mine, a ? 6 : 7);
    const u32 g = thread_index().x % 32 / 4;
    Fiber& fiber = *scheduler().running;
    Product product = {acc, {}, a ? nullptr : described(left), described(descriptor), tiles, by_rows, more, fiber.product_group};
    for (u32 half = 0; a && half < 2; half++)
        for (u32 k = 0; k < 16; k++) {
            const u32 pair = all[g * 4 + k % 8 / 2].r[k / 8 * 2 + half];
            product.a[half][k] = bit_cast<float>(k % 2 ? pair & 0xffff0000u : pair << 16);
        }
    fiber.products.push_back(product);
}

void products_commit() { scheduler().running->product_group++; }

void products_wait(u32 pending) {
    Fiber& fiber = *scheduler().running;
    const u32 t = thread_index().x % 4, row = thread_index().x % 128 / 32 * 16 + thread_index().x % 32 / 4;
    std::vector<Product> later;
    for (const Product& p : fiber.products) {
        if (p.group + pending >= fiber.product_group) {
            later.push_back(p);
            continue;
        }
        for (u32 n = 0; n < p.tiles; n++)
            for (u32 i = 0; i < 4; i++) {
                float sum = p.more ? p.acc[n * 4 + i] : 0.0f;
                const u32 column = n * 8 + 2 * t + i % 2;
                for (u32 k = 0; k < 16; k++) {
                    const u32 own = row + i / 2 * 8;
                    const float x = !p.rows ? p.a[i / 2][k] : p.by_rows ? element(p.rows, k, own) : element(p.rows, own, k);
                    sum += x * (p.by_rows ? element(p.tile, k, column) : element(p.tile, column, k));
                }
                p.acc[n * 4 + i] = sum;
            }
    }
    fiber.products.swap(later);
}

void take_turn() { scheduler().turns++; }

}  // namespace simt

/// Runs a kernel. Returns null, or what went wrong (valid until this thread's next launch).
extern "C" const char* simt_launch(const simt::Entry* entry, const u32* grid, u32 threads, u32 shared_bytes, void* const* arguments,
                                   u32 order) {
    Scheduler& s = scheduler();
    s.error.clear();
    s.turns = 0;
    s.wgmma = order % 2 == 0;
    s.kernel = entry->run;
    s.arguments = arguments;
    s.grid = {grid[0], grid[1], grid[2]};
    s.size = {threads, 1, 1};
    if (s.fibers.size() > threads) {
        for (size_t i = threads; i < s.fibers.size(); i++) {
            if (s.fibers[i].stack) munmap(s.fibers[i].stack, STACK_BYTES);
        }
    }
    s.fibers.resize(threads);
    for (u32 i = 0; i < threads; i++) s.fibers[i].thread = {i, 0, 0};
    s.warps.resize((threads + 31) / 32);
    s.shared.assign(shared_bytes + 2 * GUARD_BYTES + SHARED_ALIGNMENT, GUARD);
    for (s.block.z = 0; s.block.z < grid[2]; s.block.z++)
        for (s.block.y = 0; s.block.y < grid[1]; s.block.y++)
            for (s.block.x = 0; s.block.x < grid[0]; s.block.x++) {
                std::memset(s.shared_start(), POISON, shared_bytes);
                run_block(order);
                if (s.error.empty() && !guards_are_whole(s.shared_start(), shared_bytes, s.shared)) {
                    s.error = "a write beyond the shared memory that was asked for";
                }
                if (!s.error.empty()) return s.error.c_str();
            }
    if (s.turns != static_cast<u64>(grid[0]) * grid[1] * grid[2] * threads) {
        s.error = "a thread does not wait for what was launched before";
        return s.error.c_str();
    }
    return nullptr;
}
