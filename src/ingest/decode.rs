//! A request's body → rows of one table, or what is wrong with it: by row, by column, and what to do instead.
//!
//! Pure: the time of receipt is an argument. What holds for every format is here: columns by name, defaults, NOT
//! NULL, event time against the clock. The formats are in `decode_json.rs` and `decode_arrow.rs`.

use super::{decode_arrow, decode_json};
use crate::log::codec::MAX_ROWS;
use crate::log::result_row::COLUMN_ROOM;
use crate::reaction::columns::{Column, Mismatch, Rows, shortened, takes};
use crate::reaction::live::MAX_ROOM_BYTES;
use crate::reaction::table::{ColumnSource, ColumnType, DefaultValue, Table};

const NS_PER_S: i64 = 1_000_000_000;
/// How far behind the watermark's delay a row must be before the answer warns of it.
const FAR_BEHIND_NS: i64 = 60 * NS_PER_S;
/// The most warnings of one answer; the last says how many more there would be.
const MAX_WARNINGS: usize = 10;
/// The most text one request's rows may have once defaults and dictionaries are written out. Far above what fits a
/// record; it bounds memory where a few bytes of body stand for many bytes of rows.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyFormat {
    /// An object, or an array of objects.
    Json,
    /// One object per line.
    Ndjson,
    /// An Arrow IPC stream.
    ArrowStream,
}

/// Whose clock says when a reaction happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventTimeRule {
    /// The client's, unless it is further ahead of ours than this.
    Client {
        /// In nanoseconds.
        future_tolerance_ns: i64,
    },
    /// Ours: what clients write into the event-time column is replaced by the time of receipt.
    Receipt,
}

/// Why a body is refused, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DecodeError {
    /// The body cannot be read from some place on.
    Syntax {
        /// The row where it ends, when it has rows.
        row: Option<usize>,
        /// What is wrong, and where.
        detail: String,
    },
    /// A row that the table does not take.
    Row {
        /// From 0.
        row: usize,
        /// When it is about one.
        column: Option<String>,
        /// What is wrong, and what to do.
        detail: String,
    },
    /// More than one request may bring: split it.
    TooLarge(String),
}

/// What a good body holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decoded {
    /// In the body's order, defaults filled in.
    pub(super) rows: Rows,
    /// Rows that will not be counted, as sentences.
    pub(super) warnings: Vec<String>,
}

/// Reads bodies for one table.
#[derive(Debug)]
pub(super) struct Decoder {
    pub(super) table: String,
    pub(super) columns: Vec<ColumnRule>,
    /// Columns that nobody posts.
    filled_in: Vec<String>,
    event_time: Option<EventTime>,
    /// The column whose values name rooms: sinks may repeat them as keys, and viewers ask for them.
    room: Option<usize>,
}

/// What ingest must know of one column.
#[derive(Debug)]
pub(super) struct ColumnRule {
    pub(super) name: String,
    pub(super) data_type: ColumnType,
    pub(super) nullable: bool,
    absent: Absent,
}

/// What a row gets that leaves the column out.
#[derive(Debug)]
enum Absent {
    Null,
    Receipt,
    Literal(serde_json::Value),
    Refused,
}

#[derive(Debug)]
struct EventTime {
    column: usize,
    /// A row older than this before its receipt is warned of.
    behind_ns: i64,
}

