//! A table as the DDL declares it: what every stage needs to know of a source or a sink.
//!
//! Serialised to JSON in the program topic, from which ingest, publisher and query learn the tables.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
    /// In declaration order.
    pub columns: Vec<Column>,
    /// What `WATERMARK FOR` says; sources only.
    pub watermark: Option<Watermark>,
    /// `'sink.key_field'`: the column whose text is the records' key.
    pub key_field: Option<String>,
    /// Every `WITH` option as written, for what has no field of its own.
    pub options: BTreeMap<String, String>,
}

impl Table {
    /// The column of that name and its place.
    pub fn column(&self, name: &str) -> Option<(usize, &Column)> {
        self.columns.iter().enumerate().find(|(_, column)| column.name == name)
    }
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
    /// One JSON object per record.
    Json,
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
}

/// The SQL types of the dialect. Their text form is the SQL name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ColumnType {
    /// UTF-8 text.
    Text,
    /// Nanoseconds since the Unix epoch, UTC, without zone.
    Timestamp,
    /// 32-bit integer.
    Int,
    /// 64-bit integer.
    Bigint,
    /// 32-bit unsigned integer.
    #[serde(rename = "INT UNSIGNED")]
    IntUnsigned,
    /// 64-bit unsigned integer.
    #[serde(rename = "BIGINT UNSIGNED")]
    BigintUnsigned,
    /// 32-bit float.
    Float,
    /// 64-bit float.
    Double,
    /// True or false.
    Boolean,
}

impl ColumnType {
    /// The name as SQL writes it.
    pub fn sql_name(self) -> &'static str {
        match self {
            Self::Text => "TEXT",
            Self::Timestamp => "TIMESTAMP",
            Self::Int => "INT",
            Self::Bigint => "BIGINT",
            Self::IntUnsigned => "INT UNSIGNED",
            Self::BigintUnsigned => "BIGINT UNSIGNED",
            Self::Float => "FLOAT",
            Self::Double => "DOUBLE",
            Self::Boolean => "BOOLEAN",
        }
    }
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
