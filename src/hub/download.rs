//! Downloads: one HEAD request that says what a file is (commit, ETag, length), one GET for its content.
//!
//! ```text
//! HEAD owner/name/resolve/REVISION/FILE ─→ X-Repo-Commit, ETag or X-Linked-Etag, length
//! GET (the same, Range: bytes=have-) ─→ redirects ─→ blobs/ETAG.incomplete ─→ checked ─→ blobs/ETAG ─→ snapshots/COMMIT/FILE
//! ```
//!
//! A cut connection is continued where it broke, in this run or the next, as often as it brings something; tries that
//! bring nothing are few, each after a longer wait. A content gets its name when its length is the announced one and,
//! for large files, whose ETag is their SHA-256, the digest agrees. The token goes to the endpoint's own origin only:
//! large files are redirected to other hosts. All files of a snapshot are asked for by the commit of the first.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body, Proxy};

use super::cache::{Repository, TOKENIZER_SETTINGS, is_plain};
use super::{Hub, ModelName, Part};
use crate::data::tokenizer::{SENTENCEPIECE, conversion};
use crate::fsutil::create_dir;
use crate::model::config::Architecture;
use crate::model::hf::{WEIGHTS, WEIGHTS_INDEX, read_config, shard_names};
use crate::{Error, Result};

/// Tries in a row that may bring nothing.
const TRIES: u32 = 5;
/// A try that brought this much counts as none: a long download may be cut any number of times.
const WORTH_MORE: u64 = 1 << 20;
/// Redirects of one request.
const HOPS: usize = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Without a byte for so long a connection counts as cut.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two lines of progress.
const TICK: Duration = Duration::from_secs(5);

/// Why a try gave nothing.
enum Failure {
    /// Another may.
    Passing(String),
    /// No other will.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// What the hub says of a file.
struct Facts {
    etag: String,
    /// Unknown to mirrors that send files piecemeal.
    bytes: Option<u64>,
}

/// The download of one snapshot.
pub struct Download<'a> {
    hub: &'a Hub,
    name: &'a ModelName,
    repository: Repository,
    agent: Agent,
    /// The revision's commit, once a response has named it.
    commit: Option<String>,
}

