//! Settings: defaults ← TOML file ← environment ← flags, into one checked value.
//!
//! Every stage owns its section; this file only puts them together. A key that nobody knows is refused, with the
//! place it came from and the nearest known one, because a misspelt limit is no limit.

mod wrong;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::{Deserialize, Serialize};

use crate::log::embedded;
use crate::log::kafka::KafkaSettings;
use crate::{engine, ingest, publish, query, telemetry};

/// What every environment variable of a setting starts with: `EMOSTREAM__LOG__KIND` is `log.kind`.
pub const ENV_PREFIX: &str = "EMOSTREAM__";
/// Sections whose keys are somebody else's: librdkafka's properties.
const FREE_SECTIONS: [&str; 1] = ["log.kafka.properties"];
/// Follows `ingest.future_tolerance_ms` unless it is set.
const ENGINE_TOLERANCE: &str = "engine.future_tolerance_ms";
/// A value is not shown when its key contains one of these.
const SECRET_WORDS: [&str; 4] = ["password", "secret", "token", "key.pem"];

/// All settings.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The log between the stages.
    pub log: LogSettings,
    /// Stage 1.
    pub ingest: ingest::Settings,
    /// Stage 2.
    pub engine: engine::Settings,
    /// Stage 3a.
    pub publish: publish::Settings,
    /// Stage 3b.
    pub query: query::Settings,
    /// What all HTTP servers share.
    pub http: HttpSettings,
    /// Logs and metrics of this process.
    pub telemetry: telemetry::Settings,
}

/// `[log]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// Which log. A role of its own always uses Kafka.
    pub kind: LogKind,
    /// How many partitions a table's topic is created with.
    pub partitions: u32,
    /// How long a table's topic keeps records.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// Bounds of the embedded log.
    pub embedded: embedded::Settings,
    /// How to reach Kafka.
    pub kafka: KafkaSettings,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            kind: LogKind::Embedded,
            partitions: 3,
            retention: Duration::from_secs(24 * 3600),
            embedded: embedded::Settings::default(),
            kafka: KafkaSettings::default(),
        }
    }
}

/// The two logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    /// A file under the data directory; everything in one process.
    Embedded,
    /// Apache Kafka.
    Kafka,
}

/// `[http]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// Listening on an address that other machines reach is allowed although nobody is asked who they are.
    pub allow_public: bool,
    /// Pages of these origins may change queries too (`https://dashboard.example`), besides those served here and by
    /// `http://localhost` on any port.
    pub origins: Vec<String>,
}

/// What can be wrong with settings. The message is for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

/// Where values come from, besides the defaults. Later ones win.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`: its name and text.
    pub file: Option<(String, String)>,
    /// The process's environment, or a test's.
    pub env: Vec<(String, String)>,
    /// Flag, key, value: `("--kafka", "log.kind", "kafka")`.
    pub flags: Vec<(&'static str, &'static str, String)>,
}

impl Sources {
    /// The process's environment and that file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of_process(file: Option<&Path>) -> Result<Self, ConfigError> {
        let read = |path: &Path| match std::fs::read_to_string(path) {
            Ok(text) => Ok((path.display().to_string(), text)),
            Err(error) => Err(ConfigError(vec![format!("cannot read {}: {error}", path.display())])),
        };
        Ok(Self { file: file.map(read).transpose()?, env: std::env::vars().collect(), flags: Vec::new() })
    }

    /// Adds a flag's setting.
    pub fn flag(&mut self, flag: &'static str, key: &'static str, value: impl Into<String>) {
        self.flags.push((flag, key, value.into()));
    }
}

/// The settings, and where each value came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The checked value.
    pub settings: Settings,
    /// Every value by key (`log.kafka.bootstrap_servers`): its JSON form, and its origin in words.
    pub origins: BTreeMap<String, (serde_json::Value, String)>,
}

