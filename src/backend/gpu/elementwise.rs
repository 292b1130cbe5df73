//! Launches `kernels/elementwise.cu`.

use super::driver::{Argument, Driver, Region};
use super::{DeviceSlice, DeviceSliceMut, Gpu, Working, blocks, size};
use crate::Result;
use crate::backend::Dropout;

const THREADS: u32 = 256;
/// Elements a thread.
const EIGHT: usize = 8;

impl<D: Driver, W: Working> Gpu<D, W> {
    pub(super) fn cast_op(&self, from: DeviceSlice<'_, f32>, to: DeviceSliceMut<'_, W>) -> Result<()> {
        let n = from.len();
        let grid = [blocks(n.div_ceil(EIGHT), THREADS)?, 1, 1];
        self.launch(
            ("elementwise", "cast"),
            grid,
            THREADS,
            0,
            n * (4 + size_of::<W>()),
            &[from.into(), (&to).into(), (n as u64).into()],
        )
    }

    pub(super) fn dropout_op(
        &self,
        width: usize,
        dropout: Dropout,
        inp: DeviceSlice<'_, W>,
        out: DeviceSliceMut<'_, W>,
    ) -> Result<()> {
        let rows = inp.len() / width;
        let arguments =
            [inp.into(), (&out).into(), self.dropout_args(dropout)?, size(rows)?.into(), size(width)?.into()];
        self.launch(
            ("elementwise", "dropout"),
            grid(rows, width)?,
            THREADS,
            0,
            2 * inp.region.bytes(),
            &arguments,
        )
    }

    pub(super) fn gather_rows_fwd_op(
        &self,
        width: usize,
        index: DeviceSlice<'_, u32>,
        inp: DeviceSlice<'_, W>,
        out: DeviceSliceMut<'_, W>,
    ) -> Result<()> {
        self.move_rows("gather_rows_fwd", index, (inp.len() / width, width), inp.region, out.region)
    }

    pub(super) fn gather_rows_bwd_op(
        &self,
        width: usize,
        index: DeviceSlice<'_, u32>,
        dout: DeviceSlice<'_, W>,
        dinp: DeviceSliceMut<'_, W>,
    ) -> Result<()> {
        if dinp.len() > 0 {
            self.driver.fill(dinp.region, 0)?;
        }
        self.move_rows("gather_rows_bwd", index, (dinp.len() / width, width), dout.region, dinp.region)
    }

    fn move_rows(
        &self,
        kernel: &'static str,
        index: DeviceSlice<'_, u32>,
        (n, width): (usize, usize),
        from: Region,
        to: Region,
    ) -> Result<()> {
        let rows = index.len();
        let [m, width_arg, n] = [size(rows)?, size(width)?, size(n)?].map(Argument::from);
        let arguments = [index.into(), from.into(), to.into(), m, width_arg, n];
        self.launch(
            ("elementwise", kernel),
            grid(rows, width)?,
            THREADS,
            0,
            2 * rows * width * size_of::<W>(),
            &arguments,
        )
    }
}

/// A thread eight elements of a row.
fn grid(rows: usize, width: usize) -> Result<[u32; 3]> {
    Ok([blocks(rows * width.div_ceil(EIGHT), THREADS)?, 1, 1])
}
