//! Hostile files: 10,000 mutations of valid ones, over all formats. Whatever a file holds, reading it ends with a result
//! or an error: no panic, in bounded time, in memory bounded by the file's length. Sizes in headers are never trusted.

mod alloc;
mod formats;
mod mutate;

use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::LazyLock;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use formats::{FORMATS, Format};

/// Files in all.
const CASES: usize = 10_000;
/// Memory for each byte of a file: what parsed JSON takes.
const BYTES_A_BYTE: usize = 64;
/// Computing time for one file.
const MOST_TIME: Duration = Duration::from_secs(10);
/// A thread that shows no sign of life for so long hangs, however loaded the machine is.
const NO_END: Duration = Duration::from_secs(300);

fn bound(format: &Format, bytes: usize) -> usize {
    format.memory + BYTES_A_BYTE * bytes
}

fn seeds(format: &Format) -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let seeds = (format.seeds)(dir.path());
    assert!(!seeds.is_empty(), "{}", format.name);
    seeds
}

/// `ELEKTRON_SEEDS=fuzz/corpus` also writes them, for the targets of `fuzz/`.
#[test]
fn every_seed_is_read() {
    for format in FORMATS {
        for (number, seed) in seeds(format).iter().enumerate() {
            formats::feed(format.name, seed)
                .unwrap_or_else(|e| panic!("{}, seed {number}: {e}", format.name));
            if let Some(corpus) = std::env::var_os("ELEKTRON_SEEDS") {
                let dir = Path::new(&corpus).join(format.name);
                fs::create_dir_all(&dir).unwrap();
                fs::write(dir.join(format!("seed-{number}")), seed).unwrap();
            }
        }
    }
}

/// Reads one file: whether it was accepted, or what went wrong.
fn examine(format: &Format, case: usize, bytes: &[u8]) -> Result<bool, String> {
    let start = computing_time();
    let (outcome, peak) =
        alloc::peak(|| catch_unwind(AssertUnwindSafe(|| formats::feed(format.name, bytes))));
    let problem = match outcome {
        Err(_) => "it panicked".to_owned(),
        Ok(Err(error)) if error.to_string().trim().is_empty() => "its error says nothing".to_owned(),
        Ok(_) if peak > bound(format, bytes.len()) => format!("it took {} KiB of memory", peak >> 10),
        Ok(_) if computing_time() - start > MOST_TIME => "it took too long".to_owned(),
        Ok(read) => return Ok(read.is_ok()),
    };
    let kept = std::env::temp_dir().join(format!("elektron-{}-{case}", format.name));
    let _ = fs::write(&kept, bytes);
    Err(format!("{} case {case} ({} bytes, kept as {}): {problem}", format.name, bytes.len(), kept.display()))
}

/// What this thread has computed so far, where the system says so; else the time.
fn computing_time() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|number| number.parse().ok());
    nanoseconds.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

/// Reads every mutated file of a format, in a thread that can be given up; how many were accepted.
fn try_all(format: &'static Format, cases: usize) -> usize {
    let (sender, receiver) = channel();
    let thread = std::thread::spawn(move || {
        let seeds = seeds(format);
        let mut accepted = 0;
        for case in 0..cases {
            let bytes = mutate::mutation(format.name, case, &seeds);
            let _ = sender.send(case);
            accepted += usize::from(examine(format, case, &bytes)?);
        }
        Ok(accepted)
    });
    let mut last = 0;
    loop {
        match receiver.recv_timeout(NO_END) {
            Ok(case) => last = case,
            Err(RecvTimeoutError::Timeout) => panic!("{} case {last} does not end", format.name),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    match thread.join() {
        Ok(accepted) => accepted.unwrap_or_else(|offence: String| panic!("{offence}")),
        Err(_) => panic!("{} case {last}: the thread stopped", format.name),
    }
}

#[test]
fn mutated_files_are_read_or_refused() {
    let cases = CASES.div_ceil(FORMATS.len());
    let problems: Vec<String> = std::thread::scope(|scope| {
        let all: Vec<_> =
            FORMATS.iter().map(|format| (format, scope.spawn(move || try_all(format, cases)))).collect();
        all.into_iter()
            .filter_map(|(format, thread)| match thread.join() {
                // Mutations that leave every file valid, or none, would test little.
                Ok(accepted) => {
                    println!("{}: {accepted} of {cases} accepted", format.name);
                    (!(1..cases).contains(&accepted)).then(|| format!("{}: {accepted} accepted", format.name))
                }
                Err(panic) => Some(panic.downcast_ref::<String>().cloned().unwrap_or_default()),
            })
            .collect()
    });
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Reads a file of a format and gives the error that it must be, within the bound of memory.
fn refused(name: &str, bytes: &[u8]) -> String {
    let format = FORMATS.iter().find(|format| format.name == name).unwrap();
    assert_eq!(examine(format, 0, bytes), Ok(false));
    formats::feed(name, bytes).unwrap_err().to_string()
}

/// The first seed of a format with one text in place of another.
fn changed(name: &str, from: &str, to: &str) -> Vec<u8> {
    let format = FORMATS.iter().find(|format| format.name == name).unwrap();
    let text = seeds(format).swap_remove(0);
    let at = text.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
    [&text[..at], to.as_bytes(), &text[at + from.len()..]].concat()
}

/// 80 KB of gzip, 80 MB of csv: one record that never ends.
#[test]
fn a_record_without_end_is_refused() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"text\n\"").unwrap();
    (0..80).for_each(|_| gzip.write_all(&[b'a'; 1 << 20]).unwrap());
    let error = refused("gz", &gzip.finish().unwrap());
    assert!(error.contains("longer than 64 MiB"), "{error}");
}

#[test]
fn layers_without_number_are_refused() {
    let bytes = changed("config", "\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2147483647");
    let error = refused("config", &bytes);
    assert!(error.contains("num_hidden_layers") && error.contains("1024"), "{error}");
}

#[test]
fn a_token_id_beyond_any_vocabulary_is_refused() {
    let error = refused("tokenizer", &changed("tokenizer", "\"[SEP]\": 3", "\"[SEP]\": 4294967295"));
    assert!(error.contains("4294967295"), "{error}");
}

#[test]
fn a_decoder_that_is_not_json_is_refused() {
    let error = refused("tokenizer", &changed("tokenizer", "\"decoder\": {", "\"decoder\": {\u{1}"));
    assert!(error.contains("not JSON"), "{error}");
}
