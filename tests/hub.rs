//! Models by name, from a server on the loopback address: what is asked, what is kept, and what each failure says.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use elektron::Result;
use elektron::hub::{Hub, ModelName, Part};
use elektron::model::hf::Checkpoint;
use tempfile::TempDir;

use crate::support::{golden, repository};

mod server;

use server::{COMMIT, Mischief, Reply, Request, serve, sha256};

/// A hub with one model, `owner/name`, and a cache of its own.
struct World {
    scratch: TempDir,
    hub: Hub,
    log: Arc<Mutex<Vec<Request>>>,
}

impl World {
    fn new(files: &[(&str, Vec<u8>)], mischief: Mischief) -> Self {
        let (port, log) = serve(files, mischief);
        let scratch = tempfile::tempdir().unwrap();
        let hub = Hub {
            cache: scratch.path().join("hub"),
            endpoint: format!("http://127.0.0.1:{port}"),
            token: None,
            offline: false,
            quiet: true,
            patience: Duration::from_millis(1),
        };
        Self { scratch, hub, log }
    }

    fn generator(mischief: Mischief) -> Self {
        Self::new(&generator(), mischief)
    }

    fn get(&self, part: Part) -> Result<PathBuf> {
        self.hub.snapshot(&ModelName::parse("owner/name").unwrap(), part)
    }

    /// The error of asking for the model; nothing may have got its name.
    fn refused(&self) -> String {
        let error = self.get(Part::Model).unwrap_err().to_string();
        assert!(self.snapshot("model.safetensors").symlink_metadata().is_err(), "{error}");
        assert!(!self.blob(&generator()[1].1).exists(), "{error}");
        assert!(!self.model_dir().join("refs/main").exists(), "{error}");
        error
    }

    fn model_dir(&self) -> PathBuf {
        self.hub.cache.join("models--owner--name")
    }

    fn snapshot(&self, file: &str) -> PathBuf {
        self.model_dir().join("snapshots").join(COMMIT).join(file)
    }

    fn blob(&self, content: &[u8]) -> PathBuf {
        self.model_dir().join("blobs").join(sha256(content))
    }

    fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// Ranges asked for, of requests for the content of large files.
    fn ranges(&self) -> Vec<Option<String>> {
        let contents = self.requests().into_iter().filter(|r| r.path.starts_with("/content/"));
        contents.map(|r| r.range().map(str::to_owned)).collect()
    }
}

fn honest(_: usize, _: &Request, reply: Reply) -> Reply {
    reply
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn generator() -> Vec<(&'static str, Vec<u8>)> {
    let file = |name| (name, read(&golden("checkpoints/generator").join(name)));
    vec![file("config.json"), file("model.safetensors")]
}

fn contains(text: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(text.contains(word), "`{word}` is not in: {text}"));
}

#[test]
fn a_model_is_fetched_once_into_the_cache_of_huggingface_hub() {
    let world = World::generator(honest);
    let dir = world.get(Part::Model).unwrap();
    assert_eq!(Checkpoint::load(&dir).unwrap(), Checkpoint::load(&golden("checkpoints/generator")).unwrap());
    assert_eq!(dir, world.model_dir().join("snapshots").join(COMMIT));
    assert_eq!(read(&world.model_dir().join("refs/main")), COMMIT.as_bytes());
    assert_eq!(read(&world.blob(&generator()[1].1)), generator()[1].1);
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(dir.join("model.safetensors")).unwrap(),
        Path::new("../../blobs").join(sha256(&generator()[1].1))
    );
    let requests = world.requests();
    let asked: Vec<(&str, &str)> = requests.iter().map(|r| (r.method.as_str(), r.path.as_str())).collect();
    let weights = format!("/owner/name/resolve/{COMMIT}/model.safetensors");
    let content = format!("/content/{}", sha256(&generator()[1].1));
    let config = format!("/owner/name/resolve/{COMMIT}/config.json");
    let expected = [
        ("HEAD", "/owner/name/resolve/main/config.json"),
        ("GET", &config),
        ("HEAD", &weights),
        ("GET", &weights),
        ("GET", &content),
    ];
    assert_eq!(asked, expected);
    // A second time, by commit, and offline: nothing is asked.
    assert_eq!(world.get(Part::Model).unwrap(), dir);
    let by_commit = ModelName::parse(&format!("owner/name@{COMMIT}")).unwrap();
    assert_eq!(world.hub.snapshot(&by_commit, Part::Model).unwrap(), dir);
    let offline = Hub { offline: true, ..world.hub.clone() };
    assert_eq!(offline.snapshot(&ModelName::parse("owner/name").unwrap(), Part::Model).unwrap(), dir);
    assert_eq!(world.requests().len(), expected.len());
}

