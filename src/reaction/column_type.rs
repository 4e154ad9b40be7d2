//! The types of columns, by their names in SQL.

use serde::{Deserialize, Serialize};

/// The most digits of a DECIMAL: what 128 bits hold.
pub const MAX_DECIMAL_DIGITS: u8 = 38;

/// The SQL types of the dialect. Their text form is the SQL name: `TEXT`, `DECIMAL(10, 2)`, `BIGINT[]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
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
    IntUnsigned,
    /// 64-bit unsigned integer.
    BigintUnsigned,
    /// 32-bit float.
    Float,
    /// 64-bit float.
    Double,
    /// True or false.
    Boolean,
    /// Bytes; base64 text in JSON.
    Bytea,
    /// An exact number of `precision` digits, 1 to 38, `scale` of them behind the point.
    Decimal {
        /// All digits.
        precision: u8,
        /// Those behind the point, at most `precision`.
        scale: u8,
    },
    /// A list of values of one of the other types, each of which may be null; no list of lists, no list of DECIMAL.
    Array(&'static ColumnType),
}

/// The types that have no parameters. Each can be the item of an array.
pub const PLAIN_TYPES: [ColumnType; 10] = [
    ColumnType::Text,
    ColumnType::Timestamp,
    ColumnType::Int,
    ColumnType::Bigint,
    ColumnType::IntUnsigned,
    ColumnType::BigintUnsigned,
    ColumnType::Float,
    ColumnType::Double,
    ColumnType::Boolean,
    ColumnType::Bytea,
];

impl ColumnType {
    /// The name as SQL writes it.
    pub fn sql_name(self) -> String {
        match self {
            Self::Text => "TEXT".to_owned(),
            Self::Timestamp => "TIMESTAMP".to_owned(),
            Self::Int => "INT".to_owned(),
            Self::Bigint => "BIGINT".to_owned(),
            Self::IntUnsigned => "INT UNSIGNED".to_owned(),
            Self::BigintUnsigned => "BIGINT UNSIGNED".to_owned(),
            Self::Float => "FLOAT".to_owned(),
            Self::Double => "DOUBLE".to_owned(),
            Self::Boolean => "BOOLEAN".to_owned(),
            Self::Bytea => "BYTEA".to_owned(),
            Self::Decimal { precision, scale } => format!("DECIMAL({precision}, {scale})"),
            Self::Array(item) => format!("{}[]", item.sql_name()),
        }
    }

    /// The array of that type; `None` for arrays and DECIMAL.
    pub fn array(self) -> Option<Self> {
        PLAIN_TYPES.iter().find(|plain| **plain == self).map(Self::Array)
    }

    /// DECIMAL of so many digits, `scale` of them behind the point; `None` when there is no such type.
    pub fn decimal(precision: u64, scale: u64) -> Option<Self> {
        let (precision, scale) = (u8::try_from(precision).ok()?, u8::try_from(scale).ok()?);
        let exists = (1..=MAX_DECIMAL_DIGITS).contains(&precision) && scale <= precision;
        exists.then_some(Self::Decimal { precision, scale })
    }

    fn from_sql_name(name: &str) -> Option<Self> {
        if let Some(item) = name.strip_suffix("[]") {
            return Self::from_sql_name(item)?.array();
        }
        if let Some(digits) = name.strip_prefix("DECIMAL(") {
            let (precision, scale) = digits.strip_suffix(')')?.split_once(", ")?;
            return Self::decimal(precision.parse().ok()?, scale.parse().ok()?);
        }
        PLAIN_TYPES.into_iter().find(|plain| plain.sql_name() == name)
    }
}

impl From<ColumnType> for String {
    fn from(column_type: ColumnType) -> Self {
        column_type.sql_name()
    }
}

impl TryFrom<String> for ColumnType {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::from_sql_name(&name).ok_or_else(|| format!("there is no column type '{name}'"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_read_back_from_its_name() {
        let decimals = [(1, 0), (10, 2), (38, 38)].map(|(p, s)| ColumnType::decimal(p, s).unwrap());
        let arrays = PLAIN_TYPES.map(|plain| plain.array().unwrap());
        for column_type in PLAIN_TYPES.into_iter().chain(decimals).chain(arrays) {
            let text = serde_json::to_string(&column_type).unwrap();
            assert_eq!(text, format!("\"{}\"", column_type.sql_name()));
            assert_eq!(serde_json::from_str::<ColumnType>(&text).unwrap(), column_type);
        }
    }

    #[test]
    fn what_is_no_type_is_refused() {
        let names =
            ["text", "DECIMAL(39, 0)", "DECIMAL(2, 3)", "DECIMAL(0, 0)", "TEXT[][]", "DECIMAL(1, 0)[]"];
        for name in names {
            assert!(ColumnType::try_from(name.to_owned()).is_err(), "{name}");
        }
    }
}
