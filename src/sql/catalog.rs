//! `CREATE TABLE` → [`Table`]: columns, watermark and options are checked, each at its place in the text.

use datafusion::sql::sqlparser::ast::Ident;

use super::diagnostic::Finding;
use super::options::{self, Options};
use super::parse::{ColumnDecl, CreateTable};
use super::planner::Planner;
use super::{event_time, types};
use crate::reaction::table::{
    Column, ColumnSource, ColumnType, Connector, Format, MetadataField, Table, TableKind, TableOptions,
};

/// The table that a `CREATE TABLE` declares, or everything that is wrong with it.
///
/// Its columns are those of the record first, then those that metadata fills in; what is GENERATED is in `generated.rs`.
pub(crate) fn table(decl: &CreateTable, planner: &Planner) -> Result<Table, Vec<Finding>> {
    let mut findings = Vec::new();
    let options = options::read(decl, planner, &mut findings);
    let mut columns = columns(decl, &options, &mut findings);
    if matches!(options.with.connector, Connector::Impulse { .. }) {
        impulse_columns(decl, &mut columns, &mut findings);
    } else if !columns.iter().any(|column| column.source == ColumnSource::Record) {
        let finding = Finding::error(decl.name.span, "a table needs at least one column that its rows hold");
        findings.push(finding.help("declare one that is neither GENERATED nor from METADATA"));
    }
    check_format(decl, &options, &columns, &mut findings);
    columns.sort_by_key(|column| column.source != ColumnSource::Record);
    let watermark = event_time::watermark(decl, &options, &mut columns, planner, &mut findings);
    let name = normalized(&decl.name);
    if let Some((key_field, at)) = &options.key_field
        && !columns.iter().any(|column| column.name == *key_field)
    {
        let finding = Finding::error(*at, format!("table '{name}' has no column '{key_field}'"));
        findings.push(finding.help_nearest(key_field, "its columns", names(&columns)));
    }
    findings.extend(check_timestamp_field(&name, &options, &columns).err());
    let (Some(kind), true) = (options.kind, findings.is_empty()) else { return Err(findings) };
    let timestamp_field = options.timestamp_field.map(|(field, _)| field);
    Ok(Table {
        topic: options.topic.clone().unwrap_or_else(|| name.clone()),
        name,
        kind,
        format: options.format.unwrap_or_else(|| options::default_format(&options.with.connector, kind)),
        columns,
        watermark,
        key_field: options.key_field.map(|(field, _)| field),
        options: decl.options.iter().map(|o| (o.key.value.clone(), o.value.clone())).collect(),
        with: TableOptions { timestamp_field, ..options.with },
    })
}

/// What the records are stamped with is a time.
fn check_timestamp_field(table: &str, options: &Options, columns: &[Column]) -> Result<(), Finding> {
    let Some((field, at)) = &options.timestamp_field else { return Ok(()) };
    match columns.iter().find(|column| column.name == *field) {
        None => {
            let finding = Finding::error(*at, format!("table '{table}' has no column '{field}'"));
            Err(finding.help_nearest(field, "its columns", names(columns)))
        }
        Some(column) if column.data_type != ColumnType::Timestamp => {
            let sql = column.data_type.sql_name();
            let finding =
                Finding::error(*at, format!("column '{field}' is {sql}; records are stamped with a time"));
            Err(finding.help("name a TIMESTAMP column, or leave the option out"))
        }
        Some(_) => Ok(()),
    }
}

/// Names are lower-case unless double-quoted.
pub(crate) fn normalized(ident: &Ident) -> String {
    match ident.quote_style {
        None => ident.value.to_lowercase(),
        Some(_) => ident.value.clone(),
    }
}

/// The declaration of the column of that name.
pub(crate) fn column_decl<'a>(decl: &'a CreateTable, name: &str) -> Option<&'a ColumnDecl> {
    decl.columns.iter().find(|column| normalized(&column.name) == name)
}

fn names(columns: &[Column]) -> impl Iterator<Item = &str> {
    columns.iter().map(|column| column.name.as_str())
}

/// All declared columns but the GENERATED ones, which are checked here too.
fn columns(decl: &CreateTable, options: &Options, findings: &mut Vec<Finding>) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    for (index, column) in decl.columns.iter().enumerate() {
        let name = normalized(&column.name);
        if decl.columns[..index].iter().any(|other| normalized(&other.name) == name) {
            findings.push(Finding::error(column.name.span, format!("column '{name}' is declared twice")));
        }
        // A column of an unknown type is kept as text, so that what refers to it is not reported too.
        let data_type = types::column_type(&column.data_type, column.type_at).unwrap_or_else(|finding| {
            findings.push(finding);
            ColumnType::Text
        });
        let default = types::default(column, data_type, options.kind).unwrap_or_else(|finding| {
            findings.push(finding);
            None
        });
        let source = source(column, data_type, options).unwrap_or_else(|finding| {
            findings.push(finding);
            ColumnSource::Record
        });
        if column.generated.is_none() {
            columns.push(Column { name, data_type, nullable: !column.not_null, default, source });
        }
    }
    columns
}