/// Puts the sources together.
///
/// # Errors
/// Names every unknown key, every value of a wrong type and every value out of range, with where it came from.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let defaults = json(&Settings::default())?;
    let layers = [file_layer(sources)?, env_layer(sources), flag_layer(sources)];
    let known = leaves(&defaults);
    let unknown = layers.iter().flat_map(|layer| layer.unknown_keys(&known));
    let unknown: Vec<String> = unknown.chain(misspelt_variables(&sources.env, &known)).collect();
    if !unknown.is_empty() {
        return Err(ConfigError(unknown));
    }
    let mut figment = Figment::from(Layer::new("default", Value::serialize(Settings::default()).ok()));
    for layer in &layers {
        figment = figment.merge(layer);
    }
    let mut settings: Settings =
        figment.extract().map_err(|errors| ConfigError(wrong_values(errors, &layers)))?;
    check(&settings)?;
    if !layers.iter().any(|layer| layer.origins.contains_key(ENGINE_TOLERANCE)) {
        // What ingest lets in, the engine must not take for a row of the future.
        settings.engine.future_tolerance_ms = settings.ingest.future_tolerance_ms;
    }
    let origins = leaves(&json(&settings)?).into_iter().map(|(key, value)| {
        let origin = layers.iter().rev().find_map(|layer| layer.origins.get(&key).cloned());
        let unset = if key == ENGINE_TOLERANCE { "as [ingest] has it" } else { "default" };
        (key, (value, origin.unwrap_or_else(|| unset.to_owned())))
    });
    Ok(Loaded { origins: origins.collect(), settings })
}

/// The settings as TOML, each line with where its value came from; secrets hidden.
pub fn show(loaded: &Loaded) -> String {
    let mut sections: BTreeMap<&str, Vec<(String, &str)>> = BTreeMap::new();
    for (key, (value, origin)) in &loaded.origins {
        let (section, name) = split_key(key);
        let name = if name.contains('.') { format!("\"{name}\"") } else { name.to_owned() };
        let line = match value {
            serde_json::Value::Null => format!("# {name} is not set"),
            _ if is_secret(key) => format!("{name} = \"(hidden)\""),
            value => format!("{name} = {value}"),
        };
        sections.entry(section).or_default().push((line, origin));
    }
    let width = sections.values().flatten().map(|(line, _)| line.len()).max().unwrap_or(0).min(60);
    let mut text = String::new();
    for (section, lines) in sections {
        text.push_str(&format!("[{section}]\n"));
        for (line, origin) in lines {
            text.push_str(&format!("{line:width$}  # {origin}\n"));
        }
        text.push('\n');
    }
    text
}

/// What types cannot say.
fn check(settings: &Settings) -> Result<(), ConfigError> {
    let mut wrong = Vec::new();
    let log = &settings.log;
    if !(1..=1000).contains(&log.partitions) {
        wrong.push(format!("log.partitions = {}: between 1 and 1000", log.partitions));
    }
    if log.retention < Duration::from_secs(60) {
        wrong.push(format!("log.retention = \"{}\": at least 1m", humantime(log.retention)));
    }
    if log.kind == LogKind::Kafka
        && let Err(error) = log.kafka.check()
    {
        wrong.push(error.to_string());
    }
    for origin in settings.http.origins.iter().filter(|origin| !wrong::is_origin(origin)) {
        wrong.push(format!(
            "http.origins: \"{origin}\" is no origin; write https://name or https://name:port, as a browser has it"
        ));
    }
    wrong.extend(settings.telemetry.validate().err());
    wrong.extend(settings.ingest.validate().err());
    wrong.extend(settings.publish.validate().err());
    if wrong.is_empty() { Ok(()) } else { Err(ConfigError(wrong)) }
}

fn humantime(duration: Duration) -> String {
    let text = serde_json::to_value(humantime_serde::Serde::from(duration)).unwrap_or_default();
    text.as_str().unwrap_or_default().to_owned()
}

/// One source of values.
struct Layer {
    name: String,
    values: Dict,
    /// Key → origin in words.
    origins: BTreeMap<String, String>,
}

impl Layer {
    fn new(name: &str, values: Option<Value>) -> Self {
        let values = values.and_then(Value::into_dict).unwrap_or_default();
        Self { name: name.to_owned(), values, origins: BTreeMap::new() }
    }

