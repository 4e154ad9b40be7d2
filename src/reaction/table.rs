//! A table as the DDL declares it: what every stage needs to know of a source or a sink.
//!
//! Serialised to JSON in the program topic, from which ingest, publisher and query learn the tables.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::column_type::ColumnType;

/// The column that a source without a declared event time gets: the time of each record, by the log.
pub const IMPLIED_EVENT_TIME: &str = "_timestamp";

/// One `CREATE TABLE`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Lower-case unless quoted in the DDL.
    pub name: String,
    /// Source: ingest writes it, the engine reads it. Sink: the engine writes it.
    #[serde(rename = "type")]
    pub kind: TableKind,
    /// The topic of the log that carries it.
    pub topic: String,
    /// How a record's value is encoded.
    pub format: Format,
    /// What a record holds and what the log knows of it, in declaration order. Columns that are GENERATED are not among them:
    /// they are expressions over these, and the planner's affair.
    pub columns: Vec<Column>,
    /// What `WATERMARK FOR` says; sources only. A source without one is static: its rows are all there at the start.
    pub watermark: Option<Watermark>,
    /// `'sink.key_field'`: the column whose text is the records' key.
    pub key_field: Option<String>,
    /// Every `WITH` option as written.
    pub options: BTreeMap<String, String>,
    /// What the options say besides, checked.
    #[serde(default)]
    pub with: TableOptions,
}

impl Table {
    /// The column of that name and its place.
    pub fn column(&self, name: &str) -> Option<(usize, &Column)> {
        self.columns.iter().enumerate().find(|(_, column)| column.name == name)
    }

    /// Whether its rows lie in a topic of the log, whatever brings them there or takes them out.
    pub fn is_in_the_log(&self) -> bool {
        self.with.connector != Connector::Blackhole && !self.is_static()
    }

    /// Whether it is a source that does not grow, for rows that come to be joined with.
    pub fn is_static(&self) -> bool {
        self.kind == TableKind::Source && self.watermark.is_none()
    }

    /// How the records of its topic are encoded: as declared, where the topic is the table. What a sink of another
    /// connector is to get lies in the log as Arrow, whatever it becomes when it is written out.
    pub fn record_format(&self) -> Format {
        match (self.kind, &self.with.connector) {
            (TableKind::Source, _) | (TableKind::Sink, Connector::Kafka) => self.format,
            (TableKind::Sink, _) => Format::Arrow,
        }
    }

    /// The columns that a record's value holds: those that can be posted.
    pub fn record_columns(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.source == ColumnSource::Record)
    }
}

/// The `WITH` options that have no field of their own in [`Table`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TableOptions {
    /// What carries the rows.
    pub connector: Connector,
    /// `framing`: a record's value holds several rows.
    pub framing: Option<Framing>,
    /// What becomes of a record that cannot be read; sources only.
    pub bad_data: BadData,
    /// What becomes of rows that come after their window was closed; sources only.
    pub late_rows: LateRows,
    /// Where a query begins that has never run; sources only.
    pub source_offset: SourceOffset,
    /// `'source.group_id'`: the consumer group under which positions are committed instead of the query's own.
    pub group_id: Option<String>,
    /// `'sink.timestamp_field'`: the column that stamps the records instead of the log.
    pub timestamp_field: Option<String>,
    /// `bootstrap_servers`, in order: the Kafka that the table is on. Empty: the configured log, whichever that is.
    pub bootstrap_servers: Vec<String>,
    /// `client_configs`: librdkafka properties of this table's reader or writer, by name.
    pub client_configs: BTreeMap<String, String>,
    /// How often an open window's result so far is written, in nanoseconds; sinks only. `None`: only when it is closed.
    pub emit_every_ns: Option<i64>,
}

/// The librdkafka properties that nobody else sets, because what the log promises rests on them.
pub const FIXED_CLIENT_CONFIGS: [&str; 13] = [
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.instance.id",
    "isolation.level",
    "metadata.broker.list",
    "request.required.acks",
    "transactional.id",
];

