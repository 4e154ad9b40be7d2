//! What is wrong with a value, and what to write instead: for who writes TOML or a variable, and knows no types of Rust.

use figment::error::{Actual, Kind};

/// In words, after the setting's name.
pub(super) fn value(kind: &Kind) -> String {
    match kind {
        Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
            format!("{} is not {}", written(found), wanted(expected))
        }
        Kind::UnknownVariant(found, known) => {
            let known: Vec<String> = known.iter().map(|name| format!("\"{name}\"")).collect();
            format!("\"{found}\" is not known; write {}", known.join(" or "))
        }
        other => other.to_string(),
    }
}

fn written(found: &Actual) -> String {
    match found {
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(value) => value.to_string(),
        Actual::Signed(value) => value.to_string(),
        Actual::Float(value) => value.to_string(),
        Actual::Str(value) => format!("\"{value}\""),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a section".to_owned(),
        other => other.to_string(),
    }
}

/// What serde expected. What a type of emostream's own says of itself stays as it is.
fn wanted(expected: &str) -> &str {
    match expected {
        "a sequence" => r#"a list such as ["http://a.example"]"#,
        "usize" | "u16" | "u32" | "u64" => "a whole number from 0",
        "i32" | "i64" => "a whole number",
        "a duration" => r#"a time such as "500ms", "30s", "5m" or "1h""#,
        "a boolean" => "true or false",
        "a string" => "a text in quotes",
        section if section.starts_with("struct ") || section == "a map" => {
            "a section with settings of its own"
        }
        other => other,
    }
}

/// `http://name` or `https://name:port`, as a browser names where a page comes from.
pub(super) fn is_origin(text: &str) -> bool {
    let name = text.split_once("://").filter(|(scheme, _)| !scheme.is_empty()).map(|(_, name)| name);
    name.map(|name| name.trim_end_matches('/')).is_some_and(|name| {
        !name.is_empty()
            && !name.contains(|c: char| matches!(c, '/' | '*' | '?' | '#' | '@') || c.is_whitespace())
    })
}
