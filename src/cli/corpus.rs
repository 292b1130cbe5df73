//! The rows of a run: what is trained on, and what is held out.

use std::sync::Arc;

use super::prepare::tokenize;
use super::report_left_out;
use super::unknown::{Use, check_unknown};
use crate::config::RunConfig;
use crate::data::pack::{Merge, Rows, SHORTEST_ROW};
use crate::data::prepare::{Spec, find};
use crate::data::shard::Dataset;
use crate::data::source::TextSource;
use crate::data::split::{Part, default_share, split};
use crate::data::tokenizer::Tokenizer;
use crate::model::Flavour;
use crate::{Error, Result};

/// Tokenizes the text of a run. Held out are the rows of --validation, else some of the text's own documents.
pub(super) fn rows(
    config: &RunConfig,
    tokenizer: &Tokenizer,
    quiet: bool,
    verbose: bool,
) -> Result<(Rows, Option<Rows>)> {
    let reading = config.reading()?;
    let pack_into =
        |seq_len, parts| Rows::mixed(parts, tokenizer.special(), config.merge, seq_len, config.seed);
    let pack = |parts| pack_into(config.seq_len, parts);
    let pack_all = |parts: Vec<(Part, f64)>| {
        // As txtai does, which keeps a text that fills no row as one short row.
        let is_chained = config.flavour == Flavour::Txtai && config.merge == Merge::Concat;
        let longest = parts.iter().map(|(part, _)| part.framed()).max().filter(|_| is_chained);
        pack_into(
            longest.map_or(config.seq_len, |longest| config.seq_len.min(longest.max(SHORTEST_ROW))),
            parts,
        )
    };
    let validation = match config.validation.is_empty() {
        true => None,
        false => {
            let source = TextSource::held_out(&config.validation, &config.columns)?.with_reading(reading);
            if !quiet {
                report_left_out(&source, verbose);
            }
            // Taken as it is, so that runs with and without duplicates are measured by the same.
            let dataset = tokenize(&source, tokenizer, &config.shards, &Spec::default(), quiet)?;
            check_unknown(&source, &dataset, tokenizer, Use::HeldOut)?;
            Some(pack_all(vec![(dataset.into(), 1.0)])?)
        }
    };
    let mut corpora: Vec<(Arc<Dataset>, f64)> = Vec::new();
    let spec = Spec { dedup: config.dedup, ..Spec::default() };
    let purpose = if config.allow_unknown { Use::TrainingAllowed } else { Use::Training };
    for (source, weight) in TextSource::mixture(&config.train, &config.columns)? {
        let source = source.with_reading(reading);
        let dataset = tokenize(&source, tokenizer, &config.shards, &spec, quiet)?;
        check_unknown(&source, &dataset, tokenizer, purpose)?;
        corpora.push((Arc::new(dataset), weight));
    }
    let whole = || {
        pack_all(corpora.iter().map(|(dataset, weight)| (Part::whole(dataset.clone()), *weight)).collect())
    };
    let documents = corpora.iter().map(|(dataset, _)| dataset.documents()).sum();
    let share = held_out_share(config, &corpora);
    if share == 0.0 {
        return Ok((whole()?, validation));
    }
    let (mut kept, mut held_out) = (Vec::new(), Vec::new());
    for (dataset, weight) in &corpora {
        let (ours, theirs) = split(dataset, share);
        kept.push((ours, *weight));
        // However often it would be trained on, what is held out is measured once.
        held_out.push((theirs, 1.0));
    }
    let counted = |parts: &[(Part, f64)]| parts.iter().map(|(part, _)| part.tokens()).sum::<usize>();
    let (ours, theirs) = (counted(&kept), counted(&held_out));
    match (pack(kept), pack(held_out), config.held_out) {
        (Ok(kept), Ok(held_out), _) => {
            if !quiet {
                crate::note!("{theirs} tokens are held out, {ours} are trained on");
            }
            Ok((kept, Some(held_out)))
        }
        // Nobody asked for it, so too little text for both is no error.
        (_, _, None) => Ok((whole()?, validation)),
        (Err(_), _, Some(share)) => {
            // The text may be too short in any case.
            whole()?;
            let why = too_much(documents, theirs, ours);
            Err(Error::config(format!("--held-out {share} leaves too little to train on: {why}")))
        }
        (_, Err(error), Some(share)) => Err(Error::config(format!(
            "--held-out {share} leaves too little to measure: {error}, a larger share, or --validation"
        ))),
    }
}

/// How often each token occurs in the text of an epoch, if all of it was tokenized before: nothing
/// is tokenized here.
pub(super) fn known_frequencies(config: &RunConfig, tokenizer: &Tokenizer) -> Option<Vec<f64>> {
    let reading = config.reading().ok()?;
    let mixture = TextSource::mixture(&config.train, &config.columns).ok()?;
    let find = |(source, weight): (TextSource, f64)| {
        let dataset = find(&source.with_reading(reading), tokenizer, &config.shards, config.dedup)?;
        Some((Arc::new(dataset), weight))
    };
    let corpora: Vec<(Arc<Dataset>, f64)> = mixture.into_iter().map(find).collect::<Option<_>>()?;
    let share = held_out_share(config, &corpora);
    let parts = corpora.iter().map(|(dataset, weight)| (split(dataset, share).0, *weight)).collect();
    let rows = Rows::mixed(parts, tokenizer.special(), config.merge, config.seq_len, config.seed).ok()?;
    Some(rows.frequencies(tokenizer.vocab_size()))
}

/// The share of documents that is held out.
fn held_out_share(config: &RunConfig, corpora: &[(Arc<Dataset>, f64)]) -> f64 {
    let documents = corpora.iter().map(|(dataset, _)| dataset.documents()).sum();
    let tokens = corpora.iter().map(|(dataset, _)| dataset.tokens()).sum();
    config.held_out.unwrap_or_else(|| default_share(documents, tokens))
}

/// Why too little text is left to train on, and what to do.
fn too_much(documents: usize, held_out: usize, kept: usize) -> String {
    match documents {
        1 => "the text is one document, which is held out or trained on as a whole; separate \
              documents by blank lines, or give --held-out 0, or name other text with --validation"
            .to_owned(),
        _ => format!(
            "of the text's {documents} documents {held_out} tokens are held out and {kept} are \
             left; give a smaller share (0.1 holds out a tenth), or name other text with \
             --validation"
        ),
    }
}
