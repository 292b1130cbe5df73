//! The table of all kernels: what each takes on each architecture, and which instructions it is made of.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use elektron::backend::gpu::driver::Precision;
use elektron::backend::gpu::driver::nvrtc::{ARCHITECTURES, KernelReport, SOURCES, compile};
use rayon::prelude::*;

use super::launches::{Asked, asked};
use super::occupancy::{Block, most_warps, resident};

/// What a kernel is looked through for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Instruction {
    Load16,
    Store16,
    Copy16,
    LoadMatrix,
    Mma,
}

impl Instruction {
    const ALL: [Self; 5] = [Self::Load16, Self::Store16, Self::Copy16, Self::LoadMatrix, Self::Mma];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Load16 => "ld16",
            Self::Store16 => "st16",
            Self::Copy16 => "cp16",
            Self::LoadMatrix => "ldmatrix",
            Self::Mma => "mma",
        }
    }

    /// Whether a line of PTX is one.
    fn is(self, line: &str) -> bool {
        let word = line.split_whitespace().find(|word| !word.starts_with('@')).unwrap_or_default();
        let parts: Vec<&str> = word.trim_end_matches(';').split('.').collect();
        let begins = |start: &[&str]| parts.starts_with(start);
        let has = |part: &str| parts.contains(&part);
        let wide = || {
            let bits = parts.last().and_then(|of| of[1..].parse::<u32>().ok()).unwrap_or_default();
            let count = if has("v8") {
                8
            } else if has("v4") {
                4
            } else if has("v2") {
                2
            } else {
                1
            };
            let elsewhere = ["shared", "param", "local", "const"].iter().any(|space| word.contains(space));
            bits * count >= 128 && !elsewhere
        };
        match self {
            Self::Load16 => begins(&["ld"]) && wide(),
            Self::Store16 => begins(&["st"]) && wide(),
            Self::Copy16 => begins(&["cp", "async"]) && (has("bulk") || line.contains("], 16")),
            Self::LoadMatrix => begins(&["ldmatrix"]),
            Self::Mma => {
                begins(&["mma", "sync"]) || begins(&["wgmma", "mma_async"]) || begins(&["tcgen05", "mma"])
            }
        }
    }

    /// Those of the kernel's PTX.
    fn of(kernel: &str, ptx: &str) -> Vec<Self> {
        let body = ptx
            .split(".entry ")
            .find(|part| part.split('(').next().is_some_and(|name| name.trim() == kernel));
        let body = body.unwrap_or_else(|| panic!("{kernel}: its PTX has no such entry"));
        Self::ALL.into_iter().filter(|i| body.lines().any(|line| i.is(line))).collect()
    }
}

/// A kernel in one type.
pub(super) struct Row {
    pub(super) kernel: String,
    pub(super) precision: &'static str,
    /// A block's threads and dynamic shared memory; nothing where no launcher was seen to ask for it.
    asked: Option<(u32, u32)>,
    /// In the order of `ARCHITECTURES`.
    pub(super) reports: Vec<KernelReport>,
    instructions: Vec<Vec<Instruction>>,
}

impl Row {
    pub(super) fn on_each_architecture(
        &self,
        what: Instruction,
    ) -> impl Iterator<Item = (&'static str, bool)> {
        ARCHITECTURES.into_iter().zip(self.instructions.iter().map(move |has| has.contains(&what)))
    }

    pub(super) fn is_launched(&self) -> bool {
        self.asked.is_some()
    }

    fn words(instructions: &[Instruction]) -> String {
        instructions.iter().map(|i| i.name()).collect::<Vec<_>>().join(" ")
    }

