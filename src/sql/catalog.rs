//! `CREATE TABLE` → [`Table`]: types, defaults, watermark and options are checked, each at its place in the text.

use std::collections::BTreeMap;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, DataType, ExactNumberInfo, Expr, FunctionArguments, Ident, TimezoneInfo, UnaryOperator,
    Value,
};
use datafusion::sql::sqlparser::tokenizer::Span;

use super::diagnostic::Finding;
use super::options::{self, TableOptions};
use super::parse::{ColumnDecl, CreateTable, WatermarkDecl};
use super::planner::Planner;
use crate::reaction::table::{Column, ColumnType, DefaultValue, Format, Table, TableKind, Watermark};
use crate::reaction::time::{format_rfc3339, parse_rfc3339};

/// The table that a `CREATE TABLE` declares, or everything that is wrong with it.
pub(crate) fn table(decl: &CreateTable, planner: &Planner) -> Result<Table, Vec<Finding>> {
    let mut findings = Vec::new();
    let options = options::read(decl, &mut findings);
    let columns = columns(decl, options.kind, &mut findings);
    let watermark = watermark(decl, &options, &columns, planner, &mut findings);
    let name = normalized(&decl.name);
    if let Some((key_field, at)) = &options.key_field
        && !columns.iter().any(|column| column.name == *key_field)
    {
        let finding = Finding::error(*at, format!("table '{name}' has no column '{key_field}'"));
        findings.push(finding.help_nearest(key_field, "its columns", names(&columns)));
    }
    let (Some(kind), true) = (options.kind, findings.is_empty()) else { return Err(findings) };
    Ok(Table {
        topic: options.topic.unwrap_or_else(|| name.clone()),
        name,
        kind,
        format: options.format.unwrap_or(match kind {
            TableKind::Source => Format::Arrow,
            TableKind::Sink => Format::Json,
        }),
        columns,
        watermark,
        key_field: options.key_field.map(|(field, _)| field),
        options: decl
            .options
            .iter()
            .map(|o| (o.key.value.clone(), o.value.clone()))
            .collect::<BTreeMap<_, _>>(),
    })
}

/// Names are lower-case unless double-quoted.
pub(crate) fn normalized(ident: &Ident) -> String {
    match ident.quote_style {
        None => ident.value.to_lowercase(),
        Some(_) => ident.value.clone(),
    }
}

fn names(columns: &[Column]) -> impl Iterator<Item = &str> {
    columns.iter().map(|column| column.name.as_str())
}

fn columns(decl: &CreateTable, kind: Option<TableKind>, findings: &mut Vec<Finding>) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    for column in &decl.columns {
        let name = normalized(&column.name);
        if columns.iter().any(|other| other.name == name) {
            findings.push(Finding::error(column.name.span, format!("column '{name}' is declared twice")));
        }
        for (at, what) in &column.unsupported {
            findings.push(Finding::error(*at, format!("{what} is not supported yet")));
        }
        // A column of an unknown type is kept as text, so that what refers to it is not reported too.
        let data_type = column_type(&column.data_type, column.type_at).unwrap_or_else(|finding| {
            findings.push(finding);
            ColumnType::Text
        });
        let default = default(column, data_type, kind).unwrap_or_else(|finding| {
            findings.push(finding);
            None
        });
        columns.push(Column { name, data_type, nullable: !column.not_null, default });
    }
    if columns.is_empty() {
        findings.push(Finding::error(decl.name.span, "a table needs at least one column"));
    }
    columns
}

const TYPE_NAMES: [&str; 9] =
    ["TEXT", "TIMESTAMP", "INT", "BIGINT", "INT UNSIGNED", "BIGINT UNSIGNED", "FLOAT", "DOUBLE", "BOOLEAN"];

fn column_type(data_type: &DataType, at: Span) -> Result<ColumnType, Finding> {
    Ok(match data_type {
        DataType::Text | DataType::Varchar(None) | DataType::String(None) => ColumnType::Text,
        DataType::Timestamp(None | Some(9), TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
            ColumnType::Timestamp
        }
        DataType::Int(None) | DataType::Integer(None) => ColumnType::Int,
        DataType::BigInt(None) => ColumnType::Bigint,
        DataType::IntUnsigned(None) | DataType::IntegerUnsigned(None) => ColumnType::IntUnsigned,
        DataType::BigIntUnsigned(None) => ColumnType::BigintUnsigned,
        DataType::Float(ExactNumberInfo::None) | DataType::Real => ColumnType::Float,
        DataType::Double(ExactNumberInfo::None) | DataType::DoublePrecision => ColumnType::Double,
        DataType::Boolean | DataType::Bool => ColumnType::Boolean,
        DataType::Bytea | DataType::Decimal(_) | DataType::Numeric(_) | DataType::Array(_) => {
            return Err(Finding::error(at, format!("columns of type {data_type} are not supported yet")));
        }
        DataType::Timestamp(..) => {
            let finding = Finding::error(at, format!("{data_type} is no type of this dialect"));
            return Err(finding.help("write TIMESTAMP: nanoseconds, UTC, without zone"));
        }
        DataType::Varchar(Some(_)) | DataType::String(Some(_)) => {
            let finding = Finding::error(at, format!("the length of {data_type} would not be enforced"));
            return Err(finding.help("write TEXT"));
        }
        other => {
            let name = other.to_string();
            let finding = Finding::error(at, format!("unknown type {name}"));
            return Err(finding.help_nearest(&name, "types", TYPE_NAMES));
        }
    })
}

