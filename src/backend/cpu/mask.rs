//! Dynamic masking: rows one after the other, by the rule itself.

use super::Cpu;
use super::real::Real;
use super::working::{Full, Working};
use crate::backend::Mask;

pub(super) fn mask<X: Working>(op: Mask<'_, Cpu<X>>) {
    op.masked_ids.copy_from_slice(op.ids);
    let mut count = 0;
    for (row, bounds) in op.cu_seqlens.windows(2).enumerate() {
        let (start, end) = (bounds[0] as usize, bounds[1] as usize);
        for (position, shown) in
            op.spec.mask(op.rng, &op.ids[start..end], op.clock.slot0 + row as u32, op.clock.step)
        {
            if count == op.masked_index.len() {
                break;
            }
            let token = start + position;
            op.masked_ids[token] = shown;
            op.masked_index[count] = token as u32;
            op.targets[count] = op.ids[token];
            count += 1;
        }
    }
    op.weight[..count].fill(Full::<X>::of(1.0 / (count as f64 + op.tiny)));
    op.masked_index[count..].fill(op.ids.len() as u32);
    op.targets[count..].fill(0);
    op.weight[count..].fill(Full::<X>::ZERO);
}