    /// Once if they are the same everywhere.
    fn all_words(&self) -> String {
        if self.instructions.iter().all(|i| *i == self.instructions[0]) {
            return Self::words(&self.instructions[0]);
        }
        let each = ARCHITECTURES.iter().zip(&self.instructions);
        each.map(|(architecture, i)| format!("{architecture}: {}", Self::words(i)))
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn cell(&self, architecture: &str, report: &KernelReport) -> String {
        let local = report.spill_bytes + report.stack_bytes;
        let local = if local > 0 { format!(" ({local} B of local memory)") } else { String::new() };
        let Some((threads, dynamic)) = self.asked else { return format!("{}{local}", report.registers) };
        let shared_bytes = report.static_shared_bytes + dynamic;
        let (blocks, warps) =
            resident(architecture, Block { threads, registers: report.registers, shared_bytes });
        format!("{} · {blocks} · {warps}/{}{local}", report.registers, most_warps(architecture))
    }

    fn line(&self) -> String {
        let (threads, shared) =
            self.asked.map_or(("?".to_owned(), "?".to_owned()), |(t, s)| (t.to_string(), s.to_string()));
        let fixed = self.reports[0].static_shared_bytes;
        let shared = if fixed > 0 { format!("{shared} + {fixed}") } else { shared };
        let cells: Vec<String> =
            ARCHITECTURES.iter().zip(&self.reports).map(|(a, r)| self.cell(a, r)).collect();
        let (kernel, precision) = (&self.kernel, self.precision);
        format!(
            "| `{kernel}` | {precision} | {threads} | {shared} | {} | {} |",
            self.all_words(),
            cells.join(" | ")
        )
    }
}

/// Every kernel in both types, compiled once for all tests.
pub(super) fn rows() -> &'static [Row] {
    static ROWS: OnceLock<Vec<Row>> = OnceLock::new();
    ROWS.get_or_init(|| {
        let asked = asked();
        let units: Vec<_> = SOURCES
            .iter()
            .flat_map(|&(file, _)| [(file, Precision::Bf16), (file, Precision::Fp32)])
            .collect();
        let mut rows: Vec<Row> =
            units.par_iter().flat_map(|&(file, precision)| of_file(file, precision, &asked)).collect();
        let place = |row: &Row| (row.reports[0].file.clone(), row.kernel.clone(), row.precision);
        rows.sort_by_key(place);
        rows
    })
}

fn of_file(file: &'static str, precision: Precision, asked: &Asked) -> Vec<Row> {
    let compiled: Vec<_> = ARCHITECTURES.par_iter().map(|a| compile(file, a, precision).unwrap()).collect();
    let mut kernels: BTreeMap<String, (Vec<KernelReport>, Vec<Vec<Instruction>>)> = BTreeMap::new();
    for (architecture, compiled) in ARCHITECTURES.iter().zip(compiled) {
        assert!(compiled.image.starts_with(b"\x7fELF"), "{file} for {architecture}: no machine code");
        assert!(!compiled.kernels.is_empty(), "{file} for {architecture}: the assembler reports no kernel");
        for report in compiled.kernels {
            let (reports, instructions) = kernels.entry(report.name.clone()).or_default();
            instructions.push(Instruction::of(&report.name, &compiled.ptx));
            reports.push(report);
        }
    }
    let precision = precision.kernels();
    let row = |(kernel, (reports, instructions)): (String, (Vec<KernelReport>, Vec<_>))| {
        assert_eq!(reports.len(), ARCHITECTURES.len(), "{kernel} is not there on every architecture");
        let asked = asked.iter().find(|((k, p), _)| *k == kernel && *p == precision).map(|(_, asked)| *asked);
        Row { kernel, precision, asked, reports, instructions }
    };
    kernels.into_iter().map(row).collect()
}

