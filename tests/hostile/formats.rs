//! Everything that reads files of others, one row a format: how to feed it, and a few valid files to begin with.
//!
//! Shared by the test suite, which mutates the seeds a bounded number of times, and by the targets of `fuzz/`, which do
//! so guided by coverage for as long as one likes. A further format is one more row (and a target of two lines).

use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use elektron::Result;
use elektron::backend::Cpu;
use elektron::config::Settings;
use elektron::data::pack::{Merge, Rows};
use elektron::data::prepare::{Spec, prepare};
use elektron::data::shard::{Dataset, Shard};
use elektron::data::source::TextSource;
use elektron::data::tokenizer::{SpecialTokens, Tokenizer, TrainSpec};
use elektron::model::config::{Architecture, ElectraConfig};
use elektron::model::hf::Checkpoint;
use elektron::model::{Options, TokenDetection};
use elektron::train::checkpoint::{Checkpoints, Moment, Position, Snapshot, TrainerState};
use elektron::train::optim::{AdamW, AdamWOptions};

/// Memory while a file is read, besides what grows with it: buffers and tables of fixed size.
const FIXED_BYTES: usize = 16 << 20;
/// The same of a compressed file, whose lines may have 64 MiB whatever its own size: a buffer that doubles, and is copied.
const UNPACKED_BYTES: usize = 256 << 20;

/// A reader of files and what it accepts.
pub(crate) struct Format {
    pub(crate) name: &'static str,
    /// Reads bytes as a file in a directory of its own.
    read: fn(&Path, &[u8]) -> Result<()>,
    /// The bound of memory of a file without content.
    pub(crate) memory: usize,
    /// Valid files; the directory is empty.
    pub(crate) seeds: fn(&Path) -> Vec<Vec<u8>>,
}

const fn row(
    name: &'static str,
    read: fn(&Path, &[u8]) -> Result<()>,
    memory: usize,
    seeds: fn(&Path) -> Vec<Vec<u8>>,
) -> Format {
    Format { name, read, memory, seeds }
}

pub(crate) const FORMATS: &[Format] = &[
    row("txt", |dir, bytes| text(dir, "a.txt", bytes), FIXED_BYTES, |_| plain(TXT)),
    row("csv", |dir, bytes| text(dir, "a.csv", bytes), FIXED_BYTES, |_| plain(CSV)),
    row("jsonl", |dir, bytes| text(dir, "a.jsonl", bytes), FIXED_BYTES, |_| plain(JSONL)),
    row("gz", |dir, bytes| text(dir, "a.csv.gz", bytes), UNPACKED_BYTES, |_| packed(gzip)),
    row("zst", |dir, bytes| text(dir, "a.csv.zst", bytes), UNPACKED_BYTES, |_| packed(zstandard)),
    row("shard", shard, FIXED_BYTES, shard_seeds),
    row("vocab", |dir, bytes| tokenizer(dir, "vocab.txt", bytes), FIXED_BYTES, |_| plain(&[VOCAB])),
    row("tokenizer", |dir, bytes| tokenizer(dir, "tokenizer.json", bytes), FIXED_BYTES, tokenizer_seeds),
    row("config", |dir, bytes| model(dir, CONFIG, bytes), FIXED_BYTES, |_| vec![model_file(CONFIG)]),
    row("weights", |dir, bytes| model(dir, WEIGHTS, bytes), FIXED_BYTES, |_| vec![model_file(WEIGHTS)]),
    row("index", |dir, bytes| model(dir, INDEX, bytes), FIXED_BYTES, |_| plain(INDICES)),
    row("settings", settings, FIXED_BYTES, |_| plain(TOML)),
    row("state", state, FIXED_BYTES, |_| MODEL.with_borrow(|(_, state)| vec![state.clone()])),
];

/// Feeds one file to the format of that name, in a directory that lasts.
pub(crate) fn feed(name: &str, bytes: &[u8]) -> Result<()> {
    thread_local! {
        static DIR: tempfile::TempDir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    }
    let format = FORMATS.iter().find(|format| format.name == name);
    DIR.with(|dir| (format.unwrap_or_else(|| panic!("no format `{name}`")).read)(dir.path(), bytes))
}

const TXT: &[&str] = &["One line.\nAnother, naïve.\n\nA second document.\r\n漢字 🙂\n", "\u{feff}word"];
const CSV: &[&str] =
    &["id,text\n1,plain\n2,\"quoted, with \"\"quotes\"\"\nand a line\"\n", "text\r\nx\r\n\r\ny\r\n"];
