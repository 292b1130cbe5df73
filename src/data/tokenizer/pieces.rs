//! Long texts are tokenized in pieces, where that gives the same ids: the library needs some fifty
//! bytes of memory per byte of text.

use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

use super::Inner;

/// Smallest size of a piece, in bytes.
const PIECE: usize = 1 << 20;

/// Where a text may be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cuts {
    /// Nowhere.
    None,
    /// Before spaces.
    Spaces,
    /// Before spaces and ideographs.
    Ideographs,
}

impl Cuts {
    /// Where a split does not change the ids that `inner` gives.
    pub(super) fn of(inner: &Inner) -> Self {
        let (
            Some(NormalizerWrapper::BertNormalizer(normalizer)),
            Some(PreTokenizerWrapper::BertPreTokenizer(_)),
        ) = (inner.get_normalizer(), inner.get_pre_tokenizer())
        else {
            return Self::None;
        };
        let added = inner.get_added_tokens_decoder();
        if added.values().any(|token| token.content.contains(' ')) {
            return Self::None;
        }
        // Whether these are found depends on the characters next to them.
        let is_bound = added.values().any(|token| token.single_word || token.content.contains(is_word_alone));
        if normalizer.handle_chinese_chars && !is_bound { Self::Ideographs } else { Self::Spaces }
    }

    /// Parts of a text whose tokens, one part after the other, are the text's.
    pub(super) fn pieces(self, text: &str) -> impl Iterator<Item = &str> {
        let bytes = if self == Self::None { usize::MAX } else { PIECE };
        pieces(text, bytes, self == Self::Ideographs)
    }
}

/// Parts of at least `bytes` that begin at spaces and, if `at_ideographs`, at characters that BERT
/// makes words of their own (text in Chinese or Japanese has no spaces).
pub(in super::super) fn pieces(
    mut text: &str,
    bytes: usize,
    at_ideographs: bool,
) -> impl Iterator<Item = &str> {
    let begins = move |c: char| c == ' ' || (at_ideographs && is_word_alone(c));
    std::iter::from_fn(move || {
        // Not within a character.
        let from = (bytes..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
        let cut = text[from..].find(begins).map_or(text.len(), |at| from + at);
        let (piece, rest) = text.split_at(cut);
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Common ideographs, around each of which `BertNormalizer` puts spaces, and the commonest
/// punctuation between them, at which `BertPreTokenizer` splits.
fn is_word_alone(c: char) -> bool {
    matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '、' | '。' | '！' | '，' | '？')
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ahash::AHashMap;
    use serde_json::Value;
    use tokenizers::models::wordpiece::WordPiece;
    use tokenizers::normalizers::BertNormalizer;

    use super::super::{ROLES, Tokenizer, add_specials, bert};
    use super::*;

    /// Pieces as small as they can be give the same ids as the text in one.
    #[test]
    fn pieces_change_no_ids() {
        let words =
            ["the", "##e", "天", "地", "。", "##天", "a", "か", "##な", "é", "e", "##\u{301}", "，", "!"];
        let vocab = ROLES.iter().map(|(_, name)| *name).chain(words).map(str::to_owned).zip(0..);
        let text = "the天地e\u{301}天\u{301}地\u{fe00}。the，か天な地 [MASK]天a!か[MASK]。\u{200d}地天\u{5b57} thee\u{f900}天\u{0}地\
                    天\t地\u{3000}天ABC天É天，，？天地the"
            .repeat(3);
        for (lowercase, strip) in [(true, None), (false, None), (false, Some(true)), (true, Some(false))] {
            let model = WordPiece::builder().vocab(vocab.clone().collect::<AHashMap<_, _>>());
            let model = model.unk_token("[UNK]".to_owned()).build().unwrap();
            let mut inner = bert(model, BertNormalizer::new(true, true, strip, lowercase));
            add_specials(&mut inner, Path::new("vocab")).unwrap();
            let tokenizer = Tokenizer::wrap(inner, &Value::Null, lowercase).unwrap();
            assert_eq!(tokenizer.cuts, Cuts::Ideographs);
            let whole = tokenizer.inner.encode_fast(text.as_str(), false).unwrap();
            for bytes in [1, 2, 3, 7, 20] {
                let parts: Vec<&str> = pieces(&text, bytes, true).collect();
                assert_eq!(parts.concat(), text);
                assert!(bytes > 20 || parts.len() > text.len() / 40, "{} parts", parts.len());
                let ids: Vec<u32> = parts
                    .iter()
                    .flat_map(|part| tokenizer.inner.encode_fast(*part, false).unwrap().get_ids().to_vec())
                    .collect();
                assert_eq!(ids, whole.get_ids(), "{bytes} {lowercase} {strip:?}");
            }
        }
        assert_eq!(pieces("天地 the", 1, false).collect::<Vec<_>>(), ["天地", " the"]);
    }
}