/// The whole file.
pub(super) fn render(rows: &[Row], version: (i32, i32)) -> String {
    let architectures = ARCHITECTURES.join(" | ");
    let rule = "|---".repeat(5 + ARCHITECTURES.len());
    let lines: Vec<String> = rows.iter().map(Row::line).collect();
    format!(
        "# What each kernel takes\n\n\
         Compiled by NVRTC {}.{}; nothing here ran on a GPU. Made by `ELEKTRON_UPDATE_TABLE=1 cargo test --test suite -- nvrtc::`, compared \
         by the tests.\n\n\
         *threads*, *shared*: of a block; the bytes of shared memory are the most that the launcher asks for (widths up to 1,024, rows up to 512).\n\
         *instructions*: 16-byte loads (`ld16`), stores (`st16`) and asynchronous copies (`cp16`) of global memory, `ldmatrix`, and tensor cores (`mma`).\n\
         An architecture's column: registers a thread · blocks a multiprocessor holds at once · the warps they are, of the most it can hold.\n\
         Spills and stack would stand in brackets: there are none.\n\n\
         | kernel | type | threads | shared | instructions | {architectures} |\n{rule}|\n{}\n",
        version.0,
        version.1,
        lines.join("\n")
    )
}

/// The table's lines by kernel and type.
fn by_kernel(text: &str) -> BTreeMap<String, &str> {
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| (line.split('|').take(3).collect::<Vec<_>>().join("|"), line)).collect()
}

/// Where two tables differ; `registers`: in all columns, not only in those that the compiler's version does not change.
pub(super) fn differences(old: &str, new: &str, registers: bool) -> Vec<String> {
    let (old, new) = (by_kernel(old), by_kernel(new));
    let told = |line: &str| {
        if registers { line.to_owned() } else { line.split('|').take(6).collect::<Vec<_>>().join("|") }
    };
    let gone = old
        .iter()
        .filter(|(kernel, _)| !new.contains_key(*kernel))
        .map(|(_, line)| format!("gone    {line}"));
    let changed = new.iter().filter_map(|(kernel, line)| match old.get(kernel) {
        None => Some(format!("new     {line}")),
        Some(before) if told(before) != told(line) => Some(format!("was     {before}\n  is      {line}")),
        Some(_) => None,
    });
    gone.chain(changed).collect()
}

#[test]
fn instructions_are_recognised() {
    let is = |line: &str| Instruction::ALL.into_iter().filter(|i| i.is(line)).collect::<Vec<_>>();
    assert_eq!(is("\tld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];"), [Instruction::Load16]);
    assert_eq!(is("\t@%p1 ld.global.nc.v2.u64 {%rd1, %rd2}, [%rd3];"), [Instruction::Load16]);
    assert_eq!(is("\tst.global.v4.f32 [%rd1], {%f1, %f2, %f3, %f4};"), [Instruction::Store16]);
    assert_eq!(is("\tcp.async.cg.shared.global [%r1], [%rd1], 16, %r2;"), [Instruction::Copy16]);
    assert_eq!(is("\tmma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}"), [Instruction::Mma]);
    assert_eq!(is("\tldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1}, [%r2];"), [Instruction::LoadMatrix]);
    for narrow in [
        "ld.shared.v4.f32 {",
        "ld.param.b64 %rd1",
        "ld.global.v2.b32 {",
        "cp.async.commit_group;",
        "add.s32 %r1",
    ] {
        assert_eq!(is(narrow), [], "{narrow}");
    }
}

#[test]
fn differences_of_tables_are_told() {
    let line = |kernel: &str, instructions: &str, registers: u32| {
        format!("| `{kernel}` | bf16 | 128 | 0 | {instructions} | {registers} |")
    };
    let table = |lines: &[String]| format!("# Title\n\n| kernel | type |\n|---|\n{}\n", lines.join("\n"));
    let old = table(&[line("a", "ld16", 20), line("b", "", 20), line("c", "mma", 20)]);
    let new = table(&[line("a", "ld16", 21), line("c", "", 20), line("d", "mma", 20)]);
    assert!(differences(&old, &old, true).is_empty());
    let told = differences(&old, &new, true).join("\n");
    for words in
        ["gone    | `b`", "new     | `d`", "was     | `a` | bf16 | 128 | 0 | ld16 | 20 |", "is      | `c`"]
    {
        assert!(told.contains(words), "{told}");
    }
    let without_registers = differences(&old, &new, false).join("\n");
    assert!(!without_registers.contains("`a`") && without_registers.contains("`c`"), "{without_registers}");
}