impl<'a> Download<'a> {
    /// Of a model into its place in the cache.
    pub fn new(hub: &'a Hub, name: &'a ModelName, repository: Repository) -> Self {
        let local = ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| hub.endpoint.contains(host));
        let config = Agent::config_builder()
            .proxy(if local { None } else { Proxy::try_from_env() })
            .user_agent(concat!("elektron/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Followed here, since the headers on the way matter.
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT));
        Self { hub, name, repository, agent: config.build().into(), commit: None }
    }

    /// Fetches what `part` needs and the cache has not; the snapshot's directory.
    pub fn fetch(mut self, part: Part) -> Result<PathBuf> {
        match part {
            Part::Model => self.model()?,
            Part::Tokenizer => self.tokenizer()?,
        }
        let commit = self.commit.as_deref().unwrap_or(self.name.revision());
        self.repository.set_ref(self.name.revision(), commit)?;
        Ok(self.repository.snapshot(commit).dir().to_path_buf())
    }

    fn model(&mut self) -> Result<()> {
        let config = self.file("config.json")?.ok_or_else(|| self.lacks("config.json"))?;
        // Another kind of model is refused before its weights are fetched.
        let classes = read_config(&config)?.classes;
        if self.file(WEIGHTS)?.is_some() {
            return Ok(());
        }
        if let Some(index) = self.file(WEIGHTS_INDEX)? {
            for shard in shard_names(&index)? {
                self.file(&shard)?.ok_or_else(|| self.lacks(&shard))?;
            }
            return Ok(());
        }
        if self.facts("pytorch_model.bin")?.is_none() {
            return Err(self.lacks(WEIGHTS));
        }
        let class = classes.iter().find(|name| name.starts_with("Electra"));
        let class = class.map_or(Architecture::PreTraining.class_name(), String::as_str);
        let (repository, name) = (self.name.repository(), self.name);
        let folder = repository.rsplit('/').next().unwrap_or(repository);
        Err(Error::hub(format!(
            "`{name}` has its weights as pytorch_model.bin only, which is a program for Python rather than data. Convert \
             it once: python3 -c \"from transformers import {class} as M; \
             M.from_pretrained('{repository}').save_pretrained('{folder}')\" and give the directory {folder}; or name \
             a revision that has {WEIGHTS}, such as a converting pull request: {repository}@refs/pr/NUMBER"
        )))
    }

    fn tokenizer(&mut self) -> Result<()> {
        let whole = self.file("tokenizer.json")?.is_some() || self.file("vocab.txt")?.is_some();
        let halves = !whole && self.file("vocab.json")?.is_some() && self.file("merges.txt")?.is_some();
        if !whole && !halves {
            return Err(self.lacks_tokenizer()?);
        }
        for file in TOKENIZER_SETTINGS {
            self.file(file)?;
        }
        Ok(())
    }

    fn lacks_tokenizer(&mut self) -> Result<Error> {
        for model in SENTENCEPIECE {
            if self.facts(model)?.is_some() {
                let lines = conversion(self.name.repository());
                return Ok(Error::hub(format!(
                    "`{}` has its tokenizer as the SentencePiece model {model}, which is not read \
                     directly. Convert it once, in Python with `transformers` and `sentencepiece`, and \
                     give the directory `converted` with --tokenizer:\n{lines}",
                    self.name
                )));
            }
        }
        Ok(Error::hub(format!(
            "`{}` has no tokenizer.json, no vocab.txt and no vocab.json with merges.txt: name \
             another tokenizer with --tokenizer",
            self.name
        )))
    }

    /// A file of the snapshot, fetched if need be; `None` if the model has none of that name.
    fn file(&mut self, file: &str) -> Result<Option<PathBuf>> {
        let snapshot = |this: &Self| this.commit.as_deref().map(|commit| this.repository.snapshot(commit));
        if let Some(snapshot) = snapshot(self).filter(|snapshot| snapshot.has(file)) {
            return Ok(Some(snapshot.dir().join(file)));
        }
        let facts = self.facts(file)?;
        let Some(snapshot) = snapshot(self) else { return Ok(None) };
        let Some(facts) = facts else {
            snapshot.set_absent(file)?;
            return Ok(None);
        };
        let blob = self.repository.blob(&facts.etag);
        if !blob.is_file() {
            self.content(file, &facts, &blob)?;
        }
        snapshot.link(&blob, file)?;
        Ok(Some(snapshot.dir().join(file)))
    }

    fn url(&self, file: &str) -> String {
        let revision = self.commit.as_deref().unwrap_or(self.name.revision()).replace('/', "%2F");
        format!("{}/{}/resolve/{revision}/{file}", self.hub.endpoint, self.name.repository())
    }

    /// Asks what a file is; `None` if there is none.
    fn facts(&mut self, file: &str) -> Result<Option<Facts>> {
        let url = self.url(file);
        let mut tries = 0;
        let response = loop {
            match self.request("HEAD", &url, 0) {
                Ok(response) => break response,
                Err(failure) => self.wait(failure, &mut tries, file)?,
            }
        };
        let headers = response.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if self.commit.is_none() {
            self.commit = text("x-repo-commit").filter(|commit| is_plain(commit)).map(str::to_owned);
        }
        if response.status() == 404 {
            return Ok(None);
        }
        let etag = text("x-linked-etag").or_else(|| text("etag")).map(|etag| etag.trim_start_matches("W/"));
        let etag = etag.map(|etag| etag.trim_matches('"')).filter(|etag| is_plain(etag));
        let (Some(etag), Some(_)) = (etag, &self.commit) else {
            return Err(Error::hub(format!(
                "{url} names no commit or no ETag: is {} a Hugging Face hub? (HF_ENDPOINT)",
                self.hub.endpoint
            )));
        };
        // The length of a redirect is that of its notice.
        let plain = response.status().is_success().then(|| text("content-length")).flatten();
        let bytes = text("x-linked-size").or(plain).and_then(|length| length.parse().ok());
        Ok(Some(Facts { etag: etag.to_owned(), bytes }))
    }

    /// Fetches a content into its place among the blobs.
    fn content(&self, file: &str, facts: &Facts, blob: &Path) -> Result<()> {
        let mut partial = blob.to_path_buf();
        partial.as_mut_os_string().push(".incomplete");
        create_dir(partial.parent().unwrap_or(Path::new(".")))?;
        let _lock = self.lock(&facts.etag)?;
        if blob.is_file() {
            return Ok(()); // Another process was faster.
        }
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).open(&partial);
        let mut out = opened.map_err(Error::io("write", &partial))?;
        let mut progress =
            Progress { file, quiet: self.hub.quiet, start: Instant::now(), last: Instant::now() };
        let mut tries = 0;
        loop {
            let before = out.seek(SeekFrom::End(0)).map_err(Error::io("read", &partial))?;
            match self.pour(file, facts, &mut out, before, &mut progress) {
                Ok(()) => break,
                Err(failure) => {
                    let after = out.stream_position().map_err(Error::io("read", &partial))?;
                    if after >= before + WORTH_MORE {
                        tries = 0;
                    }
                    self.wait(failure, &mut tries, file)?;
                }
            }
        }
        out.sync_all().map_err(Error::io("write", &partial))?;
        drop(out);
        if let Err(error) = check(&partial, file, &facts.etag) {
            fs::remove_file(&partial).map_err(Error::io("remove", &partial))?;
            return Err(error);
        }
        fs::rename(&partial, blob).map_err(Error::io("rename", &partial))?;
        progress.done(blob);
        Ok(())
    }

    /// Appends to `out`, which has `have` bytes, until the content is whole.
    fn pour(
        &self,
        file: &str,
        facts: &Facts,
        out: &mut File,
        mut have: u64,
        progress: &mut Progress<'_>,
    ) -> Result<(), Failure> {
        let failed = |e| Failure::Final(Error::hub(format!("`{file}` cannot be written to the cache: {e}")));
        if facts.bytes.is_some_and(|bytes| have > bytes) {
            out.set_len(0).map_err(failed)?;
            have = 0;
        }
        if facts.bytes == Some(have) {
            return Ok(());
        }
        let response = self.request("GET", &self.url(file), have)?;
        match response.status().as_u16() {
            200 | 206 => {}
            416 => {
                out.set_len(0).map_err(failed)?;
                return Err(Failure::Passing("the server has less than was fetched before".to_owned()));
            }
            status => return Err(Failure::Passing(format!("HTTP {status} for its content"))),
        }
        let continued = response.status() == 206
            && header(response.headers(), "content-range")
                .is_some_and(|range| range.starts_with(&format!("bytes {have}-")));
        if !continued && have > 0 {
            // A server that knows no ranges: from the start.
            out.set_len(0).map_err(failed)?;
            have = 0;
        }
        let announced = response.body().content_length().map(|length| have + length);
        if let (Some(announced), Some(bytes)) = (announced, facts.bytes)
            && announced != bytes
        {
            return Err(Failure::Final(Error::hub(format!(
                "the server announces {announced} bytes for `{file}` of `{}`, the hub says {bytes}: try again, or \
                 another HF_ENDPOINT",
                self.name
            ))));
        }
        out.seek(SeekFrom::Start(have)).map_err(failed)?;
        let whole = facts.bytes.or(announced);
        // One byte more than there should be shows that there is too much.
        let mut body = response.into_body().into_reader().take(whole.map_or(u64::MAX, |n| n + 1 - have));
        let mut block = vec![0; 1 << 17];
        loop {
            let read = body.read(&mut block).map_err(|e| cut(have, whole, &e.to_string()))?;
            if read == 0 {
                break;
            }
            out.write_all(&block[..read]).map_err(failed)?;
            have += read as u64;
            progress.tick(have, whole);
        }
        match whole {
            Some(whole) if have < whole => Err(cut(have, Some(whole), "it ended early")),
            Some(whole) if have > whole => {
                out.set_len(0).map_err(failed)?;
                Err(Failure::Passing(format!("the server sent more than the {whole} bytes of this file")))
            }
            _ => Ok(()),
        }
    }

    /// One request, redirects followed; HEAD stays with the endpoint, whose headers say what a file is.
    fn request(&self, method: &str, url: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut url = url.to_owned();
        for _ in 0..HOPS {
            let mut request = if method == "HEAD" { self.agent.head(&url) } else { self.agent.get(&url) };
            if let Some(token) =
                self.hub.token.as_ref().filter(|_| origin(&url) == origin(&self.hub.endpoint))
            {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            // Lengths and digests are those of the plain content.
            let sent = request.header("accept-encoding", "identity").call();
            let response = sent.map_err(|e| Failure::Passing(e.to_string()))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return self.judge(response, &url);
            }
            let next = header(response.headers(), "location").and_then(|location| resolve(&url, location));
            let next = next.ok_or_else(|| Error::hub(format!("{url} redirects to nowhere")))?;
            if method == "HEAD" && origin(&next) != origin(&self.hub.endpoint) {
                return Ok(response);
            }
            url = next;
        }
        Err(Failure::Final(Error::hub(format!("{url} is redirected more than {HOPS} times"))))
    }

    /// Which statuses are answers, which pass and which are final.
    fn judge(&self, response: Response<Body>, url: &str) -> Result<Response<Body>, Failure> {
        let (name, status) = (self.name, response.status().as_u16());
        let code = header(response.headers(), "x-error-code").unwrap_or_default();
        let problem = match status {
            200 | 206 | 416 => return Ok(response),
            404 if !matches!(code, "RepoNotFound" | "RevisionNotFound") => return Ok(response),
            404 => format!("there is no model `{name}` on the Hugging Face hub ({code})"),
            401 | 403 if self.hub.token.is_none() => format!(
                "the Hugging Face hub shows no `{name}` to strangers (HTTP {status}): check the name; for a private or \
                 gated model set HF_TOKEN to an access token of your account"
            ),
            401 | 403 => format!(
                "the Hugging Face hub refuses `{name}` to the token it was given (HTTP {status} {code}): check the name, \
                 whether HF_TOKEN is still valid, and whether its account was granted access to the model"
            ),
            408 | 429 | 500.. => return Err(Failure::Passing(format!("HTTP {status} from {url}"))),
            _ => format!("HTTP {status} from {url}"),
        };
        Err(Failure::Final(Error::hub(format!("{problem}; nor is there a path of that name here"))))
    }

    /// Waits before the next try, or gives up.
    fn wait(&self, failure: Failure, tries: &mut u32, file: &str) -> Result<()> {
        let problem = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing(problem) => problem,
        };
        *tries += 1;
        if *tries >= TRIES {
            return Err(Error::hub(format!(
                "`{file}` of `{}` cannot be downloaded, {TRIES} tries brought nothing ({problem}): check the network; the \
                 same command goes on where this one stopped",
                self.name
            )));
        }
        let pause = self.hub.patience * 2u32.pow(*tries - 1);
        if !self.hub.quiet {
            crate::note!("{file}: {problem}; trying again in {} s", pause.as_secs_f32());
        }
        std::thread::sleep(pause);
        Ok(())
    }

    /// Two processes do not write one content; `huggingface_hub` takes the same locks.
    fn lock(&self, etag: &str) -> Result<File> {
        let folder = self.repository.dir().file_name().unwrap_or_default();
        let dir = self.hub.cache.join(".locks").join(folder);
        create_dir(&dir)?;
        let path = dir.join(format!("{etag}.lock"));
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            if !self.hub.quiet {
                crate::note!("another process is downloading the same; waiting for it");
            }
            file.lock().map_err(Error::io("lock", &path))?;
        }
        // File systems that know no locks do without.
        Ok(file)
    }

    fn lacks(&self, file: &str) -> Error {
        Error::hub(format!(
            "there is no `{file}` of a model `{}` at {}, and no path of that name here: check the name",
            self.name, self.hub.endpoint
        ))
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn cut(have: u64, whole: Option<u64>, problem: &str) -> Failure {
    let of = whole.map_or(String::new(), |whole| format!(" of {whole}"));
    Failure::Passing(format!("the connection was cut after {have}{of} bytes ({problem})"))
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    &url[..url[host..].find(['/', '?', '#']).map_or(url.len(), |at| host + at)]
}

/// Where a redirect leads; never from an encrypted place to one that is not.
fn resolve(url: &str, location: &str) -> Option<String> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(format!("{}{location}", origin(url)));
    }
    let secure = location.starts_with("https://");
    (secure || location.starts_with("http://") && !url.starts_with("https://")).then(|| location.to_owned())
}

