//! Launches `kernels/attention_fwd.cu` and `kernels/attention_bwd.cu`.

use super::driver::{Argument, Driver, Region};
use super::{Gpu, Working, blocks, size, tree_counters};
use crate::backend::{AttentionBwd, AttentionFwd, Sequences};
use crate::{Error, Result};

/// Queries or keys of a block, and of a warp.
const TILE: usize = 64;
const WARP_ROWS: usize = 16;
/// Queries or keys of a block for heads of [`EXACT`] in bf16.
const BLOCK_ROWS: usize = 128;
/// There: tiles of a ring, rows of one in the forward pass, and where a backward pass walks over keys and over queries.
const RING: usize = 3;
const ROUND: usize = 64;
const ROUNDS: [usize; 2] = [32, 32];

/// `Attention` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct AttentionArgs {
    cu_seqlens: u64,
    key_len: u64,
    heads: u32,
    head_size: u32,
    scale: f32,
    /// The structure's size is a multiple of its alignment.
    unused: u32,
}

/// `Between` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct BetweenArgs {
    rows: u64,
    bits: u64,
    words: u32,
    /// The structure's size is a multiple of its alignment.
    unused: u32,
}

/// `Sums` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct SumsArgs {
    dbias: u64,
    partials: u64,
    counters: u64,
}

/// Keys of which a word tells whether their probabilities are kept.
const BITS: usize = 32;
/// What the keys' kernel holds of each query: two floats, and words for the block's keys.
fn query_bytes(rows: usize) -> usize {
    8 + rows / BITS * 4
}
const QUERIES: [&str; 4] = [
    "attention_bwd_queries_16",
    "attention_bwd_queries_32",
    "attention_bwd_queries_64",
    "attention_bwd_queries_128",
];
const KEYS: [&str; 4] =
    ["attention_bwd_keys_16", "attention_bwd_keys_32", "attention_bwd_keys_64", "attention_bwd_keys_128"];

/// Tokens of the longest sequence that one block keeps whole in a backward pass, and the kernels for it, in bf16.
const SHORT: usize = 128;
const SHORT_KERNELS: [Option<&str>; 4] =
    [None, Some("attention_bwd_short_32"), Some("attention_bwd_short_64"), None];

/// The size that its kernels take for granted: smaller heads go to the next larger kernels.
const EXACT: usize = 64;

/// What the kernels are compiled for.
const HEAD_SIZES: [usize; 4] = [16, 32, 64, 128];

/// Which of [`HEAD_SIZES`] a head is padded to.
fn padded(head_size: usize) -> Result<usize> {
    HEAD_SIZES.iter().position(|&size| head_size <= size && (size != EXACT || head_size == size)).ok_or_else(|| {
        Error::config(format!(
            "the GPU kernels have heads of up to 128 elements, this model's have {head_size}: use --device cpu"
        ))
    })
}

impl<D: Driver, W: Working> Gpu<D, W> {
    fn geometry(s: &Sequences<'_, Self>) -> Result<Argument> {
        Ok(Argument::of(AttentionArgs {
            cu_seqlens: s.cu_seqlens.region.address(),
            key_len: s.key_len.region.address(),
            heads: size(s.heads)?,
            head_size: size(s.head_size)?,
            scale: (1.0 / (s.head_size as f64).sqrt()) as f32,
            unused: 0,
        }))
    }

    /// Whether products are those of warpgroups: heads of 64 in bf16.
    fn by_warpgroups(head: usize) -> bool {
        head == EXACT && size_of::<W>() == 2
    }

    /// Queries or keys of a block.
    fn block_rows(head: usize) -> usize {
        if Self::by_warpgroups(head) { BLOCK_ROWS } else { TILE }
    }

    /// Threads of a block of so many rows.
    fn threads(rows: usize) -> u32 {
        (rows / WARP_ROWS * 32) as u32
    }

    /// A block so many rows of each head of each sequence.
    fn attention_grid(s: &Sequences<'_, Self>, rows: usize) -> Result<[u32; 3]> {
        Ok([blocks(s.max_seqlen, rows as u32)?, size(s.heads)?, size(s.key_len.len())?])
    }

    /// Bytes of `rows` rows of a tile in shared memory: one 16-byte access longer than the head.
    fn tile_bytes(rows: usize, head: usize) -> usize {
        rows * (head * size_of::<W>() + 16)
    }

    /// Bytes of `rows` rows of a tile that warpgroups multiply with.
    fn swizzled_bytes(rows: usize) -> usize {
        rows * EXACT * size_of::<W>()
    }

    /// Rows of the tiles that a backward pass walks over: `INNER` of the kernels.
    const INNER: usize = 64 / size_of::<W>();

    /// How many such tiles it holds: `STAGES` of the kernels.
    fn stages(head: usize) -> usize {
        if size_of::<W>() == 4 && head > 64 { 1 } else { 2 }
    }

    pub(super) fn attention_fwd_op(&self, op: AttentionFwd<'_, Self>) -> Result<()> {
        let s = &op.sequences;
        let which = padded(s.head_size)?;
        let kernel = ["attention_fwd_16", "attention_fwd_32", "attention_fwd_64", "attention_fwd_128"][which];
        let arguments = [
            op.qkv.into(),
            (&op.out).into(),
            (&op.lse).into(),
            Self::geometry(s)?,
            self.dropout_args(op.dropout)?,
        ];
        let head = HEAD_SIZES[which];
        let rows = Self::block_rows(head);
        let shared_bytes = if Self::by_warpgroups(head) {
            Self::swizzled_bytes(rows + 2 * RING * ROUND)
        } else {
            3 * Self::tile_bytes(TILE, head)
        };
        let bytes = op.qkv.region.bytes() + op.out.region.bytes() + op.lse.region.bytes();
        let grid = Self::attention_grid(s, rows)?;
        self.launch(("attention_fwd", kernel), grid, Self::threads(rows), shared_bytes, bytes, &arguments)
    }

