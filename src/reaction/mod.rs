//! The domain: what a reaction is, rooms, event time, what a closed window says.
//!
//! Pure: no async, no clock, no I/O, and no knowledge of any stage or log.

pub mod checkpoint;
pub mod column_type;
pub mod columns;
pub mod decimal;
pub mod dictionary;
pub mod emoji;
pub mod figures;
pub mod json;
pub mod json_row;
pub mod live;
pub mod parse_time;
pub mod schema;
pub mod table;
pub mod time;