#[test]
fn the_token_is_for_the_hub_alone() {
    let mut world = World::generator(|_, request, reply| {
        let known = request.headers.get("authorization").is_some_and(|value| value == "Bearer secret");
        let elsewhere = request.path.starts_with("/content/");
        assert!(!(elsewhere && request.headers.contains_key("authorization")));
        if known || elsewhere { reply } else { Reply::new(401).header("x-error-code", "RepoNotFound") }
    });
    contains(&world.refused(), &["owner/name", "HF_TOKEN", "401"]);
    assert_eq!(world.requests().len(), 1, "what is refused is not asked again");
    world.hub.token = Some("wrong".to_owned());
    contains(&world.refused(), &["owner/name", "HF_TOKEN", "valid"]);
    world.hub.token = Some("secret".to_owned());
    Checkpoint::load(&world.get(Part::Model).unwrap()).unwrap();
}

#[test]
fn small_files_may_be_redirected_within_the_hub() {
    let world =
        World::generator(|_, request, reply| match request.path.strip_prefix("/owner/name/resolve/main/") {
            Some(file) => Reply::new(307).header("location", format!("/owner/name/resolve/{COMMIT}/{file}")),
            None => reply,
        });
    Checkpoint::load(&world.get(Part::Model).unwrap()).unwrap();
    let circle = World::generator(|_, request, _| Reply::new(307).header("location", &request.path));
    contains(&circle.refused(), &["redirected"]);
}

#[test]
fn a_cut_connection_is_continued_where_it_broke() {
    let cut_twice: Mischief = |number, request, reply| match (request.path.starts_with("/content/"), number) {
        (true, 4) => Reply { cut: Some(100_000), ..reply },
        (true, 6) => Reply { cut: Some(50_000), ..reply },
        _ => reply,
    };
    let world = World::generator(cut_twice);
    Checkpoint::load(&world.get(Part::Model).unwrap()).unwrap();
    let from = |at: usize| Some(format!("bytes={at}-"));
    assert_eq!(world.ranges(), [None, from(100_000), from(150_000)]);
    assert!(!world.blob(&generator()[1].1).with_extension("incomplete").exists());
}

#[test]
fn the_next_run_goes_on_where_the_last_one_gave_up() {
    let world = World::generator(|number, request, reply| match request.path.starts_with("/content/") {
        true if number == 4 => Reply { cut: Some(70_000), ..reply },
        true if number < 13 => Reply::new(503),
        _ => reply,
    });
    contains(&world.refused(), &["model.safetensors", "503", "goes on where"]);
    assert_eq!(world.ranges().len(), 5, "tries are few");
    Checkpoint::load(&world.get(Part::Model).unwrap()).unwrap();
    assert_eq!(world.ranges()[1..], vec![Some("bytes=70000-".to_owned()); 5]);
}

/// A server that ignores Range sends everything again; appended, that would be nonsense of the right beginning.
#[test]
fn a_server_without_ranges_starts_anew() {
    let world = World::generator(|number, request, reply| {
        let whole = || Reply { body: generator()[1].1.clone(), ..Reply::new(200) };
        match request.path.starts_with("/content/") {
            true if number == 4 => Reply { cut: Some(99_999), ..whole() },
            true => whole(),
            false => reply,
        }
    });
    Checkpoint::load(&world.get(Part::Model).unwrap()).unwrap();
    assert_eq!(world.ranges(), [None, Some("bytes=99999-".to_owned())]);
}

#[test]
fn a_wrong_length_is_refused() {
    let shorter = World::generator(|_, request, reply| match request.path.starts_with("/content/") {
        true => Reply { body: reply.body[..1000].to_vec(), ..reply },
        false => reply,
    });
    contains(&shorter.refused(), &["announces 1000 bytes", "251472"]);
    let longer = World::generator(|_, request, reply| match request.path.starts_with("/content/") {
        true => Reply { length: Some(300_000), ..reply },
        false => reply,
    });
    contains(&longer.refused(), &["announces 300000 bytes", "251472"]);
    // A small file has no other length than the announced one; more is cut off as the connection is.
    let cut = World::generator(|_, request, reply| match request.method.as_str() {
        "GET" => Reply { cut: Some(100), ..reply },
        _ => reply,
    });
    contains(&cut.refused(), &["config.json", "cut after"]);
}

