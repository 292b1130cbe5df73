//! `elektron forward`: one batch through a pair, for whoever checks a port or a model.

use std::path::{Path, PathBuf};

use clap::Args;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::device::{Choice, OnBackend, Place, with_backend};
use super::{load_pair, set_threads};
use crate::backend::Backend;
use crate::config::{Device, Precision};
use crate::fsutil::{check_apart, check_output, write_atomic};
use crate::model::hf::map_file;
use crate::model::{Flavour, Options, Output, PaddedInput, Share, TokenDetection};
use crate::{Error, Result};

#[derive(Args)]
#[command(
    after_help = "The batch holds input_ids and labels (B, T, I64; labels are -100 where nothing is masked), and \
optionally attention_mask, token_type_ids (B, T) and sampled_ids (M).
Dropout is off.
Examples:
  elektron forward --generator g --discriminator d --batch in.safetensors --output out.safetensors --gradients"
)]
pub(super) struct Arguments {
    /// Directory of an ElectraForMaskedLM, or its name on the Hugging Face hub
    #[arg(long, value_name = "DIR|NAME", help_heading = "Models")]
    generator: PathBuf,
    /// Directory or name of an ElectraForPreTraining or ElectraForTokenClassification
    #[arg(long, value_name = "DIR|NAME", help_heading = "Models")]
    discriminator: PathBuf,
    /// Safetensors file to read
    #[arg(long, value_name = "FILE", help_heading = "Files")]
    batch: PathBuf,
    /// Safetensors file to write
    #[arg(long, value_name = "FILE", help_heading = "Files")]
    output: PathBuf,
    /// Whose details to follow
    #[arg(long, value_enum, default_value = "electra", help_heading = "Objective")]
    flavour: Flavour,
    /// What the two share [default: all in the electra flavour, word in txtai's]
    #[arg(long, value_enum, help_heading = "Models")]
    share: Option<Share>,
    /// Weight of the discriminator's loss
    #[arg(long, default_value_t = 50.0, value_name = "X", help_heading = "Objective")]
    weight: f64,
    /// Weight of the generator's loss
    #[arg(long, default_value_t = 1.0, value_name = "X", help_heading = "Objective")]
    gen_weight: f64,
    /// Divides the generator's logits before sampling
    #[arg(long, default_value_t = 1.0, value_name = "X", help_heading = "Objective")]
    temperature: f64,
    /// Never sample the original token
    #[arg(long, help_heading = "Objective")]
    disallow_correct: bool,
    /// Also write the gradient of every parameter
    #[arg(long, help_heading = "Files")]
    gradients: bool,
    /// Of the samples, where the batch has none
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Objective")]
    seed: u64,
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto", help_heading = "Run")]
    device: Device,
    /// In which precision
    #[arg(long, value_enum, default_value = "fp32", help_heading = "Run")]
    precision: Precision,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", help_heading = "Run")]
    threads: Option<usize>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    set_threads(arguments.threads)?;
    check_output(&arguments.output)?;
    let weights = [&arguments.generator, &arguments.discriminator].map(|dir| dir.join("model.safetensors"));
    check_apart(&arguments.output, weights.iter().chain([&arguments.batch]).map(PathBuf::as_path))?;
    let input = read_batch(&arguments.batch)?;
    let choice = Choice::new(arguments.device, Some(arguments.precision));
    with_backend(choice, Forward { arguments, input: &input })
}

struct Forward<'a> {
    arguments: &'a Arguments,
    input: &'a PaddedInput,
}

impl OnBackend for Forward<'_> {
    type Output = ();
    fn run<B: Backend>(self, backend: B, _: &Place) -> Result<()> {
        run_on(backend, self.arguments, self.input)
    }
}

