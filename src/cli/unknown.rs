//! Text of which too much becomes unknown tokens: a run on it would learn nothing, and nobody would
//! notice.

use crate::data::shard::Dataset;
use crate::data::source::{TextSource, given_name};
use crate::data::tokenizer::Tokenizer;
use crate::data::unknown::Unknowns;
use crate::{Error, Result};

/// Shares of unknown tokens above which a text is warned of, and refused.
const WARNED_OF: f64 = 0.01;
const REFUSED: f64 = 0.05;

/// What the text is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Training: too much is an error.
    Training,
    /// Training, whatever is unknown.
    TrainingAllowed,
    /// Held-out metrics.
    HeldOut,
    /// Shards, for a later run.
    Shards,
}

/// Warns of unknown tokens, or refuses to train on them.
pub(super) fn check_unknown(
    source: &TextSource,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    purpose: Use,
) -> Result<()> {
    let unk = tokenizer.special().unk;
    let (unknown, tokens) = (dataset.unknown(unk), dataset.tokens());
    let share = unknown as f64 / (tokens as f64).max(1.0);
    if share <= WARNED_OF {
        return Ok(());
    }
    let why = Unknowns::find(source, tokenizer)?.describe(tokenizer);
    let what = format!(
        "{:.1} % of the tokens of {} are {}, which nothing can be learned from ({unknown} of \
         {tokens}); {why}. Use a vocabulary that was trained on such text (`elektron tokenizer \
         train`; more characters: --alphabet, --vocab-size; no unknown tokens at all: --kind bpe \
         --pre-tokenizer bytes)",
        100.0 * share,
        name(source),
        tokenizer.token(unk),
    );
    if share > REFUSED && purpose == Use::Training {
        return Err(Error::config(format!("{what}, or give --allow-unknown to train all the same")));
    }
    let refused = share > REFUSED && purpose == Use::Shards;
    let refused = if refused { "; training on it needs --allow-unknown" } else { "" };
    crate::note!("warning: {what}{refused}");
    Ok(())
}

fn name(source: &TextSource) -> String {
    match source.files() {
        [] => "the text".to_owned(),
        [file] => given_name(file).display().to_string(),
        [first, rest @ ..] => {
            let files = if rest.len() == 1 { "file" } else { "files" };
            format!("{} and {} more {files}", given_name(first).display(), rest.len())
        }
    }
}