/// Kafka's port where an address names none.
const KAFKA_PORT: &str = "9092";

/// The addresses of a list as they are compared: each with its port, once, in order.
pub fn servers_of(list: &str) -> Vec<String> {
    let named = list.split(',').map(str::trim).filter(|server| !server.is_empty());
    let mut servers: Vec<String> = named
        .map(|server| match server.rsplit_once(':') {
            Some(_) => server.to_lowercase(),
            None => format!("{}:{KAFKA_PORT}", server.to_lowercase()),
        })
        .collect();
    servers.sort();
    servers.dedup();
    servers
}

/// What carries a table's rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connector {
    /// A topic of the log between the stages, embedded or Kafka.
    #[default]
    Kafka,
    /// A file.
    SingleFile {
        /// As written; relative to where the program is started.
        path: String,
    },
    /// Standard output; sinks only.
    Stdout,
    /// Nothing: rows are counted and forgotten; sinks only.
    Blackhole,
    /// Rows made up one after the other; sources only.
    Impulse {
        /// Rows a second, above 0.
        event_rate: f64,
        /// How many in all; `None` without end.
        message_count: Option<u64>,
    },
}

/// How several rows lie in one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Framing {
    /// One a line.
    Newline,
}

/// What becomes of a record that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadData {
    /// It is counted as bad, and the query goes on.
    #[default]
    Drop,
    /// The query stops there.
    Fail,
}

/// What becomes of rows that come after their window was closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LateRows {
    /// They are counted.
    #[default]
    Count,
    /// They are counted and written to a table of their own.
    Table,
}

/// Where a query begins that has never run. One that has goes on from its checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceOffset {
    /// At the oldest record.
    #[default]
    Earliest,
    /// At what is written from then on.
    Latest,
    /// Where the consumer group stands.
    Group,
}

/// Which side of the engine a table is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableKind {
    /// Ingest writes it, the engine reads it.
    Source,
    /// The engine writes it, publisher and query read it.
    Sink,
}

/// How a record's value is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One self-contained Arrow IPC stream per record, holding one batch.
    Arrow,
    /// One JSON object per record, or per line with `framing = 'newline'`.
    Json,
    /// The value is the text of the one column.
    #[serde(rename = "raw_string")]
    RawString,
}

/// One column of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// Lower-case unless quoted in the DDL.
    pub name: String,
    /// Its SQL type.
    #[serde(rename = "type")]
    pub data_type: ColumnType,
    /// False after `NOT NULL`.
    pub nullable: bool,
    /// What ingest fills in where a row leaves the column out.
    pub default: Option<DefaultValue>,
    /// Where its values come from.
    #[serde(default)]
    pub source: ColumnSource,
}

/// Where a column's values come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnSource {
    /// The record's value: what was posted.
    #[default]
    Record,
    /// `METADATA FROM '…'`: what the log knows of the record. Nobody can post it, and records do not hold it.
    Metadata(MetadataField),
}

/// What the log knows of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetadataField {
    /// The partition's number: INT.
    Partition,
    /// Its place in the partition: BIGINT.
    OffsetId,
    /// The log's time of it: BIGINT in milliseconds, or TIMESTAMP.
    Timestamp,
    /// The topic's name: TEXT.
    Topic,
    /// The record's key, null where it has none: BYTEA, or TEXT, which is null where the key is no UTF-8.
    Key,
}

/// A column's `DEFAULT`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DefaultValue {
    /// `now()`: the request's receipt time.
    Now,
    /// A literal, as JSON.
    Literal(serde_json::Value),
}

/// `WATERMARK FOR column AS (column - INTERVAL …)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// The event-time column: TIMESTAMP, NOT NULL.
    pub column: String,
    /// How far the watermark stays behind the largest event time, in nanoseconds.
    pub delay_ns: i64,
}
