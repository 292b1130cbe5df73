//! What a run takes before it begins: `--dry-run`, and whether it fits into memory.

use serde_json::json;

use super::super::device::{OnBackend, Place};
use super::super::{check_positions, print};
use super::models::Networks;
use super::options;
use crate::backend::Backend;
use crate::backend::gpu::Products;
use crate::config::RunConfig;
use crate::model::{BatchLimits, MemoryPlan, ParamTable, memory_plan, step_tally};
use crate::train::baseline::Baseline;
use crate::{Error, Result};

/// What a run of these settings holds.
pub(super) fn plan<B: Backend>(backend: &B, config: &RunConfig, networks: &Networks) -> Result<MemoryPlan> {
    let rows = config.rows_at_once();
    let limits = BatchLimits {
        tokens: rows * config.seq_len,
        // Padding that evens batches out lies in sequences of its own.
        sequences: if B::RECORDS { 2 * rows } else { rows },
        masked: config.mask_style.most(config.mask_prob, config.seq_len, rows),
    };
    memory_plan(backend, &networks.masked_lm.config, networks.sizes_of_discriminator(), config.share, limits)
}

/// An error before anything is allocated if the GPU's free memory does not hold the plan.
pub(super) fn check_memory<B: Backend>(
    backend: &B,
    config: &RunConfig,
    networks: &Networks,
    place: &Place,
) -> Result<()> {
    let Some(free) = place.free_bytes else { return Ok(()) };
    let plan = plan(backend, config, networks)?;
    if plan.total_bytes() <= free {
        return Ok(());
    }
    let families: Vec<String> =
        plan.families().iter().map(|(name, bytes)| format!("{name} {} MiB", bytes >> 20)).collect();
    let growing = plan.bytes_per_token() * config.seq_len as u64;
    let fixed = plan.total_bytes() - growing * config.rows_at_once() as u64;
    let largest = free.saturating_sub(fixed) / growing.max(1);
    let advice = match largest {
        0 => "not even one row fits: use a smaller model or --precision bf16".to_owned(),
        rows => format!("the largest --batch-size that fits is {rows}; --grad-accumulation makes up for it"),
    };
    Err(Error::device(format!(
        "this run needs {} MiB of GPU memory ({}), {} MiB are free; {advice}",
        plan.total_bytes() >> 20,
        families.join(", "),
        free >> 20
    )))
}

/// `--dry-run`: settings, sizes, kernels and memory, without a step.
pub(super) struct DryRun<'a> {
    pub(super) config: &'a RunConfig,
    pub(super) networks: Networks,
    /// What losses will be compared with, if the text is tokenized already.
    pub(super) baseline: Option<Baseline>,
    pub(super) machine: bool,
    /// Who multiplies on a GPU.
    pub(super) products: Products,
}

impl OnBackend for DryRun<'_> {
    type Output = ();
    fn run<B: Backend>(self, backend: B, place: &Place) -> Result<()> {
        dry_run(&backend, &self, place)
    }
}

fn dry_run<B: Backend>(
    backend: &B,
    &DryRun { config, ref networks, baseline, machine, products }: &DryRun<'_>,
    place: &Place,
) -> Result<()> {
    for (what, network) in networks.named() {
        check_positions(config.seq_len, &network.config, what)?;
    }
    let Networks { masked_lm, discriminator } = networks;
    let table = ParamTable::new(&masked_lm.config, networks.sizes_of_discriminator(), config.share)?;
    let plan = plan(backend, config, networks)?;
    let limits = plan.limits;
    let tally = step_tally(masked_lm.clone(), discriminator.clone(), options(config), limits, products)?;
    let gpu = tally.total();
    let kb_per_token = |bytes: u64| bytes as f64 / 1e3 / limits.tokens as f64;
    let settings = config.shown()?;
    if machine {
        let families: serde_json::Map<_, _> =
            plan.families().into_iter().map(|(name, bytes)| (name.to_owned(), json!(bytes))).collect();
        let mut object = json!({
            "config": settings,
            "device": place.name,
            "parameters": table.parameter_count(),
            "baseline": baseline,
            "memory_bytes": plan.total_bytes(),
            "memory_families": families,
            "bytes_per_token": plan.bytes_per_token(),
            "kernels_per_step": gpu.kernels,
            "kb_per_token": kb_per_token(gpu.bytes),
            "kernels": tally.0.iter().map(|(name, one)| json!({
                "name": name, "launches": one.kernels, "kb_per_token": kb_per_token(one.bytes),
            })).collect::<Vec<_>>(),
        });
        for (what, network) in networks.named() {
            object[what] = network.config.to_json(network.architecture);
        }
        return print(&format!("{object:#}"));
    }
    let mut text = String::from("settings\n");
    for (name, value) in &settings {
        text += &format!("  {name:<20} {value}\n");
    }
    text += &format!("on {}\n", place.name);
    if let Some(baseline) = baseline {
        text += &format!("{}\n", baseline.describe());
    }
    text += &format!("parameters             {:>9.2} M, each once\n", table.parameter_count() as f64 / 1e6);
    text += &format!(
        "a step on a GPU        {} kernels, {:.0} kB of device memory traffic a token\n",
        gpu.kernels,
        kb_per_token(gpu.bytes)
    );
    let mut kernels: Vec<_> = tally.0.iter().collect();
    kernels.sort_by_key(|(_, one)| std::cmp::Reverse(one.bytes));
    for (name, one) in kernels {
        text += &format!("  {name:<28} {:>4} {:>9.1} kB a token\n", one.kernels, kb_per_token(one.bytes));
    }
    print(&(text + &describe(&plan)))
}

fn describe(plan: &MemoryPlan) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut text = String::from("memory\n");
    for entry in &plan.entries {
        text += &format!("  {:<14} {:<24} {:>9.1} MiB\n", entry.family, entry.name, mib(entry.bytes));
    }
    text + &format!(
        "  total {:.1} MiB for batches of {} tokens; {} bytes a token besides the parameters",
        mib(plan.total_bytes()),
        plan.limits.tokens,
        plan.bytes_per_token()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Cpu;
    use crate::cli::pretrain::models::Starts;
    use crate::config::Settings;
    use crate::model::config::Preset;

    #[test]
    fn a_plan_that_does_not_fit_names_the_largest_batch() {
        let settings = Settings {
            train: Some(vec!["text".to_owned()]),
            output: Some("out".into()),
            preset: Some(Preset::Tiny),
            batch_size: Some(64),
            ..Settings::default()
        };
        let config = RunConfig::resolve(settings).unwrap();
        let networks = Starts::read(&config, true).unwrap().networks(&config, None, true).unwrap();
        let backend = Cpu::<f32>::new();
        let place = |free_bytes| Place { name: String::new(), free_bytes: Some(free_bytes) };
        let check = |config: &RunConfig, free| check_memory(&backend, config, &networks, &place(free));
        let whole = plan(&backend, &config, &networks).unwrap().total_bytes();
        assert!(check(&config, whole).is_ok());
        let error = check(&config, whole - 1).unwrap_err().to_string();
        assert!(error.contains("parameters") && error.contains("MiB are free"), "{error}");
        let largest: usize =
            error.split("that fits is ").nth(1).unwrap().split(';').next().unwrap().parse().unwrap();
        assert!((32..64).contains(&largest), "{error}");
        assert!(check(&RunConfig { batch_size: largest, ..config.clone() }, whole - 1).is_ok());
        assert!(check(&config, 1 << 20).unwrap_err().to_string().contains("not even one row"));
    }
}
