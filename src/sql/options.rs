//! The `WITH` options of a table: which there are, where each belongs, what they may say, which are still to come.

use std::collections::BTreeMap;

use datafusion::sql::sqlparser::ast::{Expr, Value};
use datafusion::sql::sqlparser::tokenizer::Span;

use super::diagnostic::{Finding, nearest};
use super::parse::{CreateTable, OptionDecl, parse_interval};
use super::planner::Planner;
use crate::reaction::table::{
    BadData, Connector, FIXED_CLIENT_CONFIGS, Format, Framing, LateRows, SourceOffset, TableKind,
    TableOptions, servers_of,
};

/// The options as far as they could be read; absent where missing or wrong.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) kind: Option<TableKind>,
    pub(crate) topic: Option<String>,
    pub(crate) format: Option<Format>,
    /// These four name a column, and where that name stands.
    pub(crate) key_field: Option<(String, Span)>,
    pub(crate) timestamp_field: Option<(String, Span)>,
    pub(crate) event_time_field: Option<(String, Span)>,
    pub(crate) watermark_field: Option<(String, Span)>,
    pub(crate) with: TableOptions,
}

/// An option's place in the language.
struct Known {
    key: &'static str,
    /// The connectors it belongs to; none: all.
    connectors: &'static [&'static str],
    /// The side it belongs to; none: both.
    kind: Option<TableKind>,
    /// Every value there is; none: it is free.
    values: &'static [&'static str],
    /// Values that are recognised and not built, and what to write instead. `"*"` stands for every value.
    later: &'static [(&'static str, &'static str)],
}

const fn known(key: &'static str, connectors: &'static [&'static str], kind: Option<TableKind>) -> Known {
    Known { key, connectors, kind, values: &[], later: &[] }
}

const CONNECTORS: [&str; 5] = ["kafka", "single_file", "stdout", "blackhole", "impulse"];
const SOURCE: Option<TableKind> = Some(TableKind::Source);
const SINK: Option<TableKind> = Some(TableKind::Sink);
const KAFKA: &[&str] = &["kafka"];

/// Every option of the dialect. What is not built yet is recognised, so that it is not called unknown.
const KNOWN: [Known; 23] = [
    Known { values: &CONNECTORS, ..known("connector", &[], None) },
    Known { values: &["source", "sink"], ..known("type", &[], None) },
    Known { values: &["arrow", "json", "raw_string"], ..known("format", &[], None) },
    known("topic", KAFKA, None),
    known("sink.key_field", KAFKA, SINK),
    Known { values: &["drop", "fail"], ..known("bad_data", &["kafka", "single_file"], SOURCE) },
    Known { values: &["newline"], ..known("framing", &["kafka", "single_file"], SOURCE) },
    known("event_time_field", &[], SOURCE),
    known("watermark_field", &[], SOURCE),
    Known { values: &["count", "table"], ..known("late_rows", &[], SOURCE) },
    known("emit_every", KAFKA, SINK),
    Known { values: &["earliest", "latest", "group"], ..known("source.offset", KAFKA, SOURCE) },
    Known {
        values: &["read_committed", "read_uncommitted"],
        later: &[("read_uncommitted", "write 'read_committed', or leave the option out")],
        ..known("source.read_mode", KAFKA, SOURCE)
    },
    // What is written exactly once is also written at least once.
    Known { values: &["exactly_once", "at_least_once"], ..known("sink.commit_mode", KAFKA, SINK) },
    Known {
        values: &["RFC3339", "unix_millis"],
        ..known("json.timestamp_format", &["kafka", "single_file", "stdout"], None)
    },
    known("path", &["single_file"], None),
    known("event_rate", &["impulse"], SOURCE),
    known("message_count", &["impulse"], SOURCE),
    Known { later: &[("*", "leave it out")], ..known("event_time_interval", &["impulse"], SOURCE) },
    known("bootstrap_servers", KAFKA, None),
    known("client_configs", KAFKA, None),
    known("source.group_id", KAFKA, SOURCE),
    known("sink.timestamp_field", KAFKA, SINK),
];

/// Topics that emostream itself writes, and groups that it joins.
const RESERVED_PREFIX: &str = "emostream.";

/// Below this, early results would cost more than they show, in nanoseconds.
const MIN_EMIT_EVERY_NS: i64 = 50_000_000;

/// Reads the options of one table; what is wrong goes into `findings`.
pub(crate) fn read(decl: &CreateTable, planner: &Planner, findings: &mut Vec<Finding>) -> Options {
    let mut read = Options::default();
    let connector = connector(decl, findings);
    read.kind = kind(decl, connector, findings);
    let before = findings.len();
    for (index, option) in decl.options.iter().enumerate() {
        let key = option.key.value.as_str();
        if decl.options[..index].iter().any(|other| other.key.value == key) {
            findings.push(Finding::error(option.key.span, format!("option '{key}' is given twice")));
            continue;
        }
        let checked = check(option, connector, read.kind).and_then(|()| read_one(option, planner, &mut read));
        findings.extend(checked.err());
    }
    let Some(connector) = connector else { return read };
    read.with.connector = connector_of(decl, connector, findings);
    if findings.len() == before {
        check_format(decl, connector, &read, findings);
    }
    if (connector, read.kind) == ("single_file", SOURCE) && matches!(read.format, None | Some(Format::Json)) {
        // A file holds its rows in lines.
        read.with.framing = Some(Framing::Newline);
    }
    if connector == "kafka" && option(decl, "topic").is_none() {
        findings.extend(check_topic(&super::catalog::normalized(&decl.name), decl.name.span).err());
    }
    read
}

fn option<'a>(decl: &'a CreateTable, key: &str) -> Option<&'a OptionDecl> {
    decl.options.iter().find(|option| option.key.value == key)
}