fn default(
    column: &ColumnDecl,
    data_type: ColumnType,
    kind: Option<TableKind>,
) -> Result<Option<DefaultValue>, Finding> {
    let Some((expr, at)) = &column.default else { return Ok(None) };
    if kind == Some(TableKind::Sink) {
        let finding = Finding::error(*at, "DEFAULT is what ingest fills in; nobody posts into a sink");
        return Err(finding.help("leave DEFAULT out"));
    }
    let mismatch = |message: String, help: &str| Err(Finding::error(*at, message).help(help));
    match default_literal(expr) {
        Some(Literal::Null) if column.not_null => {
            mismatch("DEFAULT NULL contradicts NOT NULL".into(), "leave one of them out")
        }
        Some(Literal::Null) => Ok(None),
        Some(Literal::Now) if data_type == ColumnType::Timestamp => Ok(Some(DefaultValue::Now)),
        Some(Literal::Value(value)) => match default_value(&value, data_type) {
            Ok(value) => Ok(Some(DefaultValue::Literal(value))),
            Err(message) => mismatch(message, default_example(data_type)),
        },
        Some(Literal::Now) => mismatch(
            format!("now() is a TIMESTAMP, the column is {}", data_type.sql_name()),
            default_example(data_type),
        ),
        None => mismatch(
            "DEFAULT takes now() or a literal of the column's type".into(),
            default_example(data_type),
        ),
    }
}

enum Literal {
    Null,
    Now,
    Value(Value),
}

fn default_literal(expr: &Expr) -> Option<Literal> {
    match expr {
        Expr::Value(value) if value.value == Value::Null => Some(Literal::Null),
        Expr::Value(value) => Some(Literal::Value(value.value.clone())),
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match expr.as_ref() {
            Expr::Value(value) => match &value.value {
                Value::Number(digits, long) => {
                    Some(Literal::Value(Value::Number(format!("-{digits}"), *long)))
                }
                _ => None,
            },
            _ => None,
        },
        Expr::Function(function) => {
            let empty = match &function.args {
                FunctionArguments::List(list) => list.args.is_empty() && list.clauses.is_empty(),
                _ => false,
            };
            (empty && function.name.to_string().eq_ignore_ascii_case("now")).then_some(Literal::Now)
        }
        _ => None,
    }
}

fn default_value(value: &Value, data_type: ColumnType) -> Result<serde_json::Value, String> {
    let mismatch = || format!("{value} is no {}", data_type.sql_name());
    let integer = |range: std::ops::RangeInclusive<i128>| match value {
        Value::Number(digits, _) => match digits.parse::<i128>() {
            Ok(number) if range.contains(&number) => {
                let json = i64::try_from(number).map(serde_json::Value::from);
                json.or_else(|_| u64::try_from(number).map(serde_json::Value::from)).map_err(|_| mismatch())
            }
            Ok(_) => Err(format!("{value} is outside the range of {}", data_type.sql_name())),
            Err(_) => Err(mismatch()),
        },
        _ => Err(mismatch()),
    };
    match (data_type, value) {
        (ColumnType::Text, Value::SingleQuotedString(text)) => Ok(text.as_str().into()),
        (ColumnType::Timestamp, Value::SingleQuotedString(text)) => {
            parse_rfc3339(text).map(|ns| format_rfc3339(ns).into())
        }
        (ColumnType::Boolean, Value::Boolean(value)) => Ok((*value).into()),
        (ColumnType::Int, _) => integer(i128::from(i32::MIN)..=i128::from(i32::MAX)),
        (ColumnType::Bigint, _) => integer(i128::from(i64::MIN)..=i128::from(i64::MAX)),
        (ColumnType::IntUnsigned, _) => integer(0..=i128::from(u32::MAX)),
        (ColumnType::BigintUnsigned, _) => integer(0..=i128::from(u64::MAX)),
        (ColumnType::Float | ColumnType::Double, Value::Number(digits, _)) => {
            let number: f64 = digits.parse().map_err(|_| mismatch())?;
            serde_json::Number::from_f64(number).map(serde_json::Value::Number).ok_or_else(mismatch)
        }
        _ => Err(mismatch()),
    }
}

