//! Launches `kernels/embed.cu`.

use super::driver::{Argument, Driver, Region};
use super::linear::span;
use super::norm::{by_width, partials};
use super::{DeviceBuf, DeviceSlice, Gpu, Working, blocks, size};
use crate::Result;
use crate::backend::{EmbedBwd, EmbedFwd, EmbedTables};

const THREADS: u32 = 128;
const SCATTER_THREADS: u32 = 256;
/// Rows of a table that is summed span by span: token types, which all tokens share.
const FEW: usize = 16;
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
        let count = partials(rows);
        let sums = self.workspace(count * 2 * width)?;
        self.launch(
            ("embed", kernel),
            [size(count)?, 1, 1],
            THREADS,
            2 * width * 4,
            rows * width * size_of::<W>() * if op.tables.delta.is_some() { 6 } else { 5 } + sums.bytes(),
            &[
                tables([op.ids, op.positions, op.types], &op.tables),
                self.dropout_args(op.dropout)?,
                op.mean.into(),
                op.rstd.into(),
                (&op.dout).into(),
                (&op.dgamma).into(),
                (&op.dbeta).into(),
                sums.into(),
                self.counters(1)?.into(),
                size(rows)?.into(),
                size(width)?.into(),
            ],
        )?;
        let dsum = op.dout.region;
        self.scatter(op.ids, dsum, op.dword.region, width, op.padding.unwrap_or(NONE))?;
        self.scatter(op.positions, dsum, op.dposition.region, width, NONE)?;
        self.scatter(op.types, dsum, op.dtoken_type.region, width, NONE)
    }

    /// table\[ids\[n\]\] += rows\[n\] but for the id `skip`.
    fn scatter(
        &self,
        ids: DeviceSlice<'_, u32>,
        rows: Region,
        table: Region,
        width: usize,
        skip: u32,
    ) -> Result<()> {
        let n = ids.len();
        let table_rows = table.bytes() / (4 * width);
        if table_rows <= FEW && skip == NONE {
            let span = span(n);
            let count = n.div_ceil(span);
            let sums = self.workspace(count * table_rows * width)?;
            let grid = [size(table_rows)?, size(count)?, 1];
            let arguments = [
                ids.into(),
                rows.into(),
                table.into(),
                sums.into(),
                self.counters(table_rows)?.into(),
                size(n)?.into(),
                size(width)?.into(),
                size(span)?.into(),
            ];
            let bytes = n * width * size_of::<W>() + sums.bytes();
            return self.launch(("embed", "scatter_few"), grid, SCATTER_THREADS, 4, bytes, &arguments);
        }
        let first = self.first_use_table(table_rows)?;
        self.driver.fill(first, 0xFF)?;
        let grid = [blocks(n, SCATTER_THREADS)?, 1, 1];
        let arguments = [ids.into(), first.into(), size(n)?.into()];
        self.launch(("embed", "first_use"), grid, SCATTER_THREADS, 0, n * 4, &arguments)?;
        let arguments = [
            ids.into(),
            first.into(),
            rows.into(),
            table.into(),
            size(n)?.into(),
            size(width)?.into(),
            skip.into(),
        ];
        let shared_bytes = SCATTER_THREADS as usize / 32 * 256 * 4;
        // Every token's row is read, and at the most as many rows of the table are read and written.
        let bytes = n * width * (size_of::<W>() + 8);
        self.launch(
            ("embed", "scatter_rows"),
            [size(n)?, 1, 1],
            SCATTER_THREADS,
            shared_bytes,
            bytes,
            &arguments,
        )
    }

    fn first_use_table(&self, rows: usize) -> Result<Region> {
        let mut held = self.first_use.borrow_mut();
        match held.as_ref().filter(|buf| buf.len >= rows) {
            Some(buf) => Ok(buf.region(0..rows)),
            None => {
                let buf = held.insert(DeviceBuf::new(&self.driver, rows)?);
                Ok(buf.region(0..rows))
            }
        }
    }
}
