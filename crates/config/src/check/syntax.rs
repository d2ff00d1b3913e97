//! The parser's errors in words that help.

use crate::error::{Collector, nearest};

/// Adds one problem that explains `error`.
pub(super) fn explain(text: &str, error: &toml::de::Error, problems: &mut Collector<'_>) {
    let message = error.message();
    let mut words = message.split('`').skip(1).step_by(2);
    let word = words.next().unwrap_or_default();
    let expected: Vec<&str> = words.collect();
    let (what, fix) =
        if message.starts_with("unknown field") || message.starts_with("unknown variant") {
            let kind = if message.starts_with("unknown field") {
                "key"
            } else {
                "value"
            };
            let fix = match nearest(word, expected.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", expected.join(", ")),
            };
            (format!("unknown {kind} `{word}`"), fix)
        } else if message.starts_with("missing field") {
            (format!("`{word}` is missing"), missing(word))
        } else if message.starts_with("duplicate key") {
            (message.to_owned(), "keep one of the two".to_owned())
        } else if message.starts_with("invalid type") || message.starts_with("invalid value") {
            (
                message.to_owned(),
                "write a value of the kind that is expected".to_owned(),
            )
        } else {
            (
                message.replace('\n', ", "),
                "correct the TOML here".to_owned(),
            )
        };
    match error.span() {
        // A missing key of the file itself has no place.
        Some(span)
            if !(message.starts_with("missing field")
                && span.start == 0
                && span.end >= text.len()) =>
        {
            problems.at(span, what, fix);
        }
        _ => problems.whole(what, fix),
    }
}

/// How to write a key that is missing.
fn missing(key: &str) -> String {
    match key {
        "cluster" => "add a [cluster] table with name and secret_file".into(),
        "id" => "add id = 1 (each node its own number from 1 to 7)".into(),
        "address" => "add address = \"10.0.0.1\"".into(),
        "nodes" => "add nodes = [\"a\", \"b\"], the data nodes that hold copies".into(),
        "size" => "add size = \"1GiB\"".into(),
        "backing" => {
            "add backing = \"/var/lib/holdfast/data.img\", or a table of paths by node name".into()
        }
        "command" => "add command = [\"/usr/bin/program\", \"argument\"]".into(),
        key => format!("add {key} = \"...\""),
    }
}
