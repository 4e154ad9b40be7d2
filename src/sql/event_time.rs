//! A source's event time and watermark, in each of the ways the dialect has to declare them.
//!
//! `WATERMARK FOR column [AS (column - INTERVAL …)]`; or the older `event_time_field = 'column'` with `watermark_field = 'wm'`, where
//! `wm` is GENERATED as `column - INTERVAL …`; or nothing: then it is the log's time of each record, a second behind, and a
//! file is a static table.

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr};
use datafusion::sql::sqlparser::tokenizer::Span;

use super::catalog::{column_decl, normalized};
use super::diagnostic::Finding;
use super::options::Options;
use super::parse::CreateTable;
use super::planner::Planner;
use super::types::column_type;
use crate::reaction::table::{
    Column, ColumnSource, ColumnType, Connector, IMPLIED_EVENT_TIME, MetadataField, TableKind, Watermark,
};

/// How far the watermark stays behind where nothing says how far.
const IMPLIED_DELAY_NS: i64 = 1_000_000_000;

/// The table's watermark; none for sinks. Adds the column of an implied event time to `columns`.
pub(crate) fn watermark(
    decl: &CreateTable,
    options: &Options,
    columns: &mut Vec<Column>,
    planner: &Planner,
    findings: &mut Vec<Finding>,
) -> Option<Watermark> {
    if let Some(second) = decl.watermarks.get(1) {
        findings.push(Finding::error(second.at, "a table has one watermark"));
    }
    let declared = decl.watermarks.first();
    if options.kind != Some(TableKind::Source) {
        if let (Some(mark), Some(TableKind::Sink)) = (declared, options.kind) {
            let finding = Finding::error(mark.at, "a sink has no watermark: its windows are closed already");
            findings.push(finding.help("leave WATERMARK FOR out"));
        }
        return None;
    }
    let found = match (declared, &options.event_time_field, &options.watermark_field) {
        (Some(_), Some((_, at)), _) | (Some(_), None, Some((_, at))) => {
            let finding = Finding::error(*at, "the table has WATERMARK FOR, which says the same");
            Err(finding.help("leave one of the two out"))
        }
        (None, None, Some((_, at))) => {
            let finding = Finding::error(*at, "a watermark needs the event time it follows");
            Err(finding.help("add event_time_field = '…', or write WATERMARK FOR column"))
        }
        (Some(mark), None, None) => {
            let column = normalized(&mark.column);
            check_event_time(decl, &column, mark.column.span, columns).and_then(|()| {
                let delay = mark.expr.as_ref().map(|(expr, at)| delay_ns(expr, *at, &column, planner));
                Ok(Watermark { column, delay_ns: delay.transpose()?.unwrap_or_default() })
            })
        }
        (None, Some((column, at)), watermark_field) => {
            check_event_time(decl, column, *at, columns).and_then(|()| {
                let delay = watermark_field
                    .as_ref()
                    .map(|(name, at)| generated_delay(decl, name, *at, column, planner));
                let delay_ns = delay.transpose()?.unwrap_or(IMPLIED_DELAY_NS);
                Ok(Watermark { column: column.clone(), delay_ns })
            })
        }
        // What declares no event time does not grow: it is looked up in.
        (None, None, None) if matches!(options.with.connector, Connector::SingleFile { .. }) => return None,
        (None, None, None) => implied(decl, columns),
    };
    found.map_err(|finding| findings.push(finding)).ok()
}

/// The log's time of each record, a second behind.
fn implied(decl: &CreateTable, columns: &mut Vec<Column>) -> Result<Watermark, Finding> {
    if let Some(taken) = column_decl(decl, IMPLIED_EVENT_TIME) {
        let finding = Finding::error(
            taken.name.span,
            "without a watermark, '_timestamp' is the log's time of a record",
        );
        return Err(finding.help("choose another name, or declare a WATERMARK"));
    }
    columns.push(Column {
        name: IMPLIED_EVENT_TIME.to_owned(),
        data_type: ColumnType::Timestamp,
        nullable: false,
        default: None,
        source: ColumnSource::Metadata(MetadataField::Timestamp),
    });
    Ok(Watermark { column: IMPLIED_EVENT_TIME.to_owned(), delay_ns: IMPLIED_DELAY_NS })
}

/// The event time is a TIMESTAMP NOT NULL that a record holds or its metadata gives.
fn check_event_time(decl: &CreateTable, name: &str, at: Span, columns: &[Column]) -> Result<(), Finding> {
    let Some(declared) = column_decl(decl, name) else {
        let finding =
            Finding::error(at, format!("table '{}' has no column '{name}'", normalized(&decl.name)));
        return Err(finding.help_nearest(name, "its columns", columns.iter().map(|c| c.name.as_str())));
    };
    if let Some((_, generated_at)) = &declared.generated {
        let message = format!("event time '{name}' is GENERATED, which is not supported yet");
        let finding = Finding::error(*generated_at, message);
        return Err(finding.help("declare the watermark for a column that is posted"));
    }
    let Ok(data_type) = column_type(&declared.data_type, declared.type_at) else {
        return Ok(()); // reported already
    };
    let help = format!("write {name} TIMESTAMP NOT NULL");
    if data_type != ColumnType::Timestamp {
        let message = format!("event time '{name}' must be a TIMESTAMP, it is {}", data_type.sql_name());
        return Err(Finding::error(declared.type_at, message).help(help));
    }
    if !declared.not_null {
        let message = format!("event time '{name}' must be NOT NULL");
        return Err(Finding::error(declared.type_at, message).help(help));
    }
    Ok(())
}

/// The delay of the older form: that of the GENERATED column `name`.
fn generated_delay(
    decl: &CreateTable,
    name: &str,
    at: Span,
    event_time: &str,
    planner: &Planner,
) -> Result<i64, Finding> {
    let Some(declared) = column_decl(decl, name) else {
        let finding =
            Finding::error(at, format!("table '{}' has no column '{name}'", normalized(&decl.name)));
        let names: Vec<String> = decl.columns.iter().map(|column| normalized(&column.name)).collect();
        return Err(finding.help_nearest(name, "its columns", names.iter().map(String::as_str)));
    };
    let Some((expr, expr_at)) = &declared.generated else {
        let finding = Finding::error(declared.type_at, format!("the watermark '{name}' must be GENERATED"));
        return Err(finding.help(format!(
            "write {name} TIMESTAMP GENERATED ALWAYS AS ({event_time} - INTERVAL '500 milliseconds') STORED"
        )));
    };
    delay_ns(expr, *expr_at, event_time, planner)
}

/// `column`, or `column - INTERVAL '…'`.
fn delay_ns(expr: &Expr, at: Span, column: &str, planner: &Planner) -> Result<i64, Finding> {
    let wrong = || {
        let finding = Finding::error(at, format!("a watermark is '{column}' minus a constant interval"));
        finding.help(format!("write ({column} - INTERVAL '500 milliseconds')"))
    };
    let is_column = |expr: &Expr| matches!(expr, Expr::Identifier(ident) if normalized(ident) == column);
    match unnested(expr) {
        expr if is_column(expr) => Ok(0),
        Expr::BinaryOp { left, op: BinaryOperator::Minus, right } if is_column(unnested(left)) => {
            let delay = planner.constant_interval(unnested(right)).ok_or_else(wrong)?;
            let delay = delay.map_err(|why| {
                Finding::error(at, why).help(format!("write ({column} - INTERVAL '500 milliseconds')"))
            })?;
            if delay < 0 {
                return Err(Finding::error(at, "the watermark would run ahead of event time")
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