/// An ETag of 64 hexadecimal digits is the content's SHA-256.
fn check(path: &Path, file: &str, etag: &str) -> Result<()> {
    if etag.len() != 64 || !etag.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut content = File::open(path).map_err(Error::io("read", path))?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let read = content.read(&mut block).map_err(Error::io("read", path))?;
        if read == 0 {
            break;
        }
        hash.update(&block[..read]);
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found.eq_ignore_ascii_case(etag) {
        return Ok(());
    }
    Err(Error::hub(format!(
        "`{file}` arrived damaged (SHA-256 {found}, expected {etag}) and was deleted: run the command again"
    )))
}

/// What is said of a download on standard error.
struct Progress<'a> {
    file: &'a str,
    quiet: bool,
    start: Instant,
    last: Instant,
}

impl Progress<'_> {
    fn tick(&mut self, have: u64, whole: Option<u64>) {
        if self.quiet || self.last.elapsed() < TICK {
            return;
        }
        self.last = Instant::now();
        let of = whole.map_or(String::new(), |whole| format!(" of {:.1}", whole as f64 / 1e6));
        crate::note!("downloaded {:.1}{of} MB of {}", have as f64 / 1e6, self.file);
    }

    fn done(&self, blob: &Path) {
        if !self.quiet {
            let seconds = self.start.elapsed().as_secs_f64();
            let bytes = fs::metadata(blob).map_or(0, |m| m.len());
            crate::note!("downloaded {} ({:.1} MB in {seconds:.1} s)", self.file, bytes as f64 / 1e6);
        }
    }
}