#[test]
fn damaged_bytes_are_refused() {
    let world = World::generator(|_, request, mut reply| {
        if request.path.starts_with("/content/") {
            reply.body[200_000] ^= 1;
        }
        reply
    });
    contains(&world.refused(), &["model.safetensors", "damaged", "SHA-256"]);
    let left: Vec<_> = fs::read_dir(world.model_dir().join("blobs")).unwrap().collect();
    assert_eq!(left.len(), 1, "config.json alone: {left:?}");
}

#[test]
fn what_lies_there_half_fetched_is_not_trusted() {
    let (world, content) = (World::generator(honest), generator()[1].1.clone());
    let partial = world.blob(&content).with_extension("incomplete");
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, [7; 1000]).unwrap();
    contains(&world.refused(), &["damaged"]);
    fs::write(&partial, vec![7; content.len() + 1]).unwrap();
    Checkpoint::load(&world.get(Part::Model).unwrap()).unwrap();
    assert_eq!(world.ranges(), [Some("bytes=1000-".to_owned()), None]);
}

#[test]
fn unavailable_for_a_while_is_tried_again() {
    let world = World::generator(|number, _, reply| match number {
        0 => Reply::new(503),
        1 | 4 => Reply::new(429),
        _ => reply,
    });
    Checkpoint::load(&world.get(Part::Model).unwrap()).unwrap();
    let never = World::generator(|_, _, _| Reply::new(500));
    contains(&never.refused(), &["config.json", "owner/name", "500"]);
    assert_eq!(never.requests().len(), 5);
}

#[test]
fn what_there_is_not_is_named() {
    let world = World::generator(honest);
    let get = |name: &str| {
        let error = world.hub.snapshot(&ModelName::parse(name).unwrap(), Part::Model).unwrap_err();
        error.to_string()
    };
    contains(&get("owner/nmae"), &["owner/nmae", "RepoNotFound", "no", "path"]);
    contains(&get("owner/name@v2"), &["owner/name@v2", "RevisionNotFound"]);
    let empty = World::new(&[("README.md", Vec::new())], honest);
    contains(&empty.refused(), &["config.json", "owner/name"]);
    let other = World::new(
        &[("config.json", b"{\"model_type\": \"bert\"}".to_vec()), ("model.safetensors", vec![1])],
        honest,
    );
    contains(&other.refused(), &["bert", "electra"]);
    assert_eq!(other.requests().len(), 2, "weights of another kind of model are not fetched");
    let pickled =
        World::new(&[("config.json", generator()[0].1.clone()), ("pytorch_model.bin", vec![1])], honest);
    contains(
        &pickled.refused(),
        &["pytorch_model.bin", "save_pretrained('name')", "ElectraForMaskedLM", "@refs/pr/"],
    );
    let proxy = World::generator(|_, _, _| Reply { body: b"<html>".to_vec(), ..Reply::new(200) });
    contains(&proxy.refused(), &["ETag", "HF_ENDPOINT"]);
    // Names of files come from servers too.
    let outside = World::generator(|_, _, reply| reply.header("x-linked-etag", "../../../outside"));
    contains(&outside.refused(), &["ETag"]);
}

#[test]
fn shards_are_those_of_the_index() {
    let weights = generator()[1].1.clone();
    let index = |names: &[&str]| {
        let map: BTreeMap<String, &str> =
            names.iter().enumerate().map(|(i, name)| (i.to_string(), *name)).collect();
        serde_json::json!({ "weight_map": map }).to_string().into_bytes()
    };
    let (one, config) = ("model-1-of-1.safetensors", generator()[0].clone());
    let index_file = "model.safetensors.index.json";
    let world =
        World::new(&[config.clone(), (index_file, index(&[one, one])), (one, weights.clone())], honest);
    Checkpoint::load(&world.get(Part::Model).unwrap()).unwrap();
    let asked = world.requests().len();
    fs::remove_file(world.snapshot(one)).unwrap();
    world.get(Part::Model).unwrap();
    let extra: Vec<Request> = world.requests().split_off(asked);
    assert!(extra.iter().all(|r| r.method == "HEAD"), "its content is still there: {extra:?}");
    let lacking = World::new(&[config.clone(), (index_file, index(&[one]))], honest);
    contains(&lacking.refused(), &[one, "no"]);
    for outside in ["../x.safetensors", "/etc/passwd", ".."] {
        let world = World::new(&[config.clone(), (index_file, index(&[outside]))], honest);
        contains(&world.refused(), &["weight_map", "directory"]);
    }
}

