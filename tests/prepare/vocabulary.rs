//! Vocabularies: trained on samples and on any script, and inspected.

use std::fs;
use std::process::Command;

use approx::assert_relative_eq;
use elektron::data::inspect::inspect;
use elektron::data::prepare::Spec;
use elektron::data::source::TextSource;
use elektron::data::tokenizer::{Tokenizer, TrainSpec};

use super::{Place, book, documents};

#[test]
fn a_vocabulary_is_trained_on_a_sample_of_documents() {
    let place = Place::new(Spec::default());
    place.write("a.txt", &documents(0..600));
    let source = TextSource::new(&[place.path("a.txt").to_str().unwrap()], &["text".to_owned()]).unwrap();
    let size = fs::metadata(place.path("a.txt")).unwrap().len();
    let train = |sample_bytes, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let spec = TrainSpec { vocab_size: 2000, sample_bytes, ..TrainSpec::default() };
        pool.install(|| Tokenizer::train(&source, &spec)).unwrap()
    };
    let all = train(u64::MAX, 2);
    assert_eq!(train(size, 1).hash().unwrap(), all.hash().unwrap(), "all of it is no sample");
    let part = train(size / 4, 2);
    assert_ne!(part.hash().unwrap(), all.hash().unwrap());
    assert_eq!(part.hash().unwrap(), train(size / 4, 3).hash().unwrap());
    let (all, part) = (inspect(&source, &all).unwrap(), inspect(&source, &part).unwrap());
    assert!(
        part.fertility < 1.1 * all.fertility,
        "a sample serves: {} and {}",
        part.fertility,
        all.fertility
    );
    assert!(part.unknown_rate < 1e-4, "{}", part.unknown_rate);
    train(1, 1);
}

/// Against the library's own trainer, which numbers equally frequent pairs as a hash table has them.
#[test]
fn a_vocabulary_is_that_of_the_library() {
    use tokenizers::models::TrainerWrapper;
    use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
    use tokenizers::normalizers::BertNormalizer;
    use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
    let place = Place::new(Spec::default());
    place.write("a.txt", &book());
    let source = TextSource::new(&[place.path("a.txt").to_str().unwrap()], &["text".to_owned()]).unwrap();
    let ours = Tokenizer::train(&source, &TrainSpec { vocab_size: 3000, ..TrainSpec::default() }).unwrap();
    let mut theirs = tokenizers::Tokenizer::new(WordPiece::default());
    theirs.with_normalizer(Some(BertNormalizer::new(true, true, None, true))).unwrap();
    theirs.with_pre_tokenizer(Some(BertPreTokenizer));
    let special =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(|t| tokenizers::AddedToken::from(t, true));
    let trainer = WordPieceTrainer::builder()
        .vocab_size(3000)
        .min_frequency(2)
        .limit_alphabet(1000)
        .show_progress(false)
        .special_tokens(special.to_vec())
        .build();
    let text = book();
    theirs.train(&mut TrainerWrapper::from(trainer), text.lines()).unwrap();
    let (ours, theirs) = (ours.inner().get_vocab(true), theirs.get_vocab(true));
    assert_eq!((ours.len(), theirs.len()), (3000, 3000));
    let common = ours.keys().filter(|token| theirs.contains_key(*token)).count();
    assert!(common > 2950, "{common} of 3000 pieces in common");
}

