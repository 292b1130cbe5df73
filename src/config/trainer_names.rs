//! What to use for settings of `transformers`' `TrainingArguments` and of txtai's `HFTrainer` that
//! have no setting of the same name here.

const NONE: &str = "it is not available";
const NOTHING_TO_SET: &str =
    "there is nothing to set: rows are packed without padding and loaded while the device computes";
const ADVICE: &[(&[&str], &str)] = &[
    (&["adam_beta1", "adam_beta2"], "use --betas, two numbers such as 0.9,0.999"),
    (&["bf16", "bf16_full_eval"], "use --precision bf16"),
    (&["tf32"], "use --precision tf32"),
    (
        &["fp16", "fp16_full_eval", "fp16_opt_level", "fp16_backend", "half_precision_backend"],
        "fp16 is not available; use --precision bf16",
    ),
    (&["use_cpu", "no_cuda"], "use --device cpu"),
    (&["report_to"], "use --log-to jsonl,tensorboard"),
    (&["resume_from_checkpoint", "checkpoint"], "use the flag --resume DIR"),
    (&["overwrite_output_dir"], "a run is never overwritten; use another --output, or the flag --resume"),
    (&["eval_strategy", "evaluation_strategy"], "use --eval-every N, a number of steps"),
    (&["save_strategy"], "use --save-every N, a number of steps"),
    (&["logging_strategy"], "use --log-every N, a number of steps"),
    (&["auto_find_batch_size"], "use --micro-batch auto"),
    (
        &["per_device_eval_batch_size"],
        "evaluation uses --batch-size; `elektron eval` has a --batch-size of its own",
    ),
    (
        &["optim", "optim_args", "adafactor"],
        "the optimizer is AdamW; --bias-correction false makes it the Adam of the ELECTRA paper",
    ),
    (&["disable_tqdm", "log_level"], "use the flag --quiet"),
    (&["data_seed", "full_determinism"], "use --seed; a run is always deterministic"),
    (&["mlm_probability"], "use --mask-prob"),
    (&["tokenizers", "tokenizebatch"], "all cores are used, or as many as --threads says"),
    (&["metrics"], "all metrics are always logged"),
    (&["task"], "use --objective electra for token-detection, or mlm for language-modeling"),
    (
        &[
            "dataloader_drop_last",
            "dataloader_num_workers",
            "dataloader_persistent_workers",
            "dataloader_pin_memory",
            "dataloader_prefetch_factor",
            "group_by_length",
            "remove_unused_columns",
            "torch_compile",
            "train_sampling_strategy",
            "use_liger_kernel",
        ],
        NOTHING_TO_SET,
    ),
    (
        &[
            "ddp_backend",
            "ddp_bucket_cap_mb",
            "ddp_find_unused_parameters",
            "ddp_timeout",
            "deepspeed",
            "distillation",
            "fsdp",
            "fsdp_config",
            "gradient_checkpointing",
            "label_smoothing_factor",
            "load_best_model_at_end",
            "lora",
            "neftune_noise_alpha",
            "prefix",
            "push_to_hub",
            "quantize",
            "stride",
            "teacher",
        ],
        NONE,
    ),
];

/// What to do instead of giving the setting `name`, written with `-` or `_`, if it is one of these.
pub(crate) fn advice(name: &str) -> Option<&'static str> {
    let name = name.replace('-', "_");
    ADVICE.iter().find(|(names, _)| names.contains(&name.as_str())).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use clap::Args;

    use super::*;
    use crate::config::{Settings, flag_of};

    #[test]
    fn names_are_those_of_no_setting_and_their_flags_exist() {
        let flags = Settings::augment_args(clap::Command::new(""));
        let of_run = ["quiet", "resume"];
        for (names, advice) in ADVICE {
            for name in *names {
                assert_eq!(flag_of(&flags, name), None, "{name}");
            }
            for flag in advice.split(' ').filter_map(|word| word.strip_prefix("--")) {
                let flag = flag.trim_end_matches([',', ';']);
                let is_known =
                    of_run.contains(&flag) || flags.get_arguments().any(|a| a.get_long() == Some(flag));
                assert!(is_known, "--{flag}");
            }
        }
        assert_eq!(advice("report-to"), Some("use --log-to jsonl,tensorboard"));
        assert_eq!(advice("batch_size"), None);
    }
}
