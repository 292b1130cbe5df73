//! Launches `kernels/embed.cu`.

use super::driver::{Argument, Driver};
use super::linear::span;
use super::norm::{CHUNK, by_width, partials};
use super::sort::sort_counts;
use super::{DeviceSlice, Gpu, Working, blocks, size, tree_counters};
use crate::Result;
use crate::backend::{EmbedBwd, EmbedFwd, EmbedTables};

const THREADS: u32 = 128;
const SCATTER_THREADS: u32 = 256;
/// Rows of a table that is summed span by span: token types, which all tokens share.
const FEW: usize = 16;
/// Sorted uses of a warp of `scatter`.
const USES: usize = 64;
/// No id.
const NONE: u32 = u32::MAX;

/// `Tables` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct TablesArgs {
    ids: u64,
    positions: u64,
    types: u64,
    word: u64,
    delta: u64,
    position: u64,
    token_type: u64,
    gamma: u64,
    beta: u64,
}

/// `Keys` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct KeysArgs {
    of: u64,
    position: u32,
    token_type: u32,
}

/// `Table` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct TableArgs {
    gradient: u64,
    first: u32,
    unused: u32,
}

/// `Scatter` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ScatterArgs {
    of: [TableArgs; 3],
    keys: u64,
    numbers: u64,
    ends: u64,
    uses: u32,
    tokens: u32,
    width: u32,
    skip: u32,
}

/// Ids, positions, types and what they select.
fn tables<D: Driver, W: Working>(
    [ids, positions, types]: [DeviceSlice<'_, u32>; 3],
    t: &EmbedTables<'_, Gpu<D, W>>,
) -> Argument {
    let at = |slice: DeviceSlice<'_, W>| slice.region.address();
    Argument::of(TablesArgs {
        ids: ids.region.address(),
        positions: positions.region.address(),
        types: types.region.address(),
        word: at(t.word),
        delta: t.delta.map_or(0, at),
        position: at(t.position),
        token_type: at(t.token_type),
        gamma: at(t.gamma),
        beta: at(t.beta),
    })
}

impl<D: Driver, W: Working> Gpu<D, W> {
    pub(super) fn embed_fwd_op(&self, op: EmbedFwd<'_, Self>) -> Result<()> {
        let rows = op.ids.len();
        let kernel = by_width(["embed_fwd_1", "embed_fwd_2", "embed_fwd_3", "embed_fwd_4"], op.width)?;
        self.launch(
            ("embed", kernel),
            [blocks(rows, THREADS / 32)?, 1, 1],
            THREADS,
            0,
            rows * op.width * size_of::<W>() * if op.tables.delta.is_some() { 5 } else { 4 },
            &[
                tables([op.ids, op.positions, op.types], &op.tables),
                (op.eps as f32).into(),
                self.dropout_args(op.dropout)?,
                (&op.out).into(),
                (&op.mean).into(),
                (&op.rstd).into(),
                size(rows)?.into(),
                size(op.width)?.into(),
            ],
        )
    }

    pub(super) fn embed_bwd_op(&self, op: EmbedBwd<'_, Self>) -> Result<()> {
        let (rows, width) = (op.ids.len(), op.width);
        if rows == 0 {
            return Ok(());
        }
        let kernel = by_width(["embed_bwd_1", "embed_bwd_2", "embed_bwd_3", "embed_bwd_4"], width)?;
        let entries =
            [op.dword.region, op.dposition.region, op.dtoken_type.region].map(|r| r.bytes() / (4 * width));
        // Token types are few: they need no order.
        let few = entries[2] <= FEW;
        let (tables_sorted, rows_sorted) =
            if few { (2, entries[0] + entries[1]) } else { (3, entries.iter().sum()) };
        let (uses, count, few_span) =
            (tables_sorted * rows, partials(rows, width), span(rows, entries[2].max(1)));
        let spans_of_few = if few { rows.div_ceil(few_span) } else { 0 };
        let ends = uses.div_ceil(USES) * 2 * width;
        // Every part begins at a multiple of 16 bytes.
        let lens = [
            uses,
            uses,
            uses,
            uses,
            sort_counts(uses),
            ends,
            count * 2 * width,
            spans_of_few * entries[2] * width,
        ];
        let [keys, keys_too, numbers, numbers_too, counts, ends, sums, few_sums] =
            self.workspaces(lens.map(|len| len.next_multiple_of(4)))?;
        let first = [0, size(entries[0])?, if few { NONE } else { size(entries[0] + entries[1])? }];
        let keys_args =
            KeysArgs { of: keys.address(), position: first[1], token_type: if few { 0 } else { first[2] } };
        self.launch(
            ("embed", kernel),
            [size(count)?, 1, 1],
            THREADS,
            2 * width * 4,
            rows * width * size_of::<W>() * if op.tables.delta.is_some() { 6 } else { 5 } + 2 * sums.bytes(),
            &[
                tables([op.ids, op.positions, op.types], &op.tables),
                self.dropout_args(op.dropout)?,
                op.mean.into(),
                op.rstd.into(),
                (&op.dout).into(),
                Argument::of(keys_args),
                (&op.dgamma).into(),
                (&op.dbeta).into(),
                sums.into(),
                self.counters(tree_counters(count))?.into(),
                size(rows)?.into(),
                size(width)?.into(),
            ],
        )?;
        let (keys, numbers) =
            self.sort([keys, keys_too], [numbers, numbers_too], counts, (uses, rows_sorted))?;
        let gradients = [op.dword.region, op.dposition.region, op.dtoken_type.region];
        let mut of = [TableArgs { gradient: 0, first: NONE, unused: 0 }; 3];
        for (table, (gradient, first)) in of.iter_mut().zip(gradients.into_iter().zip(first)) {
            *table = TableArgs { gradient: gradient.address(), first, unused: 0 };
        }
        let args = Argument::of(ScatterArgs {
            of,
            keys: keys.address(),
            numbers: numbers.address(),
            ends: ends.address(),
            uses: size(uses)?,
            tokens: size(rows)?,
            width: size(width)?,
            skip: op.padding.unwrap_or(NONE),
        });
        let (warps, chunks) = (SCATTER_THREADS as usize / 32, width.div_ceil(CHUNK));
        let grid = [size(uses.div_ceil(USES * warps))?, 1, size(chunks)?];
        // A row of the gradient for each use, and at the most as many rows of tables are read and written.
        let bytes = uses * width * (size_of::<W>() + 8) + 8 * uses;
        self.launch(("embed", "scatter"), grid, SCATTER_THREADS, 0, bytes, &[args, op.dout.region.into()])?;
        self.launch(("embed", "scatter_ends"), grid, SCATTER_THREADS, 0, 2 * ends.bytes(), &[args])?;
        if !few {
            return Ok(());
        }
        let arguments = [
            op.types.into(),
            op.dout.region.into(),
            op.dtoken_type.region.into(),
            few_sums.into(),
            self.counters(entries[2] * chunks * tree_counters(spans_of_few))?.into(),
            size(rows)?.into(),
            size(width)?.into(),
            size(entries[2])?.into(),
            size(few_span)?.into(),
        ];
        let shared_bytes = warps * (CHUNK + 1) * 4;
        let bytes = rows * width * size_of::<W>() + 4 * rows + 2 * few_sums.bytes();
        let grid = [size(entries[2] * spans_of_few)?, 1, size(chunks)?];
        self.launch(("embed", "scatter_few"), grid, SCATTER_THREADS, shared_bytes, bytes, &arguments)
    }
}
