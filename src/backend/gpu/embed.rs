//! Launches `kernels/embed.cu`.

use super::driver::{Argument, Driver, Region};
use super::linear::span;
use super::norm::{CHUNK, by_width, partials};
use super::{DeviceBuf, DeviceSlice, Gpu, Working, blocks, size, tree_counters};
use crate::Result;
use crate::backend::{EmbedBwd, EmbedFwd, EmbedTables};

const THREADS: u32 = 128;
const SCATTER_THREADS: u32 = 256;
/// Rows of a table that is summed span by span: token types, which all tokens share.
const FEW: usize = 16;
/// Words of `Use` of the kernels.
const USE_WORDS: usize = 8;
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

/// `Uses` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct UsesArgs {
    word: u64,
    position: u64,
    token_type: u64,
}

/// `Scatter` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ScatterArgs {
    ids: u64,
    uses: u64,
    table: u64,
    entries: u32,
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
        let kernel = by_width(["embed_bwd_1", "embed_bwd_2", "embed_bwd_3", "embed_bwd_4"], width)?;
        let entries =
            [op.dword.region, op.dposition.region, op.dtoken_type.region].map(|r| r.bytes() / (4 * width));
        // Token types are few: they need no first user.
        let few = entries[2] <= FEW;
        let owned = entries[0] + entries[1] + if few { 0 } else { entries[2] };
        let all = self.uses_table(owned)?;
        self.driver.fill(all, 0xFF)?;
        let from = |entry: usize| all.part(4 * USE_WORDS * entry..all.bytes()).address();
        let uses = UsesArgs {
            word: from(0),
            position: from(entries[0]),
            token_type: if few { 0 } else { from(entries[0] + entries[1]) },
        };
        let count = partials(rows, width);
        let sums = self.workspace(count * 2 * width)?;
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
                Argument::of(uses),
                (&op.dgamma).into(),
                (&op.dbeta).into(),
                sums.into(),
                self.counters(tree_counters(count))?.into(),
                size(rows)?.into(),
                size(width)?.into(),
            ],
        )?;
        let of = |ids: DeviceSlice<'_, u32>, uses, table: Region, entries, skip| {
            let (ids, table, entries) = (ids.region.address(), table.address(), size(entries)?);
            Ok(ScatterArgs { ids, uses, table, entries, skip })
        };
        let skip = op.padding.unwrap_or(NONE);
        self.scatter(
            [
                of(op.ids, uses.word, op.dword.region, entries[0], skip)?,
                of(op.positions, uses.position, op.dposition.region, entries[1], NONE)?,
                of(op.types, uses.token_type, op.dtoken_type.region, entries[2], NONE)?,
            ],
            op.dout.region,
            (rows, width),
        )
    }

    /// table\[ids\[n\]\] += rows\[n\] for each table, but for its id `skip`.
    fn scatter(&self, all: [ScatterArgs; 3], rows: Region, (n, width): (usize, usize)) -> Result<()> {
        let few = all[2].entries as usize;
        let span = span(n, few.max(1));
        let (count, chunks) = (n.div_ceil(span), width.div_ceil(CHUNK));
        let sums = self.workspace(count * few * width)?;
        let arguments = [
            Argument::of(all),
            rows.into(),
            sums.into(),
            self.counters(few * chunks * tree_counters(count))?.into(),
            size(n)?.into(),
            size(width)?.into(),
            size(span)?.into(),
        ];
        let warps = SCATTER_THREADS as usize / 32;
        let shared_bytes = warps * (CHUNK + 1) * 4;
        // Of each table every token's row is read, and at the most as many rows are read and written.
        let bytes = n * width * (3 * size_of::<W>() + 16) + 12 * n;
        let grid = [size(n.div_ceil(warps).max(few * count))?, 3, size(chunks)?];
        self.launch(("embed", "scatter"), grid, SCATTER_THREADS, shared_bytes, bytes, &arguments)
    }

    /// `Use` of so many rows of tables.
    fn uses_table(&self, rows: usize) -> Result<Region> {
        let (mut held, words) = (self.uses.borrow_mut(), USE_WORDS * rows);
        match held.as_ref().filter(|buf| buf.len >= words) {
            Some(buf) => Ok(buf.region(0..words)),
            None => {
                self.steps.forget(&*self.driver);
                let buf = held.insert(DeviceBuf::new(&self.driver, words)?);
                Ok(buf.region(0..words))
            }
        }
    }
}