fn default_example(data_type: ColumnType) -> &'static str {
    match data_type {
        ColumnType::Text => "write text in single quotes, such as DEFAULT 'main'",
        ColumnType::Timestamp => "write DEFAULT now() or a time such as DEFAULT '2026-01-31T18:30:00Z'",
        ColumnType::Boolean => "write DEFAULT true or DEFAULT false",
        ColumnType::Float | ColumnType::Double => "write a number, such as DEFAULT 1.5",
        _ => "write a whole number, such as DEFAULT 1",
    }
}

fn watermark(
    decl: &CreateTable,
    options: &TableOptions,
    columns: &[Column],
    planner: &Planner,
    findings: &mut Vec<Finding>,
) -> Option<Watermark> {
    if let Some(second) = decl.watermarks.get(1) {
        findings.push(Finding::error(second.at, "a table has one watermark"));
    }
    match (decl.watermarks.first(), options.kind) {
        (Some(mark), Some(TableKind::Sink)) => {
            let finding = Finding::error(mark.at, "a sink has no watermark: its windows are closed already");
            findings.push(finding.help("leave WATERMARK FOR out"));
            None
        }
        (None, Some(TableKind::Source)) => {
            findings.push(missing_watermark(decl, columns));
            None
        }
        (Some(mark), _) => {
            let column = normalized(&mark.column);
            let before = findings.len();
            check_event_time(decl, mark, &column, columns, findings);
            let delay = if findings.len() == before { delay_ns(mark, &column, planner) } else { Ok(0) };
            let delay_ns = delay.map_err(|finding| findings.push(finding)).ok()?;
            Some(Watermark { column, delay_ns })
        }
        (None, _) => None,
    }
}

/// Elsewhere a source without one gets the record's timestamp minus a second; a record here has many rows.
fn missing_watermark(decl: &CreateTable, columns: &[Column]) -> Finding {
    let name = normalized(&decl.name);
    let time = columns.iter().find(|c| c.data_type == ColumnType::Timestamp && !c.nullable);
    let column = time.map_or("timestamp", |column| column.name.as_str());
    let message = format!("source table '{name}' declares no event time; a default is not supported yet");
    Finding::error(decl.name.span, message).help(format!(
        "add WATERMARK FOR {column} AS ({column} - INTERVAL '500 milliseconds') behind its columns"
    ))
}

fn check_event_time(
    decl: &CreateTable,
    mark: &WatermarkDecl,
    name: &str,
    columns: &[Column],
    findings: &mut Vec<Finding>,
) {
    let at = mark.column.span;
    let Some(index) = columns.iter().position(|column| column.name == name) else {
        let finding =
            Finding::error(at, format!("table '{}' has no column '{name}'", normalized(&decl.name)));
        findings.push(finding.help_nearest(name, "its columns", names(columns)));
        return;
    };
    let column = &columns[index];
    let Some(declared) = decl.columns.get(index) else { return };
    let type_at = declared.type_at;
    if column_type(&declared.data_type, type_at).is_err() {
        return; // reported already
    }
    if column.data_type != ColumnType::Timestamp {
        let message =
            format!("event time '{name}' must be a TIMESTAMP, it is {}", column.data_type.sql_name());
        findings.push(Finding::error(type_at, message).help(format!("write {name} TIMESTAMP NOT NULL")));
    } else if column.nullable {
        let message = format!("event time '{name}' must be NOT NULL");
        findings.push(Finding::error(type_at, message).help(format!("write {name} TIMESTAMP NOT NULL")));
    }
}

/// `column`, or `column - INTERVAL '…'`.
fn delay_ns(mark: &WatermarkDecl, column: &str, planner: &Planner) -> Result<i64, Finding> {
    let Some((expr, at)) = &mark.expr else { return Ok(0) };
    let wrong = || {
        let finding = Finding::error(*at, format!("a watermark is '{column}' minus a constant interval"));
        finding.help(format!("write ({column} - INTERVAL '500 milliseconds')"))
    };
    let is_column = |expr: &Expr| matches!(expr, Expr::Identifier(ident) if normalized(ident) == column);
    match unnested(expr) {
        expr if is_column(expr) => Ok(0),
        Expr::BinaryOp { left, op: BinaryOperator::Minus, right } if is_column(unnested(left)) => {
            let delay = planner.constant_interval(unnested(right)).ok_or_else(wrong)?;
            let delay = delay.map_err(|why| {
                Finding::error(*at, why).help(format!("write ({column} - INTERVAL '500 milliseconds')"))
            })?;
            if delay < 0 {
                return Err(Finding::error(*at, "the watermark would run ahead of event time")
                    .help(format!("write ({column} - INTERVAL '0 seconds') or a longer interval")));
            }
            Ok(delay)
        }
        _ => Err(wrong()),
    }
}

fn unnested(expr: &Expr) -> &Expr {
    match expr {
        Expr::Nested(inner) => unnested(inner),
        other => other,
    }
}
