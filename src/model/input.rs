//! Padded batches as `transformers` has them, and the packed [`Batch`] made of them.

use super::config::{Architecture, ElectraConfig};
use crate::data::Batch;
use crate::{Error, Result};

/// The label of positions that count in no loss, as in PyTorch.
pub const IGNORE: i64 = -100;

/// B rows of T tokens, row-major.
#[derive(Clone, Debug, Default)]
pub struct PaddedInput {
    /// B.
    pub batch: usize,
    /// T.
    pub seq_len: usize,
    /// (B, T) what the generator reads.
    pub input_ids: Vec<i64>,
    /// (B, T) the original token where masked, [`IGNORE`] elsewhere.
    pub labels: Vec<i64>,
    /// (B, T) 1 for tokens, 0 for padding; absent: all tokens.
    pub attention_mask: Option<Vec<i64>>,
    /// (B, T) absent: all 0.
    pub token_type_ids: Option<Vec<i64>>,
    /// (M) the generator's samples in ascending order of flat position; drawn where absent.
    pub sampled_ids: Option<Vec<i64>>,
}

/// A packed batch and the way back.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    pub(super) batch: Batch,
    /// (N) flat position (row · T + column) of each packed token.
    pub(super) origin: Vec<usize>,
    pub(super) sampled: Option<Vec<u32>>,
}

impl PaddedInput {
    /// Drops the padding. With the token classification head, whose loss counts padded positions (as txtai trains it),
    /// padded tokens stay as queries behind the real ones of their row and are hidden as keys.
    ///
    /// A masked position under padding is an error, so that ascending flat order is the order of masked positions.
    pub(super) fn pack(
        &self,
        head: Architecture,
        generator: &ElectraConfig,
        discriminator: &ElectraConfig,
    ) -> Result<Packed> {
        self.check_lengths()?;
        let limits = Limits::of(generator, discriminator);
        if self.seq_len > limits.positions {
            return Err(Error::argument(format!(
                "rows of {} tokens exceed the model's {} positions: cut them, or use a model with more",
                self.seq_len, limits.positions
            )));
        }
        let keep_padding = head == Architecture::TokenClassification;
        let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
        let (mut origin, mut masked) = (Vec::new(), Vec::new());
        for row in 0..self.batch {
            let columns = || (0..self.seq_len).map(|column| row * self.seq_len + column);
            let real = columns().filter(|&flat| self.is_real(flat));
            let padding = columns().filter(|&flat| keep_padding && !self.is_real(flat));
            let before = origin.len();
            for flat in real.chain(padding) {
                let (id, label) = (self.input_ids[flat], self.labels[flat]);
                let id = limits.token("input_ids", flat, id)?;
                let original = if label == IGNORE { id } else { limits.token("labels", flat, label)? };
                if label != IGNORE {
                    masked.push((flat, origin.len() as u32));
                }
                batch.masked_ids.push(id);
                batch.ids.push(original);
                batch.positions.push((flat % self.seq_len) as u32);
                batch.types.push(limits.kind(flat, self.token_type_ids.as_ref().map_or(0, |t| t[flat]))?);
                origin.push(flat);
            }
            batch.cu_seqlens.push(origin.len() as u32);
            let real = origin[before..].iter().filter(|&&flat| self.is_real(flat)).count();
            if real == 0 && origin.len() > before {
                return Err(Error::argument(format!(
                    "attention_mask is 0 throughout row {row}: leave out rows without a token"
                )));
            }
            batch.key_len.push(real as u32);
        }
        if let Some(flat) = (0..self.labels.len()).find(|&i| self.labels[i] != IGNORE && !self.is_real(i)) {
            return Err(Error::argument(format!(
                "labels[{}, {}] is set where attention_mask is 0: only real tokens can be masked",
                flat / self.seq_len,
                flat % self.seq_len
            )));
        }
        batch.masked_index = masked.iter().map(|&(_, packed)| packed).collect();
        batch.masked_weight = vec![1.0; masked.len()];
        batch.rtd_weight = vec![1.0; origin.len()];
        let sampled = self.sampled(&limits, masked.len())?;
        Ok(Packed { batch, origin, sampled })
    }

    fn is_real(&self, flat: usize) -> bool {
        self.attention_mask.as_ref().is_none_or(|mask| mask[flat] != 0)
    }

    fn check_lengths(&self) -> Result<()> {
        let want = self.batch * self.seq_len;
        let given = [
            ("input_ids", Some(&self.input_ids)),
            ("labels", Some(&self.labels)),
            ("attention_mask", self.attention_mask.as_ref()),
            ("token_type_ids", self.token_type_ids.as_ref()),
        ];
        for (name, values) in given {
            if let Some(values) = values.filter(|values| values.len() != want) {
                return Err(Error::argument(format!(
                    "{name} holds {} numbers, expected {} × {} = {want}",
                    values.len(),
                    self.batch,
                    self.seq_len
                )));
            }
        }
        if want == 0 {
            return Err(Error::argument("input_ids is empty: give at least one row of one token"));
        }
        Ok(())
    }

    fn sampled(&self, limits: &Limits, masked: usize) -> Result<Option<Vec<u32>>> {
        let Some(sampled) = &self.sampled_ids else { return Ok(None) };
        if sampled.len() != masked {
            return Err(Error::argument(format!(
                "sampled_ids holds {} tokens, but {masked} positions are masked (labels other than {IGNORE})",
                sampled.len()
            )));
        }
        let ids = sampled.iter().enumerate().map(|(i, &id)| limits.token("sampled_ids", i, id));
        ids.collect::<Result<_>>().map(Some)
    }
}

/// What both models can take.
struct Limits {
    vocabulary: usize,
    positions: usize,
    types: usize,
}

impl Limits {
    fn of(a: &ElectraConfig, b: &ElectraConfig) -> Self {
        Self {
            vocabulary: a.vocab_size.min(b.vocab_size),
            positions: a.max_position_embeddings.min(b.max_position_embeddings),
            types: a.type_vocab_size.min(b.type_vocab_size),
        }
    }

    fn token(&self, name: &str, at: usize, id: i64) -> Result<u32> {
        let vocabulary = self.vocabulary;
        u32::try_from(id).ok().filter(|&id| (id as usize) < vocabulary).ok_or_else(|| {
            Error::argument(format!(
                "{name}: token {id} at flat position {at} is outside the vocabulary of {vocabulary} tokens; \
                 the tokenizer must be the model's"
            ))
        })
    }

    fn kind(&self, at: usize, kind: i64) -> Result<u32> {
        u32::try_from(kind).ok().filter(|&kind| (kind as usize) < self.types).ok_or_else(|| {
            let types = self.types;
            Error::argument(format!(
                "token_type_ids: type {kind} at flat position {at}, the model has {types}"
            ))
        })
    }
}