const JSONL: &[&str] = &[
    "{\"text\": \"one\\nline \\ud83d\\ude42\", \"n\": [1, -2.5e3, null]}\n\n{\"a\": {\"b\": [[true]]}, \"text\": \"x\"}\n",
    "{\"text\": null}\n{\"text\": \"y\"}",
];
const VOCAB: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nthe\n##e\n##ing\nna\n##ï\n漢\n";
const TOML: &[&str] = &[
    "train = [\"a.txt\", \"b/\"]\noutput = \"out\"\nsteps = 100\nlearning-rate = 5e-4\npreset = \"tiny\"\nclip = 1.0\n",
    "# comment\ncolumns = ['text']\nepochs = 2.5\nshare = \"gdes\"\nseed = 18_000\nbias_correction = true\n",
];
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const INDICES: &[&str] = &[
    "{\"metadata\": {\"n\": 4}, \"weight_map\": {\"a\": \"part.safetensors\", \"b\": \"part.safetensors\"}}",
];

fn plain(seeds: &[&str]) -> Vec<Vec<u8>> {
    seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()
}

fn packed(pack: fn(&[u8]) -> Vec<u8>) -> Vec<Vec<u8>> {
    let long = format!("text\n{}\n", "many equal words ".repeat(2000));
    [CSV[0], CSV[1], &long].iter().map(|seed| pack(seed.as_bytes())).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).and_then(|()| out.finish()).unwrap_or_default()
}