#[test]
fn vocabularies_take_any_script_and_keep_what_they_are_told() {
    let place = Place::new(Spec::default());
    let greek = "Μῆνιν ἄειδε θεὰ Πηληϊάδεω Ἀχιλῆος οὐλομένην ἣ μυρί᾽ Ἀχαιοῖς ἄλγε᾽ ἔθηκε";
    let chinese: String = (0..2000).filter_map(|i| char::from_u32(0x4e00 + i)).collect();
    place.write(
        "a.txt",
        &format!("{}\n{}\nÉté ÉTÉ été\n", format!("{greek}\n").repeat(20), format!("{chinese}\n").repeat(2)),
    );
    let source = TextSource::new(&[place.path("a.txt").to_str().unwrap()], &["text".to_owned()]).unwrap();
    let train = |spec: TrainSpec| {
        let tokenizer = Tokenizer::train(&source, &spec).unwrap();
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path(), 128).unwrap();
        let again = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(again.hash().unwrap(), tokenizer.hash().unwrap(), "saved and loaded: {spec:?}");
        // A tokenizer that cuts words does not have BERT's pipeline, which a vocab.txt implies.
        if spec.split_chinese {
            fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
            let from_vocab = Tokenizer::load(dir.path()).unwrap();
            assert_eq!(from_vocab.hash().unwrap(), tokenizer.hash().unwrap(), "from vocab.txt: {spec:?}");
        }
        tokenizer
    };
    let text = |t: &Tokenizer, text: &str| -> Vec<String> {
        t.encode(text).unwrap().iter().map(|&id| t.token(id)).collect()
    };
    let base = TrainSpec { vocab_size: 6000, min_frequency: 1, alphabet: Some(4000), ..TrainSpec::default() };
    let plain = train(base.clone());
    assert_eq!(text(&plain, "ÉTÉ 一丁"), ["ete", "一", "丁"]);
    let accents = train(TrainSpec { strip_accents: Some(false), ..base.clone() });
    assert_eq!(text(&accents, "ÉTÉ"), ["été"]);
    let cased = train(TrainSpec { lowercase: false, ..base.clone() });
    assert_eq!(text(&cased, "ÉTÉ Été"), ["ÉTÉ", "Été"]);
    let whole = train(TrainSpec { split_chinese: false, ..base.clone() });
    assert_eq!(text(&whole, "一丁")[0].chars().take(2).collect::<String>(), "一丁");
    // Of two thousand equally rare characters always the same ones are kept, and never more than fit.
    let few = || train(TrainSpec { alphabet: Some(500), vocab_size: 800, ..base.clone() });
    let (one, two) = (few(), few());
    assert_eq!(one.hash().unwrap(), two.hash().unwrap());
    assert!(one.vocab_size() <= 800);
    let found = inspect(&source, &one).unwrap();
    assert!(found.unknown_rate > 0.1, "rare characters are unknown: {}", found.unknown_rate);
}

#[test]
fn inspect_counts_by_definition() {
    let place = Place::new(Spec::default());
    place.write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nun\n##know\n##able\n.\nnever\n");
    place.write("a.txt", "The unknowable.\nThe zzz the unable\n");
    let tokenizer = Tokenizer::load(&place.path("vocab.txt")).unwrap();
    let source = TextSource::new(&[place.path("a.txt").to_str().unwrap()], &["text".to_owned()]).unwrap();
    let found = inspect(&source, &tokenizer).unwrap();
    assert_eq!((found.vocab_size, found.words, found.tokens, found.unused), (11, 6, 10, 1));
    assert_eq!(found.text_bytes, 33);
    assert_relative_eq!(found.fertility, 9.0 / 6.0);
    assert_relative_eq!(found.whole_rate, 3.0 / 6.0);
    assert_relative_eq!(found.unknown_rate, 0.1);
    let split: Vec<&str> = found.split_most.iter().map(|split| split.word.as_str()).collect();
    assert_eq!(split, ["unknowable", "unable"]);
    assert_eq!(found.split_most[0].pieces, ["un", "##know", "##able"]);
    assert_eq!(found.longest_pieces[0], "##able");
    let out = Command::new(env!("CARGO_BIN_EXE_elektron"))
        .args(["tokenizer", "inspect", "--json", "--tokenizer"])
        .arg(place.path("vocab.txt"))
        .args(["--input".as_ref(), place.path("a.txt").as_os_str()])
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json, serde_json::to_value(&found).unwrap());
}