    fn put(&mut self, key: &str, value: Value, origin: String) {
        let (section, name) = split_key(key);
        let path = section.rsplit('.').filter(|part| !part.is_empty());
        let nested = path.fold((name.to_owned(), value), |(inner, value), outer| {
            (outer.to_owned(), Value::from(Dict::from([(inner, value)])))
        });
        merge(&mut self.values, Dict::from([nested]));
        self.origins.insert(key.to_owned(), origin);
    }

    fn unknown_keys(&self, known: &BTreeMap<String, serde_json::Value>) -> Vec<String> {
        let is_known = |key: &str| {
            known.contains_key(key)
                || known.keys().any(|k| k.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
                || FREE_SECTIONS.contains(&key)
                || in_free_section(key).is_some()
        };
        let unknown = self.origins.iter().filter(|(key, _)| !is_known(key));
        unknown
            .map(|(key, origin)| format!("{origin}: there is no setting {key}{}", nearest(key, known)))
            .collect()
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

fn merge(into: &mut Dict, from: Dict) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Dict(_, known)), Value::Dict(_, more)) => merge(known, more),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn file_layer(sources: &Sources) -> Result<Layer, ConfigError> {
    use figment::providers::{Format, Toml};
    let Some((name, text)) = &sources.file else { return Ok(Layer::new("file", None)) };
    let data = Toml::string(text).data().map_err(|error| ConfigError(vec![format!("{name}: {error}")]))?;
    let values = data.into_values().next().unwrap_or_default();
    let keys =
        serde_json::to_value(&values).map_err(|error| ConfigError(vec![format!("{name}: {error}")]))?;
    let origins = leaves(&keys).into_keys().map(|key| (key, format!("file {name}"))).collect();
    Ok(Layer { name: format!("file {name}"), values, origins })
}

fn env_layer(sources: &Sources) -> Layer {
    let mut layer = Layer::new("environment", None);
    for (name, text) in &sources.env {
        if let Some(rest) = name.strip_prefix(ENV_PREFIX) {
            let key = rest.to_lowercase().replace("__", ".");
            let origin = format!("env {name}");
            match in_free_section(&key) {
                // Those names have dots and no underscores; variables have it the other way round. And a password of
                // digits is a text.
                Some((section, name)) => {
                    let key = format!("{section}.{}", name.replace('_', "."));
                    layer.put(&key, Value::from(text.as_str()), origin);
                }
                None => layer.put(&key, value(text), origin),
            }
        }
    }
    layer
}

/// Variables that would be settings if their underscores were two. Others of that beginning are somebody else's: of
/// containers, of scripts.
fn misspelt_variables(env: &[(String, String)], known: &BTreeMap<String, serde_json::Value>) -> Vec<String> {
    let letters = |text: &str| text.to_lowercase().replace(['_', '.'], "");
    let single = ENV_PREFIX.trim_end_matches('_');
    let of_variable = |(name, _): &(String, String)| {
        let rest = name.strip_prefix(single)?.strip_prefix('_').filter(|_| !name.starts_with(ENV_PREFIX))?;
        let key = known.keys().find(|key| letters(key) == letters(rest))?;
        let meant = format!("{ENV_PREFIX}{}", key.to_uppercase().replace('.', "__"));
        Some(format!("env {name}: there is no such setting; did you mean {meant}, with two underscores?"))
    };
    env.iter().filter_map(of_variable).collect()
}

fn flag_layer(sources: &Sources) -> Layer {
    let mut layer = Layer::new("flags", None);
    for (flag, key, text) in &sources.flags {
        layer.put(key, value(text), format!("flag {flag}"));
    }
    layer
}

/// A number, boolean, array or table where the text is one; else the text itself.
fn value(text: &str) -> Value {
    match text.parse::<Value>() {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

fn wrong_values(errors: figment::Error, layers: &[Layer]) -> Vec<String> {
    let describe = |error: figment::Error| {
        let key = error.path.join(".");
        let origin = layers.iter().rev().find_map(|layer| layer.origins.get(&key));
        match origin {
            Some(origin) => format!("{origin}: {key}: {}", wrong::value(&error.kind)),
            None => format!("{key}: {}", wrong::value(&error.kind)),
        }
    };
    errors.into_iter().map(describe).collect()
}

fn nearest(key: &str, known: &BTreeMap<String, serde_json::Value>) -> String {
    let scored = known.keys().map(|candidate| (strsim::jaro_winkler(key, candidate), candidate));
    match scored.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((score, candidate)) if score > 0.8 => format!("; did you mean {candidate}?"),
        _ => "; `emostream config` lists them".to_owned(),
    }
}

fn json<T: Serialize>(value: &T) -> Result<serde_json::Value, ConfigError> {
    serde_json::to_value(value).map_err(|error| ConfigError(vec![error.to_string()]))
}

/// Every value that is no section, by its key. An empty section is none.
fn leaves(value: &serde_json::Value) -> BTreeMap<String, serde_json::Value> {
    fn walk(prefix: &str, value: &serde_json::Value, into: &mut BTreeMap<String, serde_json::Value>) {
        let serde_json::Value::Object(section) = value else {
            into.insert(prefix.to_owned(), value.clone());
            return;
        };
        for (name, value) in section {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            walk(&key, value, into);
        }
    }
    let mut found = BTreeMap::new();
    walk("", value, &mut found);
    found
}

/// Section and name; a free section's names may contain dots.
fn split_key(key: &str) -> (&str, &str) {
    in_free_section(key).or_else(|| key.rsplit_once('.')).unwrap_or(("", key))
}

/// A key's free section, and its name there.
fn in_free_section(key: &str) -> Option<(&str, &str)> {
    FREE_SECTIONS.iter().find_map(|section| {
        let name = key.strip_prefix(section)?.strip_prefix('.')?;
        Some((&key[..section.len()], name))
    })
}

fn is_secret(key: &str) -> bool {
    SECRET_WORDS.iter().any(|word| key.to_lowercase().contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(file: &str, env: &[(&str, &str)]) -> Sources {
        Sources {
            file: Some(("x.toml".to_owned(), file.to_owned())),
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            flags: Vec::new(),
        }
    }

    #[test]
    fn flags_win_over_the_environment_over_the_file_over_defaults() {
        let file = "[log]\npartitions = 5\nretention = \"1h\"\n[http]\nallow_public = true";
        let mut sources =
            sources(file, &[("EMOSTREAM__LOG__PARTITIONS", "6"), ("EMOSTREAM__LOG__RETENTION", "2h")]);
        sources.flag("--partitions", "log.partitions", "7");
        let loaded = load(&sources).unwrap();
        assert_eq!(loaded.settings.log.partitions, 7);
        assert_eq!(loaded.settings.log.retention, Duration::from_secs(7200));
        assert!(loaded.settings.http.allow_public);
        let origin = |key: &str| loaded.origins[key].1.as_str();
        assert_eq!(origin("log.partitions"), "flag --partitions");
        assert_eq!(origin("log.retention"), "env EMOSTREAM__LOG__RETENTION");
        assert_eq!(origin("http.allow_public"), "file x.toml");
        assert_eq!(origin("log.kind"), "default");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_the_nearest_one() {
        let check = |sources: Sources, expected: &[&str]| {
            let message = load(&sources).unwrap_err().to_string();
            for part in expected {
                assert!(message.contains(part), "{message}");
            }
        };
        check(
            sources("[log]\npartitons = 5", &[]),
            &["file x.toml", "log.partitons", "did you mean log.partitions?"],
        );
        check(sources("", &[("EMOSTREAM__LOGS__KIND", "kafka")]), &["env EMOSTREAM__LOGS__KIND", "log.kind"]);
        check(sources("[query]\nqwertzuiop = 1", &[]), &["query.qwertzuiop"]);
    }

    #[test]
    fn a_value_of_the_wrong_type_or_size_is_refused_with_its_place() {
        let wrong = load(&sources("", &[("EMOSTREAM__LOG__PARTITIONS", "many")])).unwrap_err().to_string();
        assert!(
            wrong.contains("env EMOSTREAM__LOG__PARTITIONS") && wrong.contains("log.partitions"),
            "{wrong}"
        );
        let range = load(&sources("[log]\npartitions = 0", &[])).unwrap_err().to_string();
        assert!(range.contains("between 1 and 1000"), "{range}");
        let broker = load(&sources("[log]\nkind = \"kafka\"", &[])).unwrap_err().to_string();
        assert!(broker.contains("bootstrap_servers"), "{broker}");
    }

    #[test]
    fn what_is_wrong_with_a_value_is_said_as_who_writes_it_would() {
        for (name, text, said) in [
            (
                "HTTP__ORIGINS",
                "http://a.example",
                r#""http://a.example" is not a list such as ["http://a.example"]"#,
            ),
            ("HTTP__ORIGINS", r#"["a.example"]"#, r#""a.example" is no origin; write https://name"#),
            ("HTTP__ORIGINS", r#"["https://a.example/page"]"#, "is no origin"),
            ("INGEST__FLUSH_ROWS", "many", r#""many" is not a whole number"#),
            ("INGEST__FLUSH_ROWS", "-1", "-1 is not a whole number"),
            ("LOG__RETENTION", "long", r#""long" is not a time such as"#),
            ("LOG__KIND", "rabbit", r#""rabbit" is not known; write "embedded" or "kafka""#),
            ("HTTP__ALLOW_PUBLIC", "maybe", r#""maybe" is not true or false"#),
            ("TELEMETRY__LOG_LEVEL", "warning", "write error, warn, info, debug, trace or off"),
            ("TELEMETRY__LOG_LEVEL", "", "write error, warn, info, debug, trace or off"),
        ] {
            let name = format!("{ENV_PREFIX}{name}");
            let wrong = load(&sources("", &[(&name, text)])).unwrap_err().to_string();
            assert!(wrong.contains(said) && !wrong.contains('`'), "{name}: {wrong}");
        }
        for (name, text) in [
            ("HTTP__ORIGINS", r#"["https://a.example", "http://a.example:3000/", "http://[::1]:80"]"#),
            ("TELEMETRY__LOG_LEVEL", "info,emostream::engine=debug"),
        ] {
            let name = format!("{ENV_PREFIX}{name}");
            load(&sources("", &[(&name, text)])).unwrap();
        }
    }

    #[test]
    fn a_variable_with_one_underscore_too_few_is_refused_and_those_of_others_are_left_alone() {
        let wrong = load(&sources("", &[("EMOSTREAM_HTTP_ORIGINS", "[]")])).unwrap_err().to_string();
        assert!(wrong.contains("did you mean EMOSTREAM__HTTP__ORIGINS"), "{wrong}");
        load(&sources("", &[("EMOSTREAM_SEED", "1"), ("EMOSTREAM_PORT", "tcp://10.0.0.1:80")])).unwrap();
    }

    #[test]
    fn properties_of_librdkafka_are_taken_as_they_are_and_secrets_are_hidden() {
        let file = "[log.kafka.properties]\n\"client.id\" = \"a\"\n\"sasl.password\" = \"hunter2\"";
        let loaded = load(&sources(file, &[])).unwrap();
        assert_eq!(loaded.settings.log.kafka.properties["client.id"], "a");
        let shown = show(&loaded);
        assert!(shown.contains("[log.kafka.properties]\n\"client.id\" = \"a\""), "{shown}");
        assert!(shown.contains("\"sasl.password\" = \"(hidden)\"") && !shown.contains("hunter2"), "{shown}");

        let (name, password) = ("LOG__KAFKA__PROPERTIES__CLIENT_ID", "LOG__KAFKA__PROPERTIES__SASL_PASSWORD");
        let env = [(name, "b"), (password, "0012")].map(|(name, text)| (format!("{ENV_PREFIX}{name}"), text));
        let env: Vec<_> = env.iter().map(|(name, text)| (name.as_str(), *text)).collect();
        let loaded = load(&sources(file, &env)).unwrap();
        let properties = &loaded.settings.log.kafka.properties;
        assert_eq!((&properties["client.id"][..], &properties["sasl.password"][..]), ("b", "0012"));
        assert!(show(&loaded).contains(&format!("# env {ENV_PREFIX}{name}")));
    }
}