#[test]
fn tokenizers_come_in_either_form() {
    let vocab = read(&repository("tests/data/wordpiece-8k.txt"));
    let world = World::new(&[("vocab.txt", vocab)], honest);
    let dir = world.get(Part::Tokenizer).unwrap();
    elektron::data::tokenizer::Tokenizer::load(&dir).unwrap();
    let absent = world.model_dir().join(".no_exist").join(COMMIT);
    assert!(absent.join("tokenizer_config.json").is_file() && absent.join("tokenizer.json").is_file());
    let asked = world.requests().len();
    assert_eq!(world.get(Part::Tokenizer).unwrap(), dir);
    assert_eq!(world.requests().len(), asked, "that there are no settings is remembered");
    let none = World::generator(honest);
    contains(&none.get(Part::Tokenizer).unwrap_err().to_string(), &["vocab.txt", "--tokenizer"]);
}

#[test]
fn settings_beside_a_tokenizer_come_with_it() {
    let tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "ab"];
    let vocab: Vec<String> =
        tokens.iter().enumerate().map(|(id, token)| format!("\"{token}\":{id}")).collect();
    let world = World::new(
        &[
            ("vocab.json", format!("{{{}}}", vocab.join(",")).into_bytes()),
            ("merges.txt", b"#version: 0.2\na b\n".to_vec()),
            ("config.json", b"{\"model_type\":\"roberta\"}".to_vec()),
            ("added_tokens.json", b"{\"@user\":8}".to_vec()),
            ("special_tokens_map.json", b"{\"additional_special_tokens\":[\"@user\"]}".to_vec()),
        ],
        honest,
    );
    let dir = world.get(Part::Tokenizer).unwrap();
    let tokenizer = elektron::data::tokenizer::Tokenizer::load(&dir).unwrap();
    assert_eq!(tokenizer.encode("ab@userb").unwrap(), [7, 8, 6]);
    let asked = world.requests().len();
    world.get(Part::Tokenizer).unwrap();
    assert_eq!(world.requests().len(), asked);
    fs::remove_file(world.snapshot("merges.txt")).unwrap();
    world.get(Part::Tokenizer).unwrap();
    assert!(world.snapshot("merges.txt").is_file());
    let converted = World::new(&[("spiece.model", b"x".to_vec())], honest);
    let error = converted.get(Part::Tokenizer).unwrap_err().to_string();
    contains(&error, &["spiece.model", "AutoTokenizer.from_pretrained(\"owner/name\")", "save_pretrained"]);
}

/// As a user meets it: by flags and variables, online once and then offline.
#[test]
fn commands_take_names() {
    let files: Vec<(&str, Vec<u8>)> = ["config.json", "model.safetensors"]
        .map(|name| (name, read(&golden("checkpoints/discriminator_pre").join(name))))
        .into_iter()
        .chain([("vocab.txt", vocabulary())])
        .collect();
    let world = World::new(&files, honest);
    let detect = |variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elektron"));
        command.args(["detect", "--discriminator", "owner/name@refs/pr/1", "--json", "a b"]);
        command.current_dir(world.scratch.path());
        for name in ["HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH"]
            .into_iter()
            .chain(["HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"])
        {
            command.env_remove(name);
        }
        let out = command
            .env("HF_HOME", world.scratch.path())
            .env("HF_ENDPOINT", format!("{}/", world.hub.endpoint))
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, _, error) = detect(&[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(code, Some(1));
    contains(&error, &["HF_HUB_OFFLINE", "owner/name@refs/pr/1", "models--owner--name", "refs/pr/1"]);
    assert!(world.requests().is_empty());
    fs::write(world.scratch.path().join("token"), "saved\n").unwrap();
    let (code, first, error) = detect(&[]);
    assert_eq!(code, Some(0), "{error}");
    contains(&first, &["replaced"]);
    contains(&error, &["downloaded model.safetensors"]);
    assert_eq!(world.requests()[0].headers["authorization"], "Bearer saved");
    assert!(world.model_dir().join("refs/refs/pr/1").is_file());
    let asked = world.requests().len();
    assert_eq!(detect(&[("HF_HUB_OFFLINE", "1")]).1, first);
    assert_eq!(detect(&[]).1, first);
    assert_eq!(world.requests().len(), asked);
    fs::remove_file(world.model_dir().join("snapshots").join(COMMIT).join("model.safetensors")).unwrap();
    let (_, _, error) = detect(&[("HF_HUB_OFFLINE", "1")]);
    contains(&error, &["no `model.safetensors` in", COMMIT]);
}

/// A vocabulary of the size of the golden checkpoints'.
fn vocabulary() -> Vec<u8> {
    let specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
    let letters = ('a'..='z').map(String::from);
    specials.into_iter().chain(letters).collect::<Vec<_>>().join("\n").into_bytes()
}