impl Decoder {
    /// Reads bodies for `table`.
    ///
    /// # Errors
    /// When a default does not fit its column.
    pub(super) fn new(table: &Table) -> Result<Self, String> {
        let columns = table.record_columns().map(|column| {
            let absent = match &column.default {
                Some(DefaultValue::Now) if column.data_type == ColumnType::Timestamp => Absent::Receipt,
                Some(DefaultValue::Now) => {
                    return Err(format!("DEFAULT now() of {} needs a TIMESTAMP", column.name));
                }
                Some(DefaultValue::Literal(serde_json::Value::Null)) if column.nullable => Absent::Null,
                Some(DefaultValue::Literal(value)) => Absent::Literal(value.clone()),
                None if column.nullable => Absent::Null,
                None => Absent::Refused,
            };
            let rule = ColumnRule {
                name: column.name.clone(),
                data_type: column.data_type,
                nullable: column.nullable,
                absent,
            };
            if let Absent::Literal(value) = &rule.absent {
                let mut probe = Column::new(rule.data_type, rule.nullable, 1);
                probe.push_json(value).map_err(|_| {
                    format!("the DEFAULT {value} of {} is no {}", rule.name, rule.data_type.sql_name())
                })?;
            }
            Ok(rule)
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let filled_in = table.columns.iter().filter(|column| column.source != ColumnSource::Record);
        let filled_in = filled_in.map(|column| column.name.clone()).collect();
        let event_time = table.watermark.as_ref().and_then(|watermark| {
            let column = table.record_columns().position(|column| column.name == watermark.column)?;
            Some(EventTime { column, behind_ns: watermark.delay_ns.saturating_add(FAR_BEHIND_NS) })
        });
        let is_room = |rule: &ColumnRule| rule.name == COLUMN_ROOM && rule.data_type == ColumnType::Text;
        let room = columns.iter().position(is_room);
        Ok(Self { table: table.name.clone(), columns, filled_in, event_time, room })
    }

    /// The rows of a body that was received at `receipt_ns`.
    ///
    /// # Errors
    /// The first thing that is wrong. Nothing of such a body may be kept.
    pub(super) fn decode(
        &self,
        format: BodyFormat,
        body: &[u8],
        receipt_ns: i64,
        rule: EventTimeRule,
    ) -> Result<Decoded, DecodeError> {
        let mut rows = match format {
            BodyFormat::Json => decode_json::json(self, body, receipt_ns),
            BodyFormat::Ndjson => decode_json::ndjson(self, body, receipt_ns),
            BodyFormat::ArrowStream => decode_arrow::stream(self, body, receipt_ns),
        }?;
        let warnings = self.judge_times(&mut rows, receipt_ns, rule)?;
        Ok(Decoded { rows, warnings })
    }

    /// The column of that name. Rows mostly name their columns in the same order, so `guess` is tried first.
    pub(super) fn place(&self, name: &str, guess: usize) -> Option<usize> {
        if self.columns.get(guess).is_some_and(|column| column.name == name) {
            return Some(guess);
        }
        self.columns.iter().position(|column| column.name == name)
    }

    /// That the table has no such column, and which one may be meant.
    pub(super) fn unknown_column(&self, row: usize, name: &str) -> DecodeError {
        if self.filled_in.iter().any(|filled_in| filled_in == name) {
            let detail = format!("row {row}: column {name} is filled in by emostream; leave it out");
            return DecodeError::Row { row, column: Some(name.to_owned()), detail };
        }
        let nearest = self
            .columns
            .iter()
            .map(|column| (strsim::jaro_winkler(&column.name, &name.to_lowercase()), &column.name))
            .max_by(|(a, _), (b, _)| a.total_cmp(b))
            .filter(|(likeness, _)| *likeness > 0.75);
        let hint = match nearest {
            Some((_, nearest)) => format!("did you mean {nearest}?"),
            None => {
                let names: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
                format!("its columns are {}", names.join(", "))
            }
        };
        let name = shortened(name);
        let detail = format!("row {row}: table {} has no column {name}; {hint}", self.table);
        DecodeError::Row { row, column: Some(name), detail }
    }

    /// That a column got a value it does not take.
    pub(super) fn mismatch(&self, row: usize, place: usize, mismatch: &Mismatch) -> DecodeError {
        let ColumnRule { name, data_type, absent, .. } = &self.columns[place];
        let sql = data_type.sql_name();
        let detail = match mismatch {
            Mismatch::Null => match absent {
                Absent::Refused => format!("column {name} is null, and it is NOT NULL"),
                _ => format!("column {name} is null, and it is NOT NULL; leave it out to get its default"),
            },
            Mismatch::Type(found) => {
                format!("column {name} is {found}; {sql} takes {}", takes(*data_type))
            }
            Mismatch::Range(found) => format!("column {name} is {found}, which {sql} does not hold"),
            Mismatch::Time(why) | Mismatch::Form(why) => format!("column {name}: {why}"),
        };
        DecodeError::Row { row, column: Some(name.clone()), detail: format!("row {row}: {detail}") }
    }

    /// Refuses what is ahead of the clock and warns of what is far behind, or replaces it all by the receipt time.
    fn judge_times(
        &self,
        rows: &mut Rows,
        receipt_ns: i64,
        rule: EventTimeRule,
    ) -> Result<Vec<String>, DecodeError> {
        let Some(EventTime { column, behind_ns }) = self.event_time else { return Ok(Vec::new()) };
        let name = &self.columns[column].name;
        let times = rows.columns[column].timestamps();
        let future_tolerance_ns = match rule {
            EventTimeRule::Receipt => {
                times.fill(receipt_ns);
                return Ok(Vec::new());
            }
            EventTimeRule::Client { future_tolerance_ns } => future_tolerance_ns,
        };
        let latest = receipt_ns.saturating_add(future_tolerance_ns);
        let oldest = receipt_ns.saturating_sub(behind_ns);
        let (mut warnings, mut more) = (Vec::new(), 0);
        for (row, &time) in times.iter().enumerate() {
            if time > latest {
                let detail = format!(
                    "row {row}: {name} is {} ahead of this server's clock, and at most {} is allowed; set the sender's \
                     clock, or leave {name} out: the time of receipt is then used",
                    span(time.saturating_sub(receipt_ns)),
                    span(future_tolerance_ns)
                );
                return Err(DecodeError::Row { row, column: Some(name.clone()), detail });
            }
            if time >= oldest {
                continue;
            }
            if warnings.len() == MAX_WARNINGS - 1 {
                more += 1;
                continue;
            }
            let behind = span(receipt_ns.saturating_sub(time));
            // The first year of the epoch in nanoseconds is any year of this century in milliseconds.
            let hint =
                if (0..365 * 86_400 * NS_PER_S).contains(&time) { " (integers are nanoseconds)" } else { "" };
            warnings.push(format!("row {row}: {name} is {behind} behind; its window has closed{hint}"));
        }
        match more {
            0 => {}
            1 => warnings.push("1 more row is far behind; its window has closed".to_owned()),
            more => warnings.push(format!("{more} more rows are far behind; their windows have closed")),
        }
        Ok(warnings)
    }
}

/// Rows in the making: the formats set the columns a row names, and [`Filling::end_row`] does the rest.
pub(super) struct Filling<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) rows: Rows,
    receipt_ns: i64,
    /// By column: the number (from 1) of the last row that set it.
    set_by: Vec<usize>,
    /// How many columns the current row has set.
    set: usize,
    /// The bytes of all rooms before the current row.
    room_bytes: usize,
}