/// Where a column's values come from.
fn source(column: &ColumnDecl, data_type: ColumnType, options: &Options) -> Result<ColumnSource, Finding> {
    let filled_in = column.generated.as_ref().map(|(_, at)| ("GENERATED ALWAYS AS", *at));
    let filled_in = filled_in.or(column.metadata.as_ref().map(|(_, at)| ("METADATA FROM", *at)));
    if let (Some((what, at)), Some(TableKind::Sink)) = (filled_in, options.kind) {
        let finding = Finding::error(at, format!("{what} is for sources; a sink's columns are written"));
        return Err(finding.help("compute it in the SELECT"));
    }
    let Some((name, at)) = &column.metadata else { return Ok(ColumnSource::Record) };
    if column.generated.is_some() {
        let finding = Finding::error(*at, "a column is GENERATED or from METADATA, not both");
        return Err(finding.help("leave one of them out"));
    }
    if options.with.connector != Connector::Kafka {
        let finding = Finding::error(*at, "only records of connector 'kafka' have METADATA");
        return Err(finding.help("leave the column out"));
    }
    let Some((_, field, types)) = METADATA.iter().find(|(known, ..)| known == name) else {
        let finding = Finding::error(*at, format!("unknown metadata '{name}'"));
        return Err(finding.help_nearest(name, "metadata", METADATA.iter().map(|(known, ..)| *known)));
    };
    if !types.contains(&data_type) {
        let listed: Vec<String> = types.iter().map(|known| known.sql_name()).collect();
        let listed = listed.join(" or ");
        let message = format!("metadata '{name}' is {listed}, the column is {}", data_type.sql_name());
        return Err(Finding::error(column.type_at, message).help(format!("write {listed}")));
    }
    if *field == MetadataField::Key && column.not_null {
        let finding =
            Finding::error(column.type_at, "a record's key may be null, so this column is not NOT NULL");
        return Err(finding.help("leave NOT NULL out"));
    }
    Ok(ColumnSource::Metadata(*field))
}

/// What the log knows of a record, and the types it can have.
const METADATA: [(&str, MetadataField, &[ColumnType]); 5] = [
    ("partition", MetadataField::Partition, &[ColumnType::Int]),
    ("offset_id", MetadataField::OffsetId, &[ColumnType::Bigint]),
    ("timestamp", MetadataField::Timestamp, &[ColumnType::Bigint, ColumnType::Timestamp]),
    ("topic", MetadataField::Topic, &[ColumnType::Text]),
    ("key", MetadataField::Key, &[ColumnType::Bytea, ColumnType::Text]),
];

/// What an impulse gives, as in Arroyo: a number that grows by one, and which of several sources made it, here always 0.
const IMPULSE: [&str; 2] = ["counter", "subtask_index"];

/// An impulse's columns need not be declared, and cannot be others.
fn impulse_columns(decl: &CreateTable, columns: &mut Vec<Column>, findings: &mut Vec<Finding>) {
    let implied = IMPULSE.map(|name| Column {
        name: name.to_owned(),
        data_type: ColumnType::BigintUnsigned,
        nullable: false,
        default: None,
        source: ColumnSource::Record,
    });
    if columns.is_empty() {
        columns.extend(implied);
    } else if *columns != implied {
        let at = decl.columns.first().map_or(decl.name.span, |column| column.name.span);
        let finding = Finding::error(at, "an impulse has its own columns");
        findings.push(finding.help(
            "leave them out, or write counter BIGINT UNSIGNED NOT NULL, subtask_index BIGINT UNSIGNED NOT NULL",
        ));
    }
    if let Some(mark) = decl.watermarks.first() {
        let finding = Finding::error(mark.at, "an impulse has its own event time: when each row is made");
        findings.push(finding.help("leave WATERMARK FOR out"));
    }
}

/// `raw_string` has one column, TEXT; a source's is called `value`.
fn check_format(decl: &CreateTable, options: &Options, columns: &[Column], findings: &mut Vec<Finding>) {
    if options.format != Some(Format::RawString) {
        return;
    }
    let mut held = columns.iter().filter(|column| column.source == ColumnSource::Record);
    let is_source = options.kind != Some(TableKind::Sink);
    let fits = match (held.next(), held.next()) {
        (Some(only), None) => (!is_source || only.name == "value") && only.data_type == ColumnType::Text,
        _ => false,
    };
    if !fits {
        let message = match is_source {
            true => "a table in format 'raw_string' has one column, the text",
            false => "a sink in format 'raw_string' has exactly one column, TEXT",
        };
        findings.push(Finding::error(decl.name.span, message).help("write (value TEXT NOT NULL)"));
    }
}
