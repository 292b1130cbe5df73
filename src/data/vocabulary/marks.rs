//! Which letters of a text lose combining marks when accents are stripped, as BERT's lower-case
//! models do: NFD, then without nonspacing marks (category Mn).
//!
//! In Latin and Greek text that folds *é* into *e*, and words stay what they are. In most other
//! scripts it changes words: Devanagari, Thai and Hebrew lose vowels, kana their voice, Cyrillic
//! *й* becomes *и*, and Hangul syllables are torn into jamo. Marks are therefore kept where
//!
//! * more than 1 in 200 of all letters are letters of such scripts that would change, or
//! * more than 1 in 5 of all letters are Latin ones that would change (Vietnamese, Yoruba).

use tokenizers::normalizers::BertNormalizer;
use tokenizers::{NormalizedString, Normalizer};

use crate::{Error, Result};

/// What is known of a character, as bits.
mod class {
    /// The character was looked up.
    pub(super) const KNOWN: u8 = 1;
    /// Counts as a letter.
    pub(super) const LETTER: u8 = 2;
    /// Stripping changes or removes it.
    pub(super) const CHANGES: u8 = 4;
    pub(super) const LATIN: u8 = 8;
    pub(super) const GREEK: u8 = 16;
    /// A mark that belongs to the script of the letter before it.
    pub(super) const INHERITS: u8 = 32;
}

/// Counts of letters, of one text after the other.
pub(super) struct Marks {
    classes: Vec<u8>,
    stripping: BertNormalizer,
    letters: u64,
    /// Letters that would change, by script.
    latin: u64,
    greek: u64,
    other: u64,
}

impl Marks {
    pub(super) fn new() -> Self {
        Self {
            classes: vec![0; char::MAX as usize + 1],
            stripping: BertNormalizer::new(false, false, Some(true), false),
            letters: 0,
            latin: 0,
            greek: 0,
            other: 0,
        }
    }

    pub(super) fn add(&mut self, text: &str) -> Result<()> {
        if text.is_ascii() {
            self.letters += text.bytes().filter(u8::is_ascii_alphabetic).count() as u64;
            return Ok(());
        }
        // The class of the letter that a mark would belong to.
        let mut letter = 0;
        for c in text.chars() {
            let class = match self.classes[c as usize] {
                0 => self.look_up(c)?,
                class => class,
            };
            if class & class::LETTER != 0 {
                self.letters += 1;
            }
            if class & class::INHERITS != 0 {
                self.count(letter);
                // A second mark does not make it a second letter.
                letter = 0;
                continue;
            }
            if class & class::CHANGES != 0 {
                self.count(class);
            }
            letter = if class & class::CHANGES == 0 { class } else { 0 };
        }
        Ok(())
    }

    fn count(&mut self, class: u8) {
        match class {
            _ if class & class::LATIN != 0 => self.latin += 1,
            _ if class & class::GREEK != 0 => self.greek += 1,
            _ if class & (class::LETTER | class::CHANGES) != 0 => self.other += 1,
            _ => {}
        }
    }

    fn look_up(&mut self, c: char) -> Result<u8> {
        let mut stripped = NormalizedString::from(c.to_string());
        self.stripping
            .normalize(&mut stripped)
            .map_err(|e| Error::argument(format!("cannot strip accents: {e}")))?;
        let inherits = matches!(c, '\u{300}'..='\u{36f}' | '\u{1ab0}'..='\u{1aff}'
            | '\u{1dc0}'..='\u{1dff}' | '\u{20d0}'..='\u{20ff}' | '\u{fe20}'..='\u{fe2f}');
        // These only choose a glyph.
        let selector = matches!(c, '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}');
        let mut class = class::KNOWN;
        if inherits {
            class |= class::INHERITS;
        } else if !selector {
            let (letter, stripped) = (c.is_alphabetic(), stripped.get());
            // A mathematical sign such as U+2260 is no letter and does not count.
            let changes = stripped.is_empty() || letter && !stripped.chars().eq([c]);
            class |= if letter { class::LETTER } else { 0 };
            class |= if changes { class::CHANGES } else { 0 };
            class |= match c {
                '\u{0}'..='\u{24f}' | '\u{1e00}'..='\u{1eff}' if letter => class::LATIN,
                '\u{370}'..='\u{3ff}' | '\u{1f00}'..='\u{1fff}' if letter => class::GREEK,
                _ => 0,
            };
        }
        self.classes[c as usize] = class;
        Ok(class)
    }

    /// The share of the letters that stripping would change.
    pub(super) fn share(&self) -> f64 {
        (self.latin + self.greek + self.other) as f64 / (self.letters as f64).max(1.0)
    }

    /// Whether stripping would change words, so that marks should be kept.
    pub(super) fn change_words(&self) -> bool {
        200 * self.other > self.letters || 5 * self.latin > self.letters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(text: &str) -> Marks {
        let mut marks = Marks::new();
        marks.add(text).unwrap();
        marks
    }

    #[test]
    fn marks_are_kept_where_they_make_words() {
        for text in [
            "अपने पोस्ट ऑफिस में पदों पर भर्ती है",               // Devanagari
            "パンダとハンダ、かぎとかき",                  // kana
            "น้ำหนักของสินค้าที่สั่งซื้อ",                           // Thai
            "မြန်မာနိုင်ငံ",                                    // Burmese
            "ພາສາລາວ ເປັນພາສາ",                             // Lao
            "שָׁלוֹם עֲלֵיכֶם",                                  // Hebrew points
            "إن أول آية في القرآن",                        // Arabic: hamza and madda are marks after NFD
            "대한민국의 수도는 서울이다",                  // Hangul
            "мой первый русский чай",                      // Cyrillic
            "Tôi không biết tiếng Việt được viết thế nào", // Vietnamese
            "To\u{302}i kho\u{302}ng bie\u{302}\u{301}t tie\u{302}\u{301}ng Vie\u{323}\u{302}t", // decomposed
        ] {
            assert!(marks(text).change_words(), "{text}: {}", marks(text).share());
        }
    }

    #[test]
    fn latin_and_greek_text_keeps_the_default_of_bert() {
        for text in [
            "The naïve café owner’s résumé ❤️",
            "Die Mühle übt schöne Grüße für Bären",
            "L'élève a été étonné de voir que la fenêtre du garçon était ouverte",
            "Praha je hlavní a současně největší město České republiky",
            "Μῆνιν ἄειδε θεὰ Πηληϊάδεω Ἀχιλῆος οὐλομένην",
            "中文没有这样的符号",
            "MKTAYIAKQRQISFVKSHFSRQ",
        ] {
            assert!(!marks(text).change_words(), "{text}: {}", marks(text).share());
        }
        // A quotation does not decide about a text.
        let long = "the quick brown fox ".repeat(200);
        assert!(!marks(&format!("{long}में")).change_words());
        let share = marks("aé").share();
        assert!((share - 0.5).abs() < 1e-12, "{share}");
        assert_eq!(marks("1 2 ❤️").share(), 0.0);
    }
}
