//! A server on the loopback address that behaves like the Hugging Face hub, or not quite.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a client asked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
}

impl Request {
    pub(super) fn range(&self) -> Option<&str> {
        self.headers.get("range").map(String::as_str)
    }
}

/// What it gets.
#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Announced, where it is not the body's length.
    pub(super) length: Option<usize>,
    /// Bytes of the body after which the connection is cut.
    pub(super) cut: Option<usize>,
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(super) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    fn send(self, request: &Request, mut stream: TcpStream) {
        let mut text = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", self.status);
        text += &format!("content-length: {}\r\n", self.length.unwrap_or(self.body.len()));
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        let _ = stream.write_all((text + "\r\n").as_bytes());
        if request.method != "HEAD" {
            let _ = stream.write_all(&self.body[..self.cut.unwrap_or(self.body.len())]);
        }
    }
}

/// What is different from a hub that works; it also gets the number of the request, from 0.
pub(super) type Mischief = fn(usize, &Request, Reply) -> Reply;

pub(super) fn large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".bin")
}

pub(super) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hub's own behaviour: large files lie elsewhere, under their SHA-256.
fn answer(files: &BTreeMap<String, Vec<u8>>, request: &Request, port: u16) -> Reply {
    if let Some(digest) = request.path.strip_prefix("/content/") {
        let Some(content) = files.values().find(|content| sha256(content) == digest) else {
            return Reply::new(404);
        };
        return part(request, content).header("etag", "\"of-another-host\"");
    }
    let name = request.path.strip_prefix("/owner/name/resolve/").and_then(|rest| rest.split_once('/'));
    let Some((revision, name)) = name else {
        return Reply::new(404).header("x-error-code", "RepoNotFound");
    };
    if !["main", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
        return Reply::new(404).header("x-error-code", "RevisionNotFound");
    }
    let Some(content) = files.get(name) else {
        return Reply::new(404).header("x-error-code", "EntryNotFound").header("x-repo-commit", COMMIT);
    };
    if large(name) {
        return Reply::new(302)
            .header("location", format!("http://localhost:{port}/content/{}", sha256(content)))
            .header("x-repo-commit", COMMIT)
            .header("x-linked-etag", format!("\"{}\"", sha256(content)))
            .header("x-linked-size", content.len());
    }
    let etag = format!("W/\"{}\"", &sha256(content)[..40]);
    part(request, content).header("x-repo-commit", COMMIT).header("etag", etag)
}

fn part(request: &Request, content: &[u8]) -> Reply {
    let from =
        request.range().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        None => Reply { body: content.to_vec(), ..Reply::new(200) },
        Some(from) if from < content.len() => Reply { body: content[from..].to_vec(), ..Reply::new(206) }
            .header("content-range", format!("bytes {from}-{}/{}", content.len() - 1, content.len())),
        Some(_) => Reply::new(416),
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(|line| line.ok());
    let first = lines.next()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
    });
    Some(Request { method, path, headers: headers.collect() })
}

/// Serves the files for as long as the process lives; returns the port and what is asked.
pub(super) fn serve(files: &[(&str, Vec<u8>)], mischief: Mischief) -> (u16, Arc<Mutex<Vec<Request>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let log = Arc::new(Mutex::new(Vec::new()));
    let files: BTreeMap<String, Vec<u8>> =
        files.iter().map(|(name, content)| ((*name).to_owned(), content.clone())).collect();
    let shared = log.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let Some(request) = read_request(&stream) else { continue };
            let number = shared.lock().unwrap().len();
            shared.lock().unwrap().push(request.clone());
            mischief(number, &request, answer(&files, &request, port)).send(&request, stream);
        }
    });
    (port, log)
}