/// The connector's name, when there is such a connector.
fn connector<'a>(decl: &'a CreateTable, findings: &mut Vec<Finding>) -> Option<&'a str> {
    let Some(option) = option(decl, "connector") else {
        let finding = Finding::error(decl.name.span, "the table's option 'connector' is missing");
        findings.push(finding.help("write connector = 'kafka' in WITH (…)"));
        return None;
    };
    // Another value is reported with those of the other options.
    CONNECTORS.contains(&option.value.as_str()).then_some(&option.value)
}

/// Whether it is a source or a sink; some connectors can only be one of them.
fn kind(decl: &CreateTable, connector: Option<&str>, findings: &mut Vec<Finding>) -> Option<TableKind> {
    let only = match connector {
        Some("impulse") => SOURCE,
        Some("stdout" | "blackhole") => SINK,
        _ => None,
    };
    let Some(given) = option(decl, "type") else {
        if only.is_none() {
            let finding = Finding::error(decl.name.span, "the table's option 'type' is missing");
            findings.push(finding.help("write type = 'source' or 'sink' in WITH (…)"));
        }
        return only;
    };
    let kind = match given.value.as_str() {
        "source" => TableKind::Source,
        "sink" => TableKind::Sink,
        _ => return None, // reported with the other values
    };
    if let Some(only) = only.filter(|only| *only != kind) {
        let message =
            format!("connector '{}' is always a {}", connector.unwrap_or_default(), kind_name(only));
        let finding = Finding::error(given.value_at, message);
        findings.push(finding.help(format!("write type = '{}', or leave it out", kind_name(only))));
        return None;
    }
    Some(kind)
}

fn kind_name(kind: TableKind) -> &'static str {
    match kind {
        TableKind::Source => "source",
        TableKind::Sink => "sink",
    }
}

/// Whether there is such an option, it belongs to this table, and has such a value.
fn check(option: &OptionDecl, connector: Option<&str>, kind: Option<TableKind>) -> Result<(), Finding> {
    let (key, value) = (option.key.value.as_str(), option.value.as_str());
    let Some(known) = KNOWN.iter().find(|known| known.key == key) else {
        let finding = Finding::error(option.key.span, format!("unknown option '{key}'"));
        return Err(finding.help_nearest(key, "options", KNOWN.iter().map(|known| known.key)));
    };
    if let (Some(wanted), Some(kind)) = (known.kind, kind)
        && wanted != kind
    {
        let message = format!("option '{key}' belongs to a {}", kind_name(wanted));
        return Err(Finding::error(option.key.span, message).help("leave it out"));
    }
    if let Some(connector) = connector
        && !known.connectors.is_empty()
        && !known.connectors.contains(&connector)
    {
        let listed = listed(known.connectors, "or");
        let message = format!("option '{key}' belongs to connector {listed}, this is '{connector}'");
        return Err(Finding::error(option.key.span, message).help("leave it out"));
    }
    if !known.values.is_empty() && !known.values.contains(&value) {
        let message = format!("unknown {key} '{value}', expected {}", listed(known.values, "or"));
        let finding = Finding::error(option.value_at, message);
        return Err(match nearest(value, known.values.iter().copied()) {
            Some(near) => finding.help(format!("did you mean '{near}'?")),
            None => finding,
        });
    }
    match known.later.iter().find(|(later, _)| *later == "*" || *later == value) {
        Some(("*", help)) => {
            Err(Finding::error(option.key.span, format!("option '{key}' is not supported yet")).help(*help))
        }
        Some((later, help)) => {
            let message = format!("{key} = '{later}' is not supported yet");
            Err(Finding::error(option.value_at, message).help(*help))
        }
        None => Ok(()),
    }
}

