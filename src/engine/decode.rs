//! A record → its rows. Pure.

use super::compile::CompiledSource;
use super::expression::Rows;
use crate::log::Record;
use crate::log::codec::{CodecError, declared_rows};

/// What a record holds.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) rows: Result<Rows, CodecError>,
    /// How many rows the record's header declares. Where it declares none: how many it has, or one when it cannot be
    /// decoded.
    pub(crate) accepted: u64,
}

/// Decodes one record.
pub(crate) fn decode(source: &CompiledSource, record: &Record, partition: u32) -> Decoded {
    let rows = source.codec.decode(partition, record, &source.columns).map(Rows::new);
    let found = rows.as_ref().map_or(1, |rows| rows.len() as u64);
    Decoded { rows, accepted: declared_rows(record).unwrap_or(found) }
}
