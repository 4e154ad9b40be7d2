//! The `WITH` options of a table: which there are, what they may say, which are still to come.

use datafusion::sql::sqlparser::tokenizer::Span;

use super::diagnostic::Finding;
use super::parse::{CreateTable, OptionDecl};
use crate::reaction::table::{Format, TableKind};

/// The options that have a field of their own in the table; absent where missing or wrong.
#[derive(Default)]
pub(crate) struct TableOptions {
    pub(crate) kind: Option<TableKind>,
    pub(crate) topic: Option<String>,
    pub(crate) format: Option<Format>,
    /// `'sink.key_field'` and where its value stands.
    pub(crate) key_field: Option<(String, Span)>,
}

/// Everything the dialect knows. What is not built yet is recognised, so that it is not called unknown.
const KNOWN: [&str; 17] = [
    "connector",
    "type",
    "topic",
    "format",
    "sink.key_field",
    "bad_data",
    "framing",
    "event_time_field",
    "watermark_field",
    "json.timestamp_format",
    "bootstrap_servers",
    "source.offset",
    "source.group_id",
    "source.read_mode",
    "sink.commit_mode",
    "sink.timestamp_field",
    "client_configs",
];

/// Options that are not built, with the one value that says what this program does anyway.
const ONLY: [(&str, &str); 4] = [
    ("json.timestamp_format", "RFC3339"),
    ("source.offset", "earliest"),
    ("source.read_mode", "read_committed"),
    ("sink.commit_mode", "exactly_once"),
];

/// Connectors of the dialect that are still to come.
const LATER_CONNECTORS: [&str; 4] = ["single_file", "stdout", "blackhole", "impulse"];

/// Topics that emostream itself writes.
const RESERVED_PREFIX: &str = "emostream.";

/// Reads the options of one table; what is wrong goes into `findings`.
pub(crate) fn read(decl: &CreateTable, findings: &mut Vec<Finding>) -> TableOptions {
    let mut options = TableOptions::default();
    for (index, option) in decl.options.iter().enumerate() {
        let key = option.key.value.as_str();
        if decl.options[..index].iter().any(|other| other.key.value == key) {
            findings.push(Finding::error(option.key.span, format!("option '{key}' is given twice")));
        } else if let Err(finding) = read_one(option, &mut options) {
            findings.push(finding);
        }
    }
    for (key, values) in [("connector", "'kafka'"), ("type", "'source' or 'sink'")] {
        if !decl.options.iter().any(|option| option.key.value == key) {
            let finding = Finding::error(decl.name.span, format!("the table's option '{key}' is missing"));
            findings.push(finding.help(format!("write {key} = {values} in WITH (…)")));
        }
    }
    check_sides(decl, &mut options, findings);
    if !decl.options.iter().any(|option| option.key.value == "topic") {
        findings.extend(check_topic(&super::catalog::normalized(&decl.name), decl.name.span).err());
    }
    options
}

fn read_one(option: &OptionDecl, options: &mut TableOptions) -> Result<(), Finding> {
    let (key, value, at) = (option.key.value.as_str(), option.value.as_str(), option.value_at);
    match key {
        "connector" if value == "kafka" => Ok(()),
        "connector" if LATER_CONNECTORS.contains(&value) => {
            let finding = Finding::error(at, format!("connector '{value}' is not supported yet"));
            Err(finding.help("write connector = 'kafka': the log between the stages, embedded or Kafka"))
        }
        "connector" => Err(unknown_value(at, key, value, &["kafka"])),
        "type" => {
            options.kind = Some(match value {
                "source" => TableKind::Source,
                "sink" => TableKind::Sink,
                _ => return Err(unknown_value(at, key, value, &["source", "sink"])),
            });
            Ok(())
        }
        "format" => {
            options.format = Some(match value {
                "arrow" => Format::Arrow,
                "json" => Format::Json,
                "raw_string" => return Err(Finding::error(at, "format 'raw_string' is not supported yet")),
                _ => return Err(unknown_value(at, key, value, &["arrow", "json"])),
            });
            Ok(())
        }
        "topic" => {
            check_topic(value, at)?;
            options.topic = Some(value.to_owned());
            Ok(())
        }
        "sink.key_field" => {
            options.key_field = Some((value.to_owned(), at));
            Ok(())
        }
        _ => read_rest(option),
    }
}

