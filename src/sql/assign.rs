//! What a `SELECT` gives → the columns of the table it is written to, by position.

use arrow::compute::can_cast_types;
use arrow::datatypes::DataType;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder};
use datafusion::sql::sqlparser::ast::Query as SqlQuery;
use datafusion::sql::sqlparser::tokenizer::Span;

use super::diagnostic::Finding;
use super::errors;
use crate::reaction::schema::arrow_type;
use crate::reaction::table::{Column, Table};

/// The plan with its columns cast to the sink's, by position.
pub(super) fn into_sink(
    plan: LogicalPlan,
    sink: &Table,
    select: &SqlQuery,
) -> Result<(LogicalPlan, Vec<Finding>), Vec<Finding>> {
    let columns = plan.schema().columns();
    if columns.len() != sink.columns.len() {
        let listed: Vec<String> =
            sink.columns.iter().map(|c| format!("{} {}", c.name, c.data_type.sql_name())).collect();
        let at = if columns.len() > sink.columns.len() {
            errors::output_column(select, sink.columns.len())
        } else {
            errors::first_word(select)
        };
        let message = format!(
            "the SELECT gives {} columns, table '{}' has {}",
            columns.len(),
            sink.name,
            sink.columns.len()
        );
        return Err(vec![Finding::error(at, message).help(format!("columns: {}", listed.join(", ")))]);
    }
    let mut exprs = Vec::new();
    let mut errors = Vec::new();
    let mut warnings = Vec::new();
    for (index, (column, target)) in columns.into_iter().zip(&sink.columns).enumerate() {
        let field = plan.schema().field(index);
        let (from, to) = (field.data_type(), arrow_type(target.data_type));
        let at = errors::output_column(select, index);
        if !is_assignable(from, &to) {
            errors.push(unassignable(at, from, &sink.name, target));
            continue;
        }
        if field.is_nullable() && !target.nullable {
            let message =
                format!("column '{}' of '{}' is NOT NULL, this may be null", target.name, sink.name);
            warnings.push(Finding::warning(at, message).help("a null would be written as null"));
        }
        let expr = Expr::Column(column);
        let cast = if *from == to { Ok(expr) } else { expr.cast_to(&to, plan.schema()) };
        match cast {
            Ok(expr) => exprs.push(expr.alias(&target.name)),
            Err(_) => errors.push(unassignable(at, from, &sink.name, target)),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let built = LogicalPlanBuilder::from(plan).project(exprs).and_then(LogicalPlanBuilder::build);
    built.map(|plan| (plan, warnings)).map_err(|error| vec![errors::finding(&error, select, false)])
}

fn unassignable(at: Span, from: &DataType, sink: &str, target: &Column) -> Finding {
    let to = target.data_type.sql_name();
    let message = format!("column '{}' of '{sink}' is {to}, this is {}", target.name, sql_name(from));
    Finding::error(at, message).help(match from {
        DataType::Struct(_) => "write window.start or window.end".to_owned(),
        _ => format!("columns go by position; put the right one here, or write CAST(… AS {to})"),
    })
}

/// What an INSERT casts by itself: within numbers, within times, anything to text. Text to numbers is a CAST to be
/// written: it can fail at any row.
pub(super) fn is_assignable(from: &DataType, to: &DataType) -> bool {
    match to {
        _ if from == to || from.is_null() => true,
        DataType::Utf8 => !from.is_nested() && !from.is_binary() && can_cast_types(from, to),
        DataType::Timestamp(..) => {
            matches!(from, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64)
        }
        DataType::List(to) => match from {
            DataType::List(from) => is_assignable(from.data_type(), to.data_type()),
            _ => false,
        },
        to if to.is_numeric() => from.is_numeric(),
        _ => false,
    }
}

pub(super) fn sql_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "TEXT".to_owned(),
        DataType::Int32 => "INT".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::UInt32 => "INT UNSIGNED".to_owned(),
        DataType::UInt64 => "BIGINT UNSIGNED".to_owned(),
        DataType::Float32 => "FLOAT".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Timestamp(..) => "TIMESTAMP".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BYTEA".to_owned(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::List(item) | DataType::LargeList(item) => format!("{}[]", sql_name(item.data_type())),
        DataType::Struct(_) => "a window".to_owned(),
        other => other.to_string(),
    }
}
