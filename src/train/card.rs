//! The README.md beside a saved model.

use super::Summary;
use crate::Result;
use crate::config::RunConfig;
use crate::fsutil::write_atomic;

/// Writes a card into `output/generator` and `output/discriminator`.
pub fn write_cards(config: &RunConfig, summary: &Summary) -> Result<()> {
    for (name, class, task) in [
        ("generator", "ElectraForMaskedLM", "fill-mask"),
        ("discriminator", discriminator_class(config), "token-classification"),
    ] {
        let text = card(config, summary, (name, class, task));
        write_atomic(&config.output.join(name).join("README.md"), |out| out.write_all(text.as_bytes()))?;
    }
    Ok(())
}

fn discriminator_class(config: &RunConfig) -> &'static str {
    match config.head {
        crate::config::Head::Pretraining => "ElectraForPreTraining",
        crate::config::Head::TokenClassification => "ElectraForTokenClassification",
    }
}

fn card(config: &RunConfig, summary: &Summary, (name, class, task): (&str, &str, &str)) -> String {
    let mut metrics = String::new();
    if let Some(m) = &summary.held_out {
        metrics = format!(
            "\n## Held-out metrics\n\n| | |\n|---|---|\n| generator loss | {:.4} |\n| generator accuracy | {:.4} |\n\
             | discriminator loss | {:.4} |\n| discriminator accuracy | {:.4} |\n| discriminator AUC | {:.4} |\n",
            m.gen_loss, m.gen_acc, m.disc_loss, m.disc_acc, m.disc_auc
        );
    }
    let files: Vec<String> = config
        .train
        .iter()
        .map(|path| {
            std::path::Path::new(path).file_name().map_or(path.clone(), |n| n.to_string_lossy().into_owned())
        })
        .collect();
    format!(
        "---\nlibrary_name: transformers\ntags:\n- electra\n- replaced-token-detection\npipeline_tag: {task}\n---\n\n\
         # ELECTRA {name}\n\nPre-trained by replaced token detection with Elektron {version}.\n\n\
         ```python\nfrom transformers import AutoTokenizer, {class}\n\n\
         tokenizer = AutoTokenizer.from_pretrained(\"{name}\")\nmodel = {class}.from_pretrained(\"{name}\")\n```\n\n\
         ## Training\n\n* text: {files}\n* {steps} steps, {tokens} tokens, rows of up to {seq_len}\n\
         * learning rate {lr}, batch {batch}, {mask} of tokens masked, seed {seed}\n{metrics}",
        version = env!("CARGO_PKG_VERSION"),
        files = files.join(", "),
        steps = summary.position.step,
        tokens = summary.position.tokens,
        seq_len = config.seq_len,
        lr = config.learning_rate,
        batch = config.batch_size * config.grad_accumulation,
        mask = config.mask_prob,
        seed = config.seed,
    )
}