/// `'a', 'b' or 'c'`.
fn listed(names: &[&str], last: &str) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
    match quoted.as_slice() {
        [init @ .., end] if !init.is_empty() => format!("{} {last} {end}", init.join(", ")),
        all => all.join(", "),
    }
}

/// Keeps the value of an option that belongs to the table. Connectors' own are read by [`connector_of`].
fn read_one(option: &OptionDecl, planner: &Planner, read: &mut Options) -> Result<(), Finding> {
    let (value, at) = (option.value.as_str(), option.value_at);
    match option.key.value.as_str() {
        "format" => {
            read.format = Some(match value {
                "arrow" => Format::Arrow,
                "raw_string" => Format::RawString,
                _ => Format::Json,
            });
        }
        "topic" => {
            check_topic(value, at)?;
            read.topic = Some(value.to_owned());
        }
        "sink.timestamp_field" => read.timestamp_field = Some((value.to_owned(), at)),
        "source.group_id" => {
            check_group(value, at)?;
            read.with.group_id = Some(value.to_owned());
        }
        "bootstrap_servers" => {
            read.with.bootstrap_servers = servers_of(value);
            if read.with.bootstrap_servers.is_empty() {
                let finding = Finding::error(at, "bootstrap_servers names no broker");
                return Err(finding.help("write 'HOST:PORT', several with commas, or leave the option out"));
            }
        }
        "client_configs" => read.with.client_configs = client_configs(value, at)?,
        "sink.key_field" => read.key_field = Some((value.to_owned(), at)),
        "event_time_field" => read.event_time_field = Some((value.to_owned(), at)),
        "watermark_field" => read.watermark_field = Some((value.to_owned(), at)),
        "framing" => read.with.framing = Some(Framing::Newline),
        "bad_data" if value == "fail" => read.with.bad_data = BadData::Fail,
        "late_rows" if value == "table" => read.with.late_rows = LateRows::Table,
        "source.offset" => {
            read.with.source_offset = match value {
                "latest" => SourceOffset::Latest,
                "group" => SourceOffset::Group,
                _ => SourceOffset::Earliest,
            };
        }
        "emit_every" => read.with.emit_every_ns = Some(emit_every_ns(option, planner)?),
        _ => {}
    }
    Ok(())
}

fn emit_every_ns(option: &OptionDecl, planner: &Planner) -> Result<i64, Finding> {
    const HELP: &str = "write emit_every = '200 milliseconds'";
    let wrong = |message: String| Finding::error(option.value_at, message).help(HELP);
    let none = || wrong(format!("'{}' is no interval", option.value));
    // Without a unit, an interval would be seconds: too easily meant as milliseconds.
    let has_unit = option.value.chars().any(char::is_alphabetic);
    let interval = parse_interval(&option.value).filter(|_| has_unit).ok_or_else(none)?;
    let Expr::Interval(text) = &interval else { return Err(none()) };
    if !matches!(text.value.as_ref(), Expr::Value(value) if matches!(value.value, Value::SingleQuotedString(_)))
    {
        return Err(none());
    }
    match planner.constant_interval(&interval) {
        Some(Ok(ns)) if ns >= MIN_EMIT_EVERY_NS => Ok(ns),
        Some(Ok(_)) => Err(wrong("early results come at least 50 milliseconds apart".to_owned())),
        Some(Err(why)) => Err(wrong(why)),
        None => Err(none()),
    }
}

/// `'name=value,name=value'`: librdkafka's properties, but those on which the log's promises rest.
fn client_configs(text: &str, at: Span) -> Result<BTreeMap<String, String>, Finding> {
    let mut configs = BTreeMap::new();
    for pair in text.split(',') {
        let parts = pair.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
        let Some((name, value)) = parts.filter(|(name, _)| !name.is_empty()) else {
            let finding = Finding::error(at, format!("'{}' is no property with a value", pair.trim()));
            return Err(finding.help("write client_configs = 'fetch.max.bytes=1000000,client.rack=a'"));
        };
        if FIXED_CLIENT_CONFIGS.contains(&name) {
            let message = format!("property '{name}' is set by emostream itself: exactly once rests on it");
            let help = match name {
                "bootstrap.servers" | "metadata.broker.list" => "write the option bootstrap_servers",
                "group.id" => "write the option 'source.group_id'",
                "auto.offset.reset" => "write the option 'source.offset'",
                _ => "leave it out",
            };
            return Err(Finding::error(at, message).help(help));
        }
        if configs.insert(name.to_owned(), value.to_owned()).is_some() {
            let finding = Finding::error(at, format!("property '{name}' is given twice"));
            return Err(finding.help("leave one of them out"));
        }
    }
    Ok(configs)
}

