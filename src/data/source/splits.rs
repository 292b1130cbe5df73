//! Which files of a folder belong to which split, by the rules of `datasets`
//! (`datasets/data_files.py`).
//!
//! The first of these rules that finds anything decides for the whole folder:
//!
//! 1. `data/SPLIT-00000-of-00001.parquet`: shards as `push_to_hub` writes them.
//! 2. A folder named after a split, such as `train/` or `my-test/`.
//! 3. A file named after a split, such as `train.csv` or `corpus_dev_2.jsonl`.
//!
//! Files that the deciding rule does not name belong to no split.

use std::path::{Component, Path};

/// The splits and the words that name them, as whole words between [`SEPARATORS`].
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

const SEPARATORS: &[u8] = b"-._ 0123456789";

/// Names of splits and the indices of their files, in order.
pub(super) type Splits = Vec<(String, Vec<usize>)>;

/// The splits of `files`, whose paths are relative to their folder; none if nothing is named after
/// a split.
pub(super) fn of_files(files: &[&Path]) -> Splits {
    let sharded = sharded(files);
    if !sharded.is_empty() {
        return sharded;
    }
    let folders = by_keywords(files, |path, word| {
        let folders = path.parent().into_iter().flat_map(Path::components);
        folders.filter_map(normal).any(|name| has_word(name, word, true))
    });
    if !folders.is_empty() {
        return folders;
    }
    by_keywords(files, |path, word| {
        path.components().next_back().and_then(normal).is_some_and(|name| has_word(name, word, false))
    })
}

fn normal(component: Component<'_>) -> Option<&[u8]> {
    match component {
        Component::Normal(name) => Some(name.as_encoded_bytes()),
        _ => None,
    }
}

fn sharded(files: &[&Path]) -> Splits {
    let mut splits = Splits::new();
    for (index, path) in files.iter().enumerate() {
        let names: Vec<&[u8]> = path.components().filter_map(normal).collect();
        let [b"data", name] = names[..] else { continue };
        let Some(split) = shard_of(name) else { continue };
        match splits.iter_mut().find(|(name, _)| *name == split) {
            Some((_, files)) => files.push(index),
            None => splits.push((split, vec![index])),
        }
    }
    splits
}

/// The split in `SPLIT-00000-of-00001….ENDING`.
fn shard_of(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    // `datasets` takes the last place that fits.
    for (at, _) in name.rmatch_indices('-') {
        let rest = name.get(at + 1..)?;
        let (Some(number), Some("-of-"), Some(count), Some(rest)) =
            (rest.get(..5), rest.get(5..9), rest.get(9..14), rest.get(14..))
        else {
            continue;
        };
        if digits(number) && digits(count) && rest.contains('.') && at > 0 {
            return Some(name[..at].to_owned());
        }
    }
    None
}

fn by_keywords(files: &[&Path], matches: impl Fn(&Path, &str) -> bool) -> Splits {
    let of = |words: &[&str]| -> Vec<usize> {
        let fits = |path: &&Path| words.iter().any(|word| matches(path, word));
        files.iter().enumerate().filter(|(_, path)| fits(path)).map(|(index, _)| index).collect()
    };
    let all = KEYWORDS.iter().map(|(split, words)| ((*split).to_owned(), of(words)));
    all.filter(|(_, files)| !files.is_empty()).collect()
}

/// Whether a name has a word between separators, its beginning and, if it may, its end.
fn has_word(name: &[u8], word: &str, may_end: bool) -> bool {
    let word = word.as_bytes();
    name.windows(word.len()).enumerate().any(|(at, part)| {
        let before = at == 0 || SEPARATORS.contains(&name[at - 1]);
        let after = name.get(at + word.len()).map_or(may_end, |next| SEPARATORS.contains(next));
        part == word && before && after
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splits(files: &[&str]) -> Vec<(String, Vec<usize>)> {
        of_files(&files.iter().map(Path::new).collect::<Vec<_>>())
    }

    fn want(of: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
        of.iter().map(|(name, files)| ((*name).to_owned(), files.to_vec())).collect()
    }

    /// Expected values are what `datasets.data_files.get_data_patterns` and `resolve_pattern` (5.0)
    /// give.
    #[test]
    fn splits_are_those_of_datasets() {
        let shards = ["data/random-00001-of-00003.csv", "data/train-00000-of-00001-a1.parquet", "train.csv"];
        assert_eq!(splits(&shards), want(&[("random", &[0]), ("train", &[1])]));
        assert_eq!(splits(&["a/train.csv", "b-test.csv", "c.csv"]), want(&[("train", &[0]), ("test", &[1])]));
        let folders = ["train/a.csv", "my-dev_1/b.csv", "train.csv", "x/test/y/c.csv"];
        assert_eq!(splits(&folders), want(&[("train", &[0]), ("validation", &[1]), ("test", &[3])]));
        let names = ["training_1.txt", "x.val.txt", "train2.txt", "trains.txt", "atrain.txt", "eval 3.txt"];
        let found = want(&[("train", &[0, 2]), ("validation", &[1]), ("test", &[5])]);
        assert_eq!(splits(&names), found);
        assert_eq!(splits(&["train_test.txt"]), want(&[("train", &[0]), ("test", &[0])]));
        let none = ["Train.csv", "contest.txt", "sub/data/train_set/../a.txt", "data/train-0-of-1.csv.txt"];
        assert_eq!(splits(&none[..2]), want(&[]));
        assert_eq!(splits(&["data/train-0000-of-0001.csv"]), want(&[("train", &[0])]), "by its name");
        assert_eq!(splits(&["x/data/dev-00000-of-00001.csv"]), want(&[("validation", &[0])]));
    }
}