    pub(super) fn attention_bwd_op(&self, op: AttentionBwd<'_, Self>) -> Result<()> {
        let which = padded(op.sequences.head_size)?;
        if op.lse.len() == 0 {
            return Ok(());
        }
        match SHORT_KERNELS[which] {
            Some(kernel) if size_of::<W>() == 2 && op.sequences.max_seqlen <= SHORT => {
                self.short_bwd(op, kernel, HEAD_SIZES[which])
            }
            _ => self.long_bwd(op, which),
        }
    }

    /// A block a sequence and head.
    fn short_bwd(&self, op: AttentionBwd<'_, Self>, kernel: &'static str, head: usize) -> Result<()> {
        let s = &op.sequences;
        let sequences = s.key_len.len();
        let sums = self.workspace(sequences * op.dbias.len())?;
        let arguments = [
            op.qkv.into(),
            op.out.into(),
            op.dout.into(),
            op.lse.into(),
            (&op.dqkv).into(),
            self.sums_args(&op, sums, sequences)?,
            Self::geometry(s)?,
            self.dropout_args(op.dropout)?,
        ];
        // Queries, gradients, keys and values; dS (of half the queries at a time and column sums of dQ, where warps multiply); lse, delta and bits of
        // each query.
        let shared_bytes = SHORT * (8 + SHORT / 8)
            + if Self::by_warpgroups(head) {
                Self::swizzled_bytes(6 * SHORT)
            } else {
                4 * Self::tile_bytes(SHORT, head)
                    + Self::tile_bytes(SHORT, SHORT / 2)
                    + 4 * head * size_of::<f32>()
            };
        let bytes =
            2 * op.qkv.region.bytes() + 2 * op.out.region.bytes() + op.lse.region.bytes() + 2 * sums.bytes();
        let grid = [1, size(s.heads)?, size(sequences)?];
        self.launch(("attention_bwd", kernel), grid, Self::threads(SHORT), shared_bytes, bytes, &arguments)
    }

    /// Where the blocks of a head add up the column sums of dqkv.
    fn sums_args(&self, op: &AttentionBwd<'_, Self>, partials: Region, blocks: usize) -> Result<Argument> {
        Ok(Argument::of(SumsArgs {
            dbias: op.dbias.region.address(),
            partials: partials.address(),
            counters: self.counters(op.sequences.heads * tree_counters(blocks))?.address(),
        }))
    }

    /// A block a tile of queries, then a block a tile of keys.
    fn long_bwd(&self, op: AttentionBwd<'_, Self>, which: usize) -> Result<()> {
        let (s, head) = (&op.sequences, HEAD_SIZES[which]);
        // Of the queries' and the keys' kernel.
        let own = [Self::block_rows(head), TILE];
        let grids = [Self::attention_grid(s, own[0])?, Self::attention_grid(s, own[1])?];
        let blocks = grids[1][0] as usize * grids[1][2] as usize;
        let rows = op.lse.len();
        let words = if op.dropout.is_on() { s.max_seqlen.div_ceil(BITS) } else { 0 };
        // Pairs of floats come first, for their alignment.
        let [pairs, sums, bits] = self.workspaces([2 * rows, blocks * op.dbias.len(), rows * words])?;
        let between = BetweenArgs {
            rows: pairs.address(),
            bits: if words > 0 { bits.address() } else { 0 },
            words: size(words)?,
            unused: 0,
        };
        let arguments = [
            op.qkv.into(),
            op.out.into(),
            op.dout.into(),
            op.lse.into(),
            Argument::of(between),
            (&op.dqkv).into(),
            self.sums_args(&op, sums, blocks)?,
            Self::geometry(s)?,
            self.dropout_args(op.dropout)?,
        ];
        let shared_bytes = if Self::by_warpgroups(head) {
            let tiles = |i: usize| Self::swizzled_bytes(2 * own[i] + 2 * RING * ROUNDS[i]);
            [tiles(0), tiles(1) + RING * ROUNDS[1] * query_bytes(own[1])]
        } else {
            let stages = Self::stages(head);
            let tiles = 2 * Self::tile_bytes(TILE, head) + 2 * stages * Self::tile_bytes(Self::INNER, head);
            [tiles, tiles + stages * Self::INNER * query_bytes(TILE)]
        };
        let (qkv, out) = (op.qkv.region.bytes(), op.out.region.bytes());
        let left = op.lse.region.bytes() + pairs.bytes() + bits.bytes();
        let third = (qkv + 2 * sums.bytes()) / 3;
        let bytes = [qkv + 2 * out + left + third, qkv + out + left + 2 * third];
        let kernels = [QUERIES[which], KEYS[which]];
        for i in 0..2 {
            let of = ("attention_bwd", kernels[i]);
            self.launch(of, grids[i], Self::threads(own[i]), shared_bytes[i], bytes[i], &arguments)?;
        }
        Ok(())
    }
}