/// The name of a consumer group that is not one of our own.
fn check_group(group: &str, at: Span) -> Result<(), Finding> {
    if group.trim().is_empty() || group.len() > 249 {
        let finding = Finding::error(at, format!("'{group}' is no name of a consumer group"));
        return Err(finding.help("a group has 1 to 249 characters"));
    }
    if group.starts_with(RESERVED_PREFIX) {
        let message = format!("groups that begin with '{RESERVED_PREFIX}' are emostream's own");
        return Err(Finding::error(at, message).help("choose another name, or leave the option out"));
    }
    Ok(())
}

/// The connector with its own options.
fn connector_of(decl: &CreateTable, connector: &str, findings: &mut Vec<Finding>) -> Connector {
    let mut required = |key: &str, example: &str| {
        let found = option(decl, key).map(|option| (option.value.clone(), option.value_at));
        if found.is_none() {
            let message = format!("connector '{connector}' needs the option '{key}'");
            findings.push(Finding::error(decl.name.span, message).help(format!("write {key} = {example}")));
        }
        found
    };
    match connector {
        "single_file" => match required("path", "'reactions.jsonl'") {
            Some((path, at)) if path.trim().is_empty() => {
                findings.push(Finding::error(at, "the file's path is empty"));
                Connector::default()
            }
            Some((path, _)) => Connector::SingleFile { path },
            None => Connector::default(),
        },
        "stdout" => Connector::Stdout,
        "blackhole" => Connector::Blackhole,
        "impulse" => {
            let rate = required("event_rate", "'1000'").and_then(|(text, at)| {
                let rate = text.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate > 0.0);
                if rate.is_none() {
                    let message = format!("event_rate is rows a second, a number above 0, not '{text}'");
                    findings.push(Finding::error(at, message).help("write event_rate = '1000'"));
                }
                rate
            });
            let message_count = option(decl, "message_count").and_then(|option| {
                let count = option.value.parse::<u64>().ok();
                if count.is_none() {
                    let message = format!("message_count is a whole number, not '{}'", option.value);
                    findings
                        .push(Finding::error(option.value_at, message).help("write message_count = '1000'"));
                }
                count
            });
            Connector::Impulse { event_rate: rate.unwrap_or_default(), message_count }
        }
        _ => Connector::Kafka,
    }
}

/// Which format fits which connector and side, and which options fit which format.
fn check_format(decl: &CreateTable, connector: &str, read: &Options, findings: &mut Vec<Finding>) {
    let format_at = option(decl, "format").map_or(decl.name.span, |option| option.value_at);
    let refused = match (connector, read.kind, read.format) {
        ("stdout", _, Some(Format::Arrow)) => {
            Some(("stdout is for people: it has no format 'arrow'".to_owned(), "write format = 'json'"))
        }
        ("impulse", _, Some(_)) => {
            Some(("an impulse has no format: its rows are made, not read".to_owned(), "leave it out"))
        }
        _ => None,
    };
    if let Some((message, help)) = refused {
        findings.push(Finding::error(format_at, message).help(help));
    }
    // What publisher and query read has one form of a time.
    let times = option(decl, "json.timestamp_format").filter(|times| times.value == "unix_millis");
    if let ("kafka", SINK, Some(times)) = (connector, read.kind, times) {
        let message = "json.timestamp_format = 'unix_millis' is not supported in a kafka sink yet";
        findings
            .push(Finding::error(times.value_at, message).help("write 'RFC3339', or leave the option out"));
    }
    let format = read.format.or_else(|| read.kind.map(|kind| default_format(&read.with.connector, kind)));
    for key in ["framing", "json.timestamp_format"] {
        if let (Some(option), Some(format)) = (option(decl, key), format)
            && format != Format::Json
        {
            let message =
                format!("option '{key}' belongs to format 'json', this is '{}'", format_name(format));
            findings.push(
                Finding::error(option.key.span, message).help("write format = 'json', or leave it out"),
            );
        }
    }
}

/// The format of a table that names none: ours in the log, JSON lines in files and on standard output.
pub(crate) fn default_format(connector: &Connector, kind: TableKind) -> Format {
    match (connector, kind) {
        (Connector::Kafka | Connector::Impulse { .. }, TableKind::Source) => Format::Arrow,
        _ => Format::Json,
    }
}

fn format_name(format: Format) -> &'static str {
    match format {
        Format::Arrow => "arrow",
        Format::Json => "json",
        Format::RawString => "raw_string",
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