impl<'a> Filling<'a> {
    /// No rows yet, with room for `expected`.
    pub(super) fn new(decoder: &'a Decoder, receipt_ns: i64, expected: usize) -> Self {
        let expected = expected.clamp(1, MAX_ROWS);
        let columns =
            decoder.columns.iter().map(|rule| Column::new(rule.data_type, rule.nullable, expected)).collect();
        let rows = Rows { count: 0, columns };
        Self { decoder, rows, receipt_ns, set_by: vec![0; decoder.columns.len()], set: 0, room_bytes: 0 }
    }

    /// The column to push one value into for the current row.
    ///
    /// # Errors
    /// When the row has set it before.
    pub(super) fn column(&mut self, place: usize) -> Result<&mut Column, DecodeError> {
        let row = self.rows.count;
        if std::mem::replace(&mut self.set_by[place], row + 1) == row + 1 {
            let name = self.decoder.columns[place].name.clone();
            let detail = format!("row {row}: column {name} is given twice");
            return Err(DecodeError::Row { row, column: Some(name), detail });
        }
        self.set += 1;
        Ok(&mut self.rows.columns[place])
    }

    /// Fills in what the row left out.
    ///
    /// # Errors
    /// When a column without default is missing, the room's name is too long, or the rows have become too many.
    pub(super) fn end_row(&mut self) -> Result<(), DecodeError> {
        if self.set < self.decoder.columns.len() {
            self.fill_absent()?;
        }
        self.check_room()?;
        self.set = 0;
        self.rows.count += 1;
        if self.rows.count > MAX_ROWS {
            return Err(DecodeError::TooLarge(format!("more than {MAX_ROWS} rows in one request")));
        }
        if self.rows.columns.iter().map(Column::text_bytes).sum::<usize>() > MAX_TEXT_BYTES {
            return Err(DecodeError::TooLarge(format!(
                "more than {MAX_TEXT_BYTES} bytes of text in one request"
            )));
        }
        Ok(())
    }

    fn check_room(&mut self) -> Result<(), DecodeError> {
        let Some(place) = self.decoder.room else { return Ok(()) };
        let before = std::mem::replace(&mut self.room_bytes, self.rows.columns[place].text_bytes());
        let bytes = self.room_bytes - before;
        if bytes <= MAX_ROOM_BYTES {
            return Ok(());
        }
        let row = self.rows.count;
        let detail = format!(
            "row {row}: column {COLUMN_ROOM} has {bytes} bytes; the name of a room has at most {MAX_ROOM_BYTES}"
        );
        Err(DecodeError::Row { row, column: Some(COLUMN_ROOM.to_owned()), detail })
    }

    fn fill_absent(&mut self) -> Result<(), DecodeError> {
        let row = self.rows.count;
        for (place, rule) in self.decoder.columns.iter().enumerate() {
            if self.set_by[place] == row + 1 {
                continue;
            }
            let column = &mut self.rows.columns[place];
            let filled = match &rule.absent {
                Absent::Null => column.push_null(),
                Absent::Receipt => column.push_i64(self.receipt_ns),
                Absent::Literal(value) => column.push_json(value),
                Absent::Refused => {
                    let (name, sql) = (rule.name.clone(), rule.data_type.sql_name());
                    let detail = format!(
                        "row {row}: column {name} is missing; it is {sql} NOT NULL without a default"
                    );
                    return Err(DecodeError::Row { row, column: Some(name), detail });
                }
            };
            filled.map_err(|mismatch| self.decoder.mismatch(row, place, &mismatch))?;
        }
        Ok(())
    }
}

/// A span of time as a person would say it: `2 years`, `90 seconds`, `300 ms`.
fn span(ns: i64) -> String {
    let seconds = ns / NS_PER_S;
    match seconds {
        ..10 => format!("{} ms", ns / 1_000_000),
        10..120 => format!("{seconds} seconds"),
        120..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        172_800..63_072_000 => format!("{} days", seconds / 86_400),
        _ => format!("{} years", seconds / 31_536_000),
    }
}
