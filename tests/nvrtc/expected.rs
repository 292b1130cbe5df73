//! What kernels must be made of, written down apart from the table: how they read rows, and which of them multiply.

use super::table::{Instruction, Row};

/// How a kernel reads what it streams.
#[derive(Clone, Copy, Debug)]
enum Reads {
    /// 16 bytes a load.
    Wide,
    /// 16 bytes an asynchronous copy to shared memory.
    Copies,
    /// Less, for a reason.
    Narrow(&'static str),
}

use Reads::{Copies, Narrow, Wide};

const TOKENS: &str = "4 bytes a token or less, a few kilobytes a step: the launch is the bound";

/// Kernels by name, or all that begin like `name*`; how they read; whether they multiply matrices.
const KERNELS: &[(&str, Reads, bool)] = &[
    ("attention_*", Copies, true),
    ("gemm_*", Copies, true),
    ("weight_grads_*", Copies, true),
    ("bias_bwd", Wide, false),
    ("gelu_*", Wide, false),
    ("relu_*", Wide, false),
    ("add_norm_*", Wide, false),
    ("embed_fwd_*", Wide, false),
    ("embed_bwd_*", Wide, false),
    ("scatter*", Wide, false),
    ("sort_scan", Wide, false),
    ("sort_count", Narrow(TOKENS), false),
    ("sort_place", Narrow(TOKENS), false),
    ("dropout", Wide, false),
    ("gather_rows_*", Wide, false),
    ("cast", Narrow("flat buffers may start and end anywhere: elements one by one"), false),
    ("note", Narrow("its parameters: 64 bytes"), false),
    ("norm_squared", Narrow("a thread every 256th element, in the order that the sum is defined by"), false),
    ("adamw", Wide, false),
    ("mlm_loss", Wide, false),
    ("corrupt", Narrow(TOKENS), false),
    ("rtd_loss", Narrow(TOKENS), false),
    ("metrics", Narrow(TOKENS), false),
    ("mask_*", Narrow(TOKENS), false),
];

fn matches(pattern: &str, kernel: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == kernel, |start| kernel.starts_with(start))
}

/// What is wrong with a kernel, by what is written down above.
pub(super) fn problems(row: &Row) -> Vec<String> {
    let (kernel, bf16) = (row.kernel.as_str(), row.precision == "bf16");
    let found: Vec<_> = KERNELS.iter().filter(|(pattern, ..)| matches(pattern, kernel)).collect();
    let &[&(_, reads, multiplies)] = &found[..] else {
        return vec![format!(
            "`{kernel}` is matched by {} lines of KERNELS in tests/nvrtc/expected.rs, not by one: \
             say there how it reads rows and whether it multiplies matrices",
            found.len()
        )];
    };
    let mut problems = Vec::new();
    let mut demand = |what: Instruction, wanted: bool, why: &str| {
        for (architecture, has) in row.on_each_architecture(what) {
            if has != wanted {
                let verb = if wanted { "lacks" } else { "has" };
                problems.push(format!(
                    "`{kernel}` ({}) {verb} {} on {architecture}: {why}",
                    row.precision,
                    what.name()
                ));
            }
        }
    };
    match reads {
        Wide => demand(Instruction::Load16, true, "it shall read rows 16 bytes at a time"),
        Copies => demand(Instruction::Copy16, true, "it shall copy tiles 16 bytes at a time"),
        Narrow(reason) => {
            let why = format!("take it off the exceptions in tests/nvrtc/expected.rs (\"{reason}\")");
            demand(Instruction::Load16, false, &why);
        }
    }
    let products = "matrices are multiplied by tensor cores in bf16, by fused multiply-adds in fp32, and nothing else is";
    demand(Instruction::Mma, multiplies && bf16, products);
    // Products of warpgroups read tiles by themselves.
    let of_warpgroups = kernel.starts_with("attention_") && kernel.ends_with("_64");
    for (architecture, has) in row.on_each_architecture(Instruction::LoadMatrix) {
        if has != (multiplies && bf16 && !(of_warpgroups && architecture == "sm_90a")) {
            let verb = if has { "has" } else { "lacks" };
            problems.push(format!(
                "`{kernel}` ({}) {verb} ldmatrix on {architecture}: {products}",
                row.precision
            ));
        }
    }
    problems
}

/// Lines of KERNELS that no kernel answers to.
pub(super) fn idle(rows: &[Row]) -> Vec<&'static str> {
    let idle = |pattern: &str| !rows.iter().any(|row| matches(pattern, &row.kernel));
    KERNELS.iter().map(|&(pattern, ..)| pattern).filter(|pattern| idle(pattern)).collect()
}
