//! Launches `kernels/attention_fwd.cu` and `kernels/attention_bwd.cu`.

use super::driver::{Argument, Driver};
use super::{Gpu, Working, blocks, size, tree_counters};
use crate::backend::{AttentionBwd, AttentionFwd, Sequences};
use crate::{Error, Result};

const THREADS: u32 = 128;
/// Queries or keys of a block.
const TILE: usize = 64;

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

/// What the kernels are compiled for.
const HEAD_SIZES: [usize; 4] = [16, 32, 64, 128];

/// Which of [`HEAD_SIZES`] a head is padded to.
fn padded(head_size: usize) -> Result<usize> {
    HEAD_SIZES.iter().position(|&size| head_size <= size).ok_or_else(|| {
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

    /// A block a tile of each head of each sequence.
    fn attention_grid(s: &Sequences<'_, Self>) -> Result<[u32; 3]> {
        Ok([blocks(s.max_seqlen, TILE as u32)?, size(s.heads)?, size(s.key_len.len())?])
    }

    /// Bytes of `rows` rows of a tile in shared memory: one 16-byte access longer than the head.
    fn tile_bytes(rows: usize, head: usize) -> usize {
        rows * (head * size_of::<W>() + 16)
    }

    /// Rows of the tiles that a backward pass walks over: `INNER` of the kernels.
    fn inner_rows(head: usize) -> usize {
        (if head <= 64 { 64 } else { 32 }) / (size_of::<W>() / 2)
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
        let shared_bytes = 3 * Self::tile_bytes(TILE, HEAD_SIZES[which]);
        let bytes = op.qkv.region.bytes() + op.out.region.bytes() + op.lse.region.bytes();
        self.launch(
            ("attention_fwd", kernel),
            Self::attention_grid(s)?,
            THREADS,
            shared_bytes,
            bytes,
            &arguments,
        )
    }

    pub(super) fn attention_bwd_op(&self, op: AttentionBwd<'_, Self>) -> Result<()> {
        let s = &op.sequences;
        let which = padded(s.head_size)?;
        let head = HEAD_SIZES[which];
        let [tiles, heads, sequences] = Self::attention_grid(s)?;
        let (blocks, rows) = (tiles as usize * sequences as usize, Self::inner_rows(head));
        let sums = self.workspace(blocks * op.dbias.len())?;
        let counters = self.counters(2 * s.heads * tree_counters(blocks))?;
        let kernel = ["attention_bwd_16", "attention_bwd_32", "attention_bwd_64", "attention_bwd_128"][which];
        let arguments = [
            op.qkv.into(),
            op.out.into(),
            op.dout.into(),
            op.lse.into(),
            (&op.dqkv).into(),
            (&op.dbias).into(),
            sums.into(),
            counters.into(),
            Self::geometry(s)?,
            self.dropout_args(op.dropout)?,
        ];
        // The tiles, and what a tile of keys keeps of each query.
        let shared_bytes =
            2 * Self::tile_bytes(TILE, head) + 2 * Self::tile_bytes(rows, head) + 2 * rows * size_of::<f32>();
        let (qkv, out) = (op.qkv.region.bytes(), op.out.region.bytes());
        let bytes = 2 * qkv + 2 * out + 2 * op.lse.region.bytes() + 2 * sums.bytes();
        let grid = [2 * tiles, heads, sequences];
        self.launch(("attention_bwd", kernel), grid, THREADS, shared_bytes, bytes, &arguments)
    }
}