/// Options without a field of their own.
fn read_rest(option: &OptionDecl) -> Result<(), Finding> {
    let (key, value) = (option.key.value.as_str(), option.value.as_str());
    if let Some((_, only)) = ONLY.iter().find(|(name, _)| *name == key) {
        if value == *only {
            return Ok(());
        }
        let finding = Finding::error(option.value_at, format!("{key} = '{value}' is not supported yet"));
        return Err(finding.help(format!("write '{only}', or leave the option out")));
    }
    if KNOWN.contains(&key) {
        let finding = Finding::error(option.key.span, format!("option '{key}' is not supported yet"));
        return Err(match key {
            "bootstrap_servers" | "client_configs" => {
                finding.help("leave it out; the log is set under [log] in the settings")
            }
            "event_time_field" | "watermark_field" => {
                finding.help("write WATERMARK FOR column AS (column - INTERVAL '500 milliseconds')")
            }
            _ => finding.help("leave it out"),
        });
    }
    let finding = Finding::error(option.key.span, format!("unknown option '{key}'"));
    Err(finding.help_nearest(key, "options", KNOWN))
}

/// A value that none of the expected is.
fn unknown_value(at: Span, key: &str, value: &str, expected: &[&str]) -> Finding {
    let listed = expected.iter().map(|e| format!("'{e}'")).collect::<Vec<_>>().join(" or ");
    let finding = Finding::error(at, format!("unknown {key} '{value}', expected {listed}"));
    match super::diagnostic::nearest(value, expected.iter().copied()) {
        Some(near) => finding.help(format!("did you mean '{near}'?")),
        None => finding,
    }
}

/// What fits only one side of the engine.
fn check_sides(decl: &CreateTable, options: &mut TableOptions, findings: &mut Vec<Finding>) {
    let Some(kind) = options.kind else { return };
    let place = |key: &str| {
        let option = decl.options.iter().find(|option| option.key.value == key);
        option.map_or(decl.name.span, |option| option.value_at)
    };
    match (kind, options.format) {
        (TableKind::Source, Some(Format::Json)) => {
            let finding = Finding::error(place("format"), "a source in format 'json' is not supported yet");
            findings.push(finding.help("write format = 'arrow'; rows are posted as JSON all the same"));
        }
        (TableKind::Sink, Some(Format::Arrow)) => {
            let finding = Finding::error(place("format"), "a sink in format 'arrow' is not supported yet");
            findings.push(finding.help("write format = 'json'"));
        }
        _ => {}
    }
    let (other, other_prefix) = match kind {
        TableKind::Source => ("sink", "sink."),
        TableKind::Sink => ("source", "source."),
    };
    for option in decl.options.iter().filter(|option| option.key.value.starts_with(other_prefix)) {
        let message = format!("option '{}' belongs to a {other}", option.key.value);
        findings.push(Finding::error(option.key.span, message).help("leave it out"));
    }
    if kind == TableKind::Source {
        options.key_field = None;
    }
}

/// Kafka's rule for topic names, and the program's own topics.
fn check_topic(topic: &str, at: Span) -> Result<(), Finding> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.is_empty() || topic.len() > 249 || topic == "." || topic == ".." || !topic.chars().all(allowed) {
        let finding = Finding::error(at, format!("'{topic}' is no name of a topic"));
        return Err(
            finding.help("a topic has up to 249 letters, digits, '.', '_' and '-'; name it with topic = '…'")
        );
    }
    if topic.starts_with(RESERVED_PREFIX) {
        let finding =
            Finding::error(at, format!("topics that begin with '{RESERVED_PREFIX}' are emostream's own"));
        return Err(finding.help("choose another topic"));
    }
    Ok(())
}
