//! What was probably meant by a mistyped word.

use serde_json::Value;

/// The known word most like `typed`, if one is near.
pub fn closest<'a>(typed: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|word| (strsim::damerau_levenshtein(typed, word), word));
    scored.min().filter(|&(distance, word)| distance <= 3 && distance < word.len()).map(|(_, word)| word)
}

/// `; did you mean …?` for a value that a flag cannot have, where one of its possible values is near.
pub fn possible_value(command: &clap::Command, key: &str, value: &Value) -> String {
    let possible =
        command.get_arguments().find(|a| a.get_long() == Some(key)).map(|a| a.get_possible_values());
    let names: Vec<String> = possible.unwrap_or_default().iter().map(|v| v.get_name().to_owned()).collect();
    let all = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let wrong = all.iter().filter_map(Value::as_str).find(|typed| !names.iter().any(|name| name == typed));
    let near = wrong.and_then(|typed| closest(typed, names.iter().map(String::as_str)));
    near.map_or(String::new(), |near| format!("; did you mean `{near}`?"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = || ["batch_size", "steps", "seed"].into_iter();
        assert_eq!(super::closest("batchsize", known()), Some("batch_size"));
        assert_eq!(super::closest("setps", known()), Some("steps"));
        assert_eq!(super::closest("temperature", known()), None);
        assert_eq!(super::closest("x", known()), None);
    }
}
