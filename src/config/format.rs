//! The error for a file of settings that is not TOML.

/// Names the format that the file seems to have, or the place of the error, and shows what is
/// expected.
pub(super) fn not_toml(text: &str, error: &toml::de::Error) -> String {
    const EXAMPLE: &str = "a line reads `learning-rate = 3e-4`, a list `train = [\"a.txt\", \"b.txt\"]`";
    match other_format(text) {
        Some(other) => format!("this looks like {other}; settings are read as TOML: {EXAMPLE}"),
        None => format!("this is not TOML, in which {EXAMPLE}: {error}"),
    }
}

fn other_format(text: &str) -> Option<&'static str> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let first = lines.clone().next()?;
    if first.starts_with('{') || serde_json::from_str::<serde_json::Value>(text).is_ok() {
        return Some("JSON");
    }
    let is_yaml = |line: &str| {
        let key = line.split_once(':').filter(|(_, rest)| rest.is_empty() || rest.starts_with([' ', '\t']));
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '"' | '\'');
        key.is_some_and(|(key, _)| !key.is_empty() && key.chars().all(is_name))
    };
    (first.starts_with("---") || first.starts_with("%YAML") || lines.any(is_yaml)).then_some("YAML")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_recognised() {
        for (text, format) in [
            ("train: [a.txt]\n", Some("YAML")),
            ("# settings\n\nbatch_size: 8\n", Some("YAML")),
            ("---\ntrain:\n  - a.txt\n", Some("YAML")),
            ("{\"train\": [\"a.txt\"]}", Some("JSON")),
            ("{ broken", Some("JSON")),
            ("[\"a.txt\"]", Some("JSON")),
            ("train = [\"C: drive\"\nsteps 3\n", None),
            ("output = http://a\n", None),
            ("", None),
        ] {
            assert_eq!(other_format(text), format, "{text}");
        }
    }
}
