//! What the benches share: their arguments, and what is done with their results: `--save` writes a record, `--compare` sets them against one.
//!
//! Records lie in `benches/records/baseline`, or in the folder that `ELEKTRON_RECORDS` names: `<bench>-<device>.json`.
#![allow(dead_code)] // each bench uses its part

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;

pub(crate) mod record;

use record::{Case, Machine, Record, comparison};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/records/baseline");

/// What every bench takes.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Only cases whose name contains one of these.
    #[arg(value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// auto: the CPU, and a GPU if there is one.
    #[arg(long, default_value = "auto", value_parser = ["auto", "cpu", "cuda", "simt"])]
    pub(crate) device: String,
    /// Threads; 0: as many as the machine has.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Results as JSON instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
    /// Write benches/records/baseline/<bench>-<device>.json, or …-NAME.json.
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    save: Option<String>,
    /// Set the results against the last record, or against FILE.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    compare: Option<String>,
    /// Cargo says this to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    /// Whether a case of this name is asked for.
    pub(crate) fn want(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter.as_str()))
    }

    pub(crate) fn wants_cpu(&self) -> bool {
        matches!(self.device.as_str(), "auto" | "cpu")
    }

    pub(crate) fn wants_gpu(&self) -> bool {
        matches!(self.device.as_str(), "auto" | "cuda")
    }

    /// Whether the lack of a GPU is an error; says so if not.
    pub(crate) fn without_gpu(&self, reason: &dyn std::fmt::Display) -> Result<(), String> {
        if self.device == "cuda" {
            return Err(format!("there is no GPU: {reason}"));
        }
        eprintln!("no GPU here, so nothing was measured on one: {reason}");
        Ok(())
    }
}

/// Parses the command line and sets the number of threads.
pub(crate) fn arguments<A: Parser>(common: impl Fn(&A) -> &Arguments) -> A {
    let arguments = A::parse();
    let of = common(&arguments);
    if of.save.as_deref() == Some("") && !of.filters.is_empty() {
        eprintln!("error: the baseline holds every case: give this selection a name, --save=NAME");
        std::process::exit(2);
    }
    rayon::ThreadPoolBuilder::new().num_threads(of.threads).build_global().expect("the first thread pool");
    arguments
}

/// Results on one device.
pub(crate) struct Session<'a> {
    arguments: &'a Arguments,
    record: Record,
}

impl<'a> Session<'a> {
    pub(crate) fn new(bench: &str, device: &str, gpu: Option<String>, arguments: &'a Arguments) -> Self {
        let machine = Machine { cpu: processor(), threads: rayon::current_num_threads(), gpu };
        if !arguments.json {
            let gpu = machine.gpu.as_ref().map(|name| format!(", {name}")).unwrap_or_default();
            println!("\n{bench} on {device}: {}, {} threads{gpu}", machine.cpu, machine.threads);
        }
        let record = Record {
            bench: bench.to_owned(),
            device: device.to_owned(),
            machine,
            version: env!("ELEKTRON_VERSION").to_owned(),
            date: now(),
            cases: Vec::new(),
        };
        Self { arguments, record }
    }

    pub(crate) fn want(&self, name: &str) -> bool {
        self.arguments.want(name)
    }

    /// Whether tables are printed.
    pub(crate) fn talks(&self) -> bool {
        !self.arguments.json
    }

    pub(crate) fn add(&mut self, case: Case) {
        self.record.cases.push(case);
    }

    /// Compares, then saves; `json`: prints the record if JSON was asked for.
    pub(crate) fn finish(self, json: bool) -> Result<(), String> {
        let Self { arguments, record } = self;
        if record.cases.is_empty() {
            eprintln!(
                "{} on {}: no case is called like {:?}",
                record.bench, record.device, arguments.filters
            );
            return Ok(());
        }
        if arguments.json && json {
            println!("{}", serde_json::to_string(&record).map_err(|e| e.to_string())?);
        }
        let path = |name: &str| {
            let name = if name.is_empty() { String::new() } else { format!("-{name}") };
            let folder =
                std::env::var_os("ELEKTRON_RECORDS").map_or_else(|| PathBuf::from(FOLDER), PathBuf::from);
            folder.join(format!("{}-{}{name}.json", record.bench, record.device))
        };
        if let Some(file) = &arguments.compare {
            let file = if file.is_empty() { path("") } else { PathBuf::from(file) };
            eprintln!("\n{}", comparison(&read(&file)?, &record));
        }
        if let Some(name) = &arguments.save {
            write(&path(name), &record)?;
            eprintln!("saved as {}", path(name).display());
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Record, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("{}: {e}; `--save` makes such a record", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, record: &Record) -> Result<(), String> {
    let text = serde_json::to_string_pretty(record).map_err(|e| e.to_string())? + "\n";
    let parent = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    parent.and_then(|()| std::fs::write(path, text)).map_err(|e| format!("{}: {e}", path.display()))
}

/// The processor's name.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split(": ").nth(1)).unwrap_or(std::env::consts::ARCH).to_owned()
}

/// This day, UTC.
fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (mut days, mut year) = (seconds / 86_400, 1970);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}
