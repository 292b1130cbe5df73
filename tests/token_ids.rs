//! The token ids in the configurations of trained models are those of the tokenizer.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::{Scratch, checkpoint, fail};
use crate::models::{WORD, altered, write_config};
use crate::starting_points::Started;

/// A vocabulary in which the special tokens have other ids than in one that Elektron trains.
fn vocabulary_with_pad_at(scratch: &Scratch, pad: usize) -> String {
    let dir = PathBuf::from(scratch.path(&format!("pad{pad}")));
    fs::create_dir_all(&dir).unwrap();
    let trained = Path::new(&scratch.vocabulary(&scratch.book(150))).join("vocab.txt");
    let text = fs::read_to_string(trained).unwrap();
    let mut tokens: Vec<&str> = text.lines().filter(|token| *token != "[PAD]").collect();
    tokens.insert(pad, "[PAD]");
    fs::write(dir.join("vocab.txt"), tokens.join("\n") + "\n").unwrap();
    let settings = json!({ "bos_token": "[CLS]", "eos_token": { "content": "[SEP]" } });
    fs::write(dir.join("tokenizer_config.json"), settings.to_string()).unwrap();
    dir.to_str().unwrap().to_owned()
}

#[test]
fn token_ids_are_the_tokenizers_and_the_row_without_gradient_is_the_padding() {
    let scratch = Scratch::new();
    let sizes = PathBuf::from(scratch.path("sizes"));
    fs::create_dir(&sizes).unwrap();
    let config = json!({
        "model_type": "electra", "vocab_size": 1000, "embedding_size": 8, "hidden_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    });
    write_config(&sizes, config.as_object().unwrap());
    for pad in [3, 700] {
        let tokenizer = vocabulary_with_pad_at(&scratch, pad);
        // [UNK], [CLS], [SEP] move up where [PAD] has left the first place.
        let (cls, sep) = (1, 2);
        let settings = ["--base", sizes.to_str().unwrap(), "--tokenizer", &tokenizer];
        let rate = ["--learning-rate", "1e-3", "--steps", "4", "--quiet"];
        let run = Started::new(&scratch, &format!("run{pad}"), &[&settings[..], &rate].concat());
        for network in ["generator", "discriminator"] {
            let config = run.config(network);
            for (field, id) in [("pad_token_id", pad), ("bos_token_id", cls), ("eos_token_id", sep)] {
                assert_eq!(config[field], json!(id), "{network} {field}");
            }
        }
        let words = &run.weights("discriminator")[WORD];
        let row = |id: usize| &words.data[8 * id..][..8];
        assert!(row(pad).iter().all(|&x| x == 0.0), "the padding's row stays zero");
        let still = Started::new(&scratch, &format!("still{pad}"), &settings);
        let before = &still.weights("discriminator")[WORD];
        assert!(before.data[..8].iter().any(|&x| x != 0.0), "row 0 is a token as any");
        assert_ne!(row(cls), &before.data[8 * cls..][..8], "[CLS] begins every row and is trained");
    }
    // A model that says otherwise takes the tokenizer's ids, with a line.
    let tokenizer = vocabulary_with_pad_at(&scratch, 3);
    let run =
        Started::new(&scratch, "loaded", &["--base", &checkpoint("generator"), "--tokenizer", &tokenizer]);
    assert!(run.said.contains("`pad_token_id` is 0, the tokenizer's is 3"), "{}", run.said);
    assert_eq!(run.config("generator")["pad_token_id"], 3);
    assert_eq!(run.config("discriminator")["pad_token_id"], 3);
}

#[test]
fn two_different_tokenizers_of_the_models_are_refused() {
    let scratch = Scratch::new();
    let with_tokenizer = |name: &str, pad: usize| {
        let dir = altered(&scratch, &format!("with-{name}"), name, |_, _| {});
        let from = vocabulary_with_pad_at(&scratch, pad);
        fs::copy(Path::new(&from).join("vocab.txt"), dir.join("vocab.txt")).unwrap();
        dir.to_str().unwrap().to_owned()
    };
    let (g, d) = (with_tokenizer("generator", 0), with_tokenizer("discriminator_pre", 9));
    let (book, output) = (scratch.book(150), scratch.path("run"));
    let arguments =
        ["pretrain", "--train", &book, "--output", &output, "--generator", &g, "--discriminator", &d];
    let arguments = [&arguments[..], &["--seq-len", "32", "--merge", "concat"]].concat();
    fail(&arguments, &[&g, &d, "different tokenizers", "--tokenizer"]);
}