fn run_on<B: Backend>(backend: B, a: &Arguments, input: &PaddedInput) -> Result<()> {
    let default_share = if a.flavour == Flavour::Txtai { Share::Word } else { Share::All };
    let options = Options {
        flavour: a.flavour,
        share: a.share.unwrap_or(default_share),
        gen_weight: a.gen_weight,
        disc_weight: a.weight,
        temperature: a.temperature,
        disallow_correct: a.disallow_correct,
        seed: a.seed,
        ..Options::default()
    };
    let (generator, discriminator) = load_pair(&a.generator, &a.discriminator)?;
    let mut model = TokenDetection::with_options(backend, generator, discriminator, options)?;
    let output = model.forward(input).map_err(|e| Error::file(&a.batch, e.to_string()))?;
    let mut tensors = named(&output, input);
    if a.gradients {
        model.backward()?;
        for (name, gradient) in model.named_gradients()? {
            tensors.push((format!("grad.{name}"), Plain::float(gradient.shape, gradient.data)));
        }
    }
    write_atomic(&a.output, |out| {
        let views: Result<Vec<_>, _> = tensors
            .iter()
            .map(|(name, t)| {
                TensorView::new(t.dtype, t.shape.clone(), &t.bytes).map(|view| (name.as_str(), view))
            })
            .collect();
        let bytes = safetensors::serialize(views.map_err(std::io::Error::other)?, None);
        out.write_all(&bytes.map_err(std::io::Error::other)?)
    })
}

/// A tensor ready to be written.
struct Plain {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Plain {
    fn float(shape: Vec<usize>, data: impl IntoIterator<Item = f32>) -> Self {
        Self { dtype: Dtype::F32, shape, bytes: data.into_iter().flat_map(f32::to_le_bytes).collect() }
    }

    fn int(shape: Vec<usize>, data: &[i64]) -> Self {
        Self { dtype: Dtype::I64, shape, bytes: data.iter().flat_map(|x| x.to_le_bytes()).collect() }
    }
}

fn named(output: &Output, input: &PaddedInput) -> Vec<(String, Plain)> {
    let m = output.sampled_ids.len();
    let vocabulary = output.gen_logits.len().checked_div(m).unwrap_or(0);
    let mut rows = vec![input.batch, input.seq_len];
    let flat = rows.clone();
    if output.disc_labels == 2 {
        rows.push(2);
    }
    let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<_>>();
    let scalar = |x: f64| Plain::float(Vec::new(), [x as f32]);
    [
        ("loss", scalar(output.loss)),
        ("gen_loss", scalar(output.gen_loss)),
        ("disc_loss", scalar(output.disc_loss)),
        ("gen_logits", Plain::float(vec![m, vocabulary], narrow(&output.gen_logits))),
        ("disc_logits", Plain::float(rows, narrow(&output.disc_logits))),
        ("sampled_ids", Plain::int(vec![m], &output.sampled_ids)),
        ("is_fake", Plain::int(flat, &output.is_fake)),
    ]
    .into_iter()
    .map(|(name, tensor)| (name.to_owned(), tensor))
    .collect()
}

fn read_batch(path: &Path) -> Result<PaddedInput> {
    let map = map_file(path)?;
    let file = SafeTensors::deserialize(&map)
        .map_err(|e| Error::file(path, format!("this is not a whole safetensors file ({e})")))?;
    let read = |name: &str, shape: Option<&[usize]>| -> Result<Option<(Vec<usize>, Vec<i64>)>> {
        let Ok(view) = file.tensor(name) else { return Ok(None) };
        if view.dtype() != Dtype::I64 {
            return Err(Error::file(path, format!("`{name}` is {:?}, expected I64", view.dtype())));
        }
        if let Some(shape) = shape.filter(|shape| *shape != view.shape()) {
            return Err(Error::file(
                path,
                format!("`{name}` has shape {:?}, expected {shape:?}", view.shape()),
            ));
        }
        let number = |b: &[u8]| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        Ok(Some((view.shape().to_vec(), view.data().chunks_exact(8).map(number).collect())))
    };
    let missing = |name: &str| Error::file(path, format!("tensor `{name}` (B, T) of I64 is missing"));
    let (shape, input_ids) = read("input_ids", None)?.ok_or_else(|| missing("input_ids"))?;
    let [batch, seq_len] = shape[..] else {
        return Err(Error::file(path, format!("`input_ids` has shape {shape:?}, expected (B, T)")));
    };
    let (_, labels) = read("labels", Some(&shape))?.ok_or_else(|| missing("labels"))?;
    let values = |found: Option<(Vec<usize>, Vec<i64>)>| found.map(|(_, values)| values);
    Ok(PaddedInput {
        batch,
        seq_len,
        input_ids,
        labels,
        attention_mask: values(read("attention_mask", Some(&shape))?),
        token_type_ids: values(read("token_type_ids", Some(&shape))?),
        sampled_ids: values(read("sampled_ids", None)?),
    })
}
