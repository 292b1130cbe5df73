//! How many blocks of a kernel a multiprocessor holds at once, by the limits that NVIDIA publishes.
//!
//! Limits: CUDA Programming Guide 13, "Technical Specifications per Compute Capability". Granularities (registers in units of 256 a warp, a
//! quarter of them each of the four parts that a multiprocessor has, warps of a block in fours; shared memory in units of 128 bytes, 1 KiB
//! of it for the system in every block): `cuda_occupancy.h` of the toolkit.

/// Of one multiprocessor.
#[derive(Clone, Copy, Debug)]
struct Limits {
    warps: u32,
    blocks: u32,
    shared_bytes: u32,
}

const PARTS: u32 = 4;
const REGISTERS_OF_A_PART: u32 = 65_536 / PARTS;
const REGISTER_UNIT: u32 = 256;
const SHARED_UNIT: u32 = 128;
/// What the system keeps of a block's shared memory.
const SHARED_RESERVED: u32 = 1024;

fn limits(architecture: &str) -> Limits {
    let (warps, blocks, kib) = match architecture {
        "sm_80" => (64, 32, 164),
        "sm_86" => (48, 16, 100),
        "sm_89" => (48, 24, 100),
        "sm_90a" | "sm_100a" => (64, 32, 228),
        "sm_120" => (48, 24, 100),
        other => panic!("{other}: write its limits down in tests/nvrtc/occupancy.rs"),
    };
    Limits { warps, blocks, shared_bytes: kib * 1024 }
}

/// What one block takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) threads: u32,
    pub(super) registers: u32,
    pub(super) shared_bytes: u32,
}

/// Blocks at once, and the warps they are; 0 blocks do not run at all.
pub(super) fn resident(architecture: &str, block: Block) -> (u32, u32) {
    let limits = limits(architecture);
    let warps = block.threads.div_ceil(32);
    let registers = (block.registers.max(1) * 32).next_multiple_of(REGISTER_UNIT);
    let by_registers = REGISTERS_OF_A_PART / registers * PARTS / warps.next_multiple_of(PARTS);
    let by_shared =
        limits.shared_bytes / (block.shared_bytes + SHARED_RESERVED).next_multiple_of(SHARED_UNIT);
    let blocks = limits.blocks.min(limits.warps / warps).min(by_registers).min(by_shared);
    (blocks, blocks * warps)
}

/// Warps that a multiprocessor can hold.
pub(super) fn most_warps(architecture: &str) -> u32 {
    limits(architecture).warps
}

#[test]
fn occupancy_is_as_published() {
    let resident = |architecture, threads, registers, shared_bytes| {
        resident(architecture, Block { threads, registers, shared_bytes })
    };
    // The two examples of the CUDA Best Practices Guide (10.1): 75 % and 63 % of 64 warps.
    assert_eq!(resident("sm_80", 128, 37, 0), (12, 48));
    assert_eq!(resident("sm_80", 320, 37, 0), (4, 40));
    // Bound by threads, by blocks, by registers, by shared memory.
    assert_eq!(resident("sm_86", 256, 40, 0), (6, 48));
    assert_eq!(resident("sm_86", 32, 16, 0), (16, 16));
    assert_eq!(resident("sm_90a", 128, 255, 0), (2, 8));
    assert_eq!(resident("sm_120", 128, 32, 48 * 1024), (2, 8));
    // A block may have all but 1 KiB of the shared memory, and no more.
    assert_eq!(resident("sm_89", 128, 32, 99 * 1024).0, 1);
    assert_eq!(resident("sm_89", 128, 32, 99 * 1024 + 1).0, 0);
}
