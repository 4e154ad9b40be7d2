//! Column types and `DEFAULT`s as written → those of the domain.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, DataType, ExactNumberInfo, Expr, FunctionArguments, TimezoneInfo, UnaryOperator, Value,
};
use datafusion::sql::sqlparser::tokenizer::Span;
use serde_json::Value as Json;

use super::diagnostic::Finding;
use super::parse::ColumnDecl;
use crate::reaction::decimal::{DecimalError, format_decimal, parse_decimal};
use crate::reaction::table::{ColumnType, DefaultValue, TableKind};
use crate::reaction::time::{format_rfc3339, parse_rfc3339};

const TYPE_NAMES: [&str; 12] = [
    "TEXT",
    "TIMESTAMP",
    "INT",
    "BIGINT",
    "INT UNSIGNED",
    "BIGINT UNSIGNED",
    "FLOAT",
    "DOUBLE",
    "BOOLEAN",
    "BYTEA",
    "DECIMAL(10, 2)",
    "TEXT[]",
];

/// The type that a column's declaration names.
pub(crate) fn column_type(data_type: &DataType, at: Span) -> Result<ColumnType, Finding> {
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
        DataType::Bytea => ColumnType::Bytea,
        DataType::Decimal(digits) | DataType::Numeric(digits) => decimal(data_type, digits, at)?,
        DataType::Array(
            ArrayElemTypeDef::SquareBracket(item, None) | ArrayElemTypeDef::AngleBracket(item),
        ) => {
            let item_type = column_type(item, at)?;
            item_type.array().ok_or_else(|| {
                let finding = Finding::error(at, format!("there are no arrays of {}", item_type.sql_name()));
                finding.help("an array's items have one of the types without parameters, such as TEXT[]")
            })?
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

fn decimal(data_type: &DataType, digits: &ExactNumberInfo, at: Span) -> Result<ColumnType, Finding> {
    let found = match *digits {
        ExactNumberInfo::None => None,
        ExactNumberInfo::Precision(precision) => ColumnType::decimal(precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => {
            u64::try_from(scale).ok().and_then(|scale| ColumnType::decimal(precision, scale))
        }
    };
    found.ok_or_else(|| {
        let message = match digits {
            ExactNumberInfo::None => format!("{data_type} does not say how many digits"),
            _ => format!("there is no {data_type}"),
        };
        let finding = Finding::error(at, message);
        finding.help("write DECIMAL(10, 2): 1 to 38 digits, and how many of them behind the point")
    })
}

/// What a column's `DEFAULT` says.
pub(crate) fn default(
    column: &ColumnDecl,
    data_type: ColumnType,
    kind: Option<TableKind>,
) -> Result<Option<DefaultValue>, Finding> {
    let Some((expr, at)) = &column.default else { return Ok(None) };
    let refuse = |message: String, help: &str| Err(Finding::error(*at, message).help(help));
    if kind == Some(TableKind::Sink) {
        return refuse(
            "DEFAULT is what ingest fills in; nobody posts into a sink".into(),
            "leave DEFAULT out",
        );
    }
    if column.generated.is_some() || column.metadata.is_some() {
        return refuse("nobody posts this column, so it needs no DEFAULT".into(), "leave DEFAULT out");
    }
    match expr {
        Expr::Value(value) if value.value == Value::Null && column.not_null => {
            refuse("DEFAULT NULL contradicts NOT NULL".into(), "leave one of them out")
        }
        Expr::Value(value) if value.value == Value::Null => Ok(None),
        expr if is_now(expr) && data_type == ColumnType::Timestamp => Ok(Some(DefaultValue::Now)),
        expr if is_now(expr) => refuse(
            format!("now() is a TIMESTAMP, the column is {}", data_type.sql_name()),
            default_example(data_type),
        ),
        expr => match literal(expr, data_type) {
            Ok(value) => Ok(Some(DefaultValue::Literal(value))),
            Err(message) => refuse(message, default_example(data_type)),
        },
    }
}

fn is_now(expr: &Expr) -> bool {
    let Expr::Function(function) = expr else { return false };
    let empty = match &function.args {
        FunctionArguments::List(list) => list.args.is_empty() && list.clauses.is_empty(),
        _ => false,
    };
    empty && function.name.to_string().eq_ignore_ascii_case("now")
}

/// A literal of the column's type, as the JSON that a client would post.
fn literal(expr: &Expr, data_type: ColumnType) -> Result<Json, String> {
    match (expr, data_type) {
        (Expr::Array(array), ColumnType::Array(item)) => {
            let items = array.elem.iter().map(|element| match element {
                Expr::Value(value) if value.value == Value::Null => Ok(Json::Null),
                element => literal(element, *item),
            });
            items.collect()
        }
        (Expr::Value(value), _) => literal_value(&value.value, data_type),
        (Expr::UnaryOp { op: UnaryOperator::Minus, expr }, _) => match expr.as_ref() {
            Expr::Value(value) => match &value.value {
                Value::Number(digits, long) => {
                    literal_value(&Value::Number(format!("-{digits}"), *long), data_type)
                }
                _ => Err("DEFAULT takes now() or a literal of the column's type".to_owned()),
            },
            _ => Err("DEFAULT takes now() or a literal of the column's type".to_owned()),
        },
        _ => Err("DEFAULT takes now() or a literal of the column's type".to_owned()),
    }
}

fn literal_value(value: &Value, data_type: ColumnType) -> Result<Json, String> {
    let mismatch = || format!("{value} is no {}", data_type.sql_name());
    let out_of_range = || format!("{value} is outside the range of {}", data_type.sql_name());
    let integer = |range: std::ops::RangeInclusive<i128>| match value {
        Value::Number(digits, _) => match digits.parse::<i128>() {
            Ok(number) if range.contains(&number) => {
                let json = i64::try_from(number).map(Json::from);
                json.or_else(|_| u64::try_from(number).map(Json::from)).map_err(|_| mismatch())
            }
            Ok(_) => Err(out_of_range()),
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
            serde_json::Number::from_f64(number).map(Json::Number).ok_or_else(mismatch)
        }
        (ColumnType::Decimal { precision, scale }, Value::Number(digits, _)) => {
            match parse_decimal(digits, precision, scale) {
                Ok(value) => Ok(format_decimal(value, scale).into()),
                Err(DecimalError::NoNumber) => Err(mismatch()),
                Err(DecimalError::Scale | DecimalError::Range) => Err(out_of_range()),
            }
        }
        (ColumnType::Bytea, Value::HexStringLiteral(digits)) => {
            bytes(digits).map(|bytes| STANDARD.encode(bytes).into()).ok_or_else(mismatch)
        }
        _ => Err(mismatch()),
    }
}

/// The bytes of `X'00ff'`.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs.iter().map(|[high, low]| Some(digit(*high)? * 16 + digit(*low)?)).collect()
}

fn default_example(data_type: ColumnType) -> &'static str {
    match data_type {
        ColumnType::Text => "write text in single quotes, such as DEFAULT 'main'",
        ColumnType::Timestamp => "write DEFAULT now() or a time such as DEFAULT '2026-01-31T18:30:00Z'",
        ColumnType::Boolean => "write DEFAULT true or DEFAULT false",
        ColumnType::Float | ColumnType::Double | ColumnType::Decimal { .. } => {
            "write a number, such as DEFAULT 1.5"
        }
        ColumnType::Bytea => "write bytes in hexadecimal digits, such as DEFAULT X'00ff'",
        ColumnType::Array(_) => "write its items, such as DEFAULT ARRAY['a', 'b']",
        _ => "write a whole number, such as DEFAULT 1",
    }
}