fn zstandard(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn put(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path
}

fn text(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = put(dir, name, bytes);
    let source = TextSource::new(&[&path], &["text".to_owned()])?;
    source.read_file(&path, &mut |paragraph| {
        assert!(!paragraph.text.is_empty());
        Ok(())
    })
}

const SPECIAL: SpecialTokens = SpecialTokens { pad: 0, unk: 1, cls: 2, sep: 3, mask: 4 };

/// Every paragraph of a shard, then rows of it, made in every way.
fn shard(dir: &Path, bytes: &[u8]) -> Result<()> {
    let path = put(dir, "a.tokens", bytes);
    let open = || Ok(Dataset::new(vec![Shard::open(&path)?]));
    let dataset: Dataset = open()?;
    let mut paragraph = Vec::new();
    for number in 0..dataset.paragraphs() {
        paragraph.clear();
        dataset.copy_paragraph(number, 0, usize::MAX, &mut paragraph);
        assert_eq!(paragraph.len(), dataset.paragraph_len(number));
    }
    for merge in [Merge::Concat, Merge::Pack, Merge::None, Merge::Segments] {
        let Ok(rows) = Rows::new(open()?, SPECIAL, merge, 16, 1) else { continue };
        (0..rows.len().min(64)).for_each(|row| assert!(rows.row(row).ids.len() <= 16));
    }
    Ok(())
}

fn shard_seeds(dir: &Path) -> Vec<Vec<u8>> {
    let vocabulary = put(dir, "vocab.txt", VOCAB.as_bytes());
    let text = put(dir, "a.txt", TXT[0].repeat(4).as_bytes());
    let made = Tokenizer::load(&vocabulary).and_then(|tokenizer| {
        let source = TextSource::new(&[&text], &[])?;
        prepare(&source, &tokenizer, &dir.join("shards"), &Spec::default(), |_| {})
    });
    made.unwrap_or_else(|e| panic!("{e}"));
    let files = fs::read_dir(dir.join("shards")).into_iter().flatten().flatten();
    files
        .filter(|file| file.path().extension().is_some_and(|e| e == "tokens"))
        .filter_map(|file| fs::read(file.path()).ok())
        .collect()
}

fn tokenizer(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let tokenizer = Tokenizer::load(&put(dir, name, bytes))?;
    let limit = bytes.len().max(1 << 24);
    assert!(tokenizer.vocab_size() <= limit, "{} tokens would be written on saving", tokenizer.vocab_size());
    tokenizer.hash()?;
    // What cannot be tokenized is an error as well.
    let _ = tokenizer.encode(
        "The chef ate 3 meals, naïvely: 漢字 🙂 \u{0}\u{301}[MASK] aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
    );
    Ok(())
}

fn tokenizer_seeds(dir: &Path) -> Vec<Vec<u8>> {
    let text = put(dir, "a.txt", "the chef ate the meal the chef cooked\n".repeat(20).as_bytes());
    let spec = TrainSpec { vocab_size: 60, min_frequency: 1, ..TrainSpec::default() };
    let trained =
        TextSource::new(&[&text], &[]).and_then(|source| Tokenizer::train(&source, &spec)?.save(dir, 512));
    trained.unwrap_or_else(|e| panic!("{e}"));
    let words = r#"[UNK]":1,"[PAD]":0,"[CLS]":2,"[SEP]":3,"[MASK]":4,"t":5,"h":6,"th":7"#;
    let bpe = format!(
        r#"{{"version":"1.0","added_tokens":[{{"id":4,"content":"[MASK]","single_word":false,"lstrip":true,"rstrip":false,"normalized":false,"special":true}}],"normalizer":{{"type":"Sequence","normalizers":[{{"type":"NFKC"}},{{"type":"Replace","pattern":{{"Regex":" {{2,}}"}},"content":" "}}]}},"pre_tokenizer":{{"type":"Split","pattern":{{"Regex":"\\p{{L}}+|(?=\\d)\\d+"}},"behavior":"Isolated","invert":false}},"post_processor":null,"decoder":{{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}},"model":{{"type":"BPE","dropout":null,"unk_token":"[UNK]","continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{{"{words}}},"merges":[["t","h"]]}}}}"#
    );
    let unigram = r#"{"version":"1.0","added_tokens":[],"normalizer":{"type":"Lowercase"},"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},"post_processor":null,"decoder":null,"model":{"type":"Unigram","unk_id":1,"vocab":[["[PAD]",0.0],["[UNK]",0.0],["[CLS]",0.0],["[SEP]",0.0],["[MASK]",0.0],["▁the",-2.5],["a",-3.0]],"byte_fallback":false}}"#;
    let trained = fs::read(dir.join("tokenizer.json")).unwrap_or_default();
    vec![trained, bpe.into_bytes(), unigram.as_bytes().to_vec()]
}

type Model = TokenDetection<Cpu<f32>>;

fn tiny(hidden_size: usize) -> ElectraConfig {
    ElectraConfig {
        vocab_size: 23,
        embedding_size: 6,
        hidden_size,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        intermediate_size: 10,
        max_position_embeddings: 12,
        ..ElectraConfig::default()
    }
}

fn tiny_model() -> Result<(Model, AdamW<Cpu<f32>>)> {
    let generator = Checkpoint::fresh(tiny(4), Architecture::MaskedLm);
    let discriminator = Checkpoint::fresh(tiny(8), Architecture::PreTraining);
    let mut model =
        TokenDetection::with_options(Cpu::<f32>::new(), generator, discriminator, Options::default())?;
    let optimizer = AdamW::new(&mut model, AdamWOptions::default())?;
    Ok((model, optimizer))
}

/// The tiny pair's generator as a directory, its files in memory, and a state of its training.
struct Saved {
    dir: tempfile::TempDir,
    model: Model,
    optimizer: AdamW<Cpu<f32>>,
}

impl Saved {
    fn new() -> Result<(Self, Vec<u8>)> {
        let dir = tempfile::tempdir()
            .map_err(elektron::Error::io("create a directory in", std::env::temp_dir()))?;
        let (mut model, optimizer) = tiny_model()?;
        model.save_pretrained(dir.path())?;
        let position = Position { step: 3, tokens: 300 };
        let state = TrainerState { position, ..TrainerState::default() };
        let checkpoints = Checkpoints::new(dir.path(), 1);
        checkpoints.prepare()?;
        checkpoints.write(&Snapshot::take(&mut model, &optimizer, state)?, Moment::SavePoint)?;
        let mut saved = Self { dir, model, optimizer };
        let state = fs::read(saved.newest()?).unwrap_or_default();
        saved.restore()?;
        Ok((saved, state))
    }

    fn newest(&self) -> Result<PathBuf> {
        Ok(Checkpoints::new(self.dir.path(), 1).list()?.pop().unwrap_or_default())
    }

    /// Goes on from the newest state; that it was passed over is its error.
    fn restore(&mut self) -> Result<()> {
        let mut passed_over = None;
        let checkpoints = Checkpoints::new(self.dir.path(), 1);
        let found = checkpoints.newest(&[Moment::SavePoint], |e| passed_over = Some(e.to_string()))?;
        match (passed_over, found) {
            (Some(problem), _) => return Err(elektron::Error::config(problem)),
            (None, found) => found.expect("the newest").restore(&mut self.model, &mut self.optimizer)?,
        }
        Ok(())
    }
}

thread_local! {
    static MODEL: RefCell<(Saved, Vec<u8>)> = RefCell::new(Saved::new().unwrap_or_else(|e| panic!("{e}")));
}

fn state(_: &Path, bytes: &[u8]) -> Result<()> {
    MODEL.with_borrow_mut(|(saved, _)| {
        let path = saved.newest()?;
        fs::write(&path, bytes).map_err(elektron::Error::io("write", &path))?;
        saved.restore()
    })
}

fn model_file(name: &str) -> Vec<u8> {
    MODEL
        .with_borrow(|(saved, _)| fs::read(saved.dir.path().join("generator").join(name)).unwrap_or_default())
}

/// Replaces one file of the tiny generator's directory; an index needs that there is no single file of weights.
fn model(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let [config, weights] = [CONFIG, WEIGHTS].map(model_file);
    put(dir, CONFIG, &config);
    put(dir, "part.safetensors", &weights);
    let single = put(dir, WEIGHTS, &weights);
    if name == INDEX {
        fs::remove_file(&single).map_err(elektron::Error::io("remove", &single))?;
    }
    put(dir, name, bytes);
    let discriminator = Checkpoint::load(dir)?.with_head(Architecture::PreTraining);
    assert!(discriminator.config.validate().is_ok());
    Ok(())
}

fn settings(dir: &Path, bytes: &[u8]) -> Result<()> {
    let settings = Settings::from_file(&put(dir, "run.toml", bytes))?;
    settings.over(&Settings::default()).map(|_| ())
}
