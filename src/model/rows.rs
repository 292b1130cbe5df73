//! Rows of tokens on a device, for inference: packed, without padding, all of token type 0.

use super::acts::{BatchLimits, DeviceBatch, OnDevice};
use super::config::ElectraConfig;
use super::encoder::StepContext;
use crate::backend::{Backend, Dropout};
use crate::{Error, Result};

/// An error for a row without a token, of more tokens than the model has positions, or with a token
/// outside the vocabulary.
pub(super) fn check_rows(config: &ElectraConfig, rows: &[Vec<u32>]) -> Result<()> {
    for (i, row) in rows.iter().enumerate() {
        if row.is_empty() || row.len() > config.max_position_embeddings {
            let (len, limit) = (row.len(), config.max_position_embeddings);
            return Err(Error::argument(format!("row {i} has {len} tokens; the model takes 1 to {limit}")));
        }
        if let Some(id) = row.iter().find(|&&id| id as usize >= config.vocab_size) {
            let vocabulary = config.vocab_size;
            return Err(Error::argument(format!(
                "token {id} is outside the vocabulary of {vocabulary} tokens"
            )));
        }
    }
    Ok(())
}

/// Brings rows to the device, and the positions in all of them together that are masked. `judged`:
/// whether a discriminator judges the tokens.
pub(super) fn upload_rows<B: Backend>(
    backend: &B,
    rows: &[Vec<u32>],
    masked: &[u32],
    judged: bool,
) -> Result<(DeviceBatch<B>, StepContext)> {
    let ids: Vec<u32> = rows.concat();
    let (n, b, m) = (ids.len(), rows.len(), masked.len());
    let limits = BatchLimits { tokens: n, sequences: b, masked: m };
    let mut batch = DeviceBatch::<B>::new(&mut OnDevice(backend), limits, judged)?;
    let positions: Vec<u32> = rows.iter().flat_map(|row| 0..row.len() as u32).collect();
    let lengths: Vec<u32> = rows.iter().map(|row| row.len() as u32).collect();
    let mut bounds = vec![0];
    bounds.extend(lengths.iter().scan(0, |end, &len| {
        *end += len;
        Some(*end)
    }));
    backend.upload(&ids, B::slice_mut(&mut batch.ids, 0..n))?;
    backend.upload(&positions, B::slice_mut(&mut batch.positions, 0..n))?;
    backend.upload(&bounds, B::slice_mut(&mut batch.cu_seqlens, 0..b + 1))?;
    backend.upload(&lengths, B::slice_mut(&mut batch.key_len, 0..b))?;
    backend.upload(masked, B::slice_mut(&mut batch.masked_index, 0..m))?;
    let max_seqlen = rows.iter().map(Vec::len).max().unwrap_or(0);
    let noise = Dropout::OFF;
    let step = StepContext { noise, training: false, tokens: n, masked: m, sequences: b, max_seqlen };
    Ok((batch, step))
}
