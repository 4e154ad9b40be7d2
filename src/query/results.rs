//! `GET /v1/results/{sink}`: a request's parameters, read and checked, and the page they ask for.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

use super::store::{ResultStore, Rooms, Span};
use crate::log::result_row::{COLUMN_ROOM, WINDOW_COLUMNS};
use crate::reaction::decimal::{format_decimal, parse_decimal};
use crate::reaction::table::{ColumnType, Table};
use crate::reaction::time::{Window, format_rfc3339, parse_rfc3339};

/// How many windows a page has when `limit` is not given.
pub const DEFAULT_LIMIT: usize = 100;
/// The most windows a page may have.
pub const MAX_LIMIT: usize = 1000;
/// A page ends before its limit when its rows reach this many bytes; `next` goes on from there.
const MAX_PAGE_BYTES: usize = 16 << 20;
/// How many windows are taken from the store at a time while a filter is applied.
const CHUNK: usize = 1000;
/// The parameters that are no columns.
const PARAMETERS: [&str; 5] = ["from", "to", "order", "limit", "cursor"];
/// Before a column that has a parameter's name: `col.limit=3`.
const COLUMN_PREFIX: &str = "col.";

/// A checked request.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultsQuery {
    span: Span,
    limit: usize,
    /// Column → the values one of which it must have.
    filters: BTreeMap<String, Vec<Wanted>>,
}

/// A filter's value in its column's type.
#[derive(Clone, Debug, PartialEq)]
enum Wanted {
    Text(String),
    /// Nanoseconds.
    Time(i64),
    Integer(i128),
    Float(f64),
    Boolean(bool),
}

/// One page, as it is answered.
#[derive(Debug, Serialize)]
pub struct Page<'a> {
    /// The sink.
    pub table: &'a str,
    /// In the order asked for.
    pub windows: Vec<PageWindow>,
    /// The cursor of the next page, null at the end.
    pub next: Option<String>,
}

/// One window of a page.
#[derive(Debug, Serialize)]
pub struct PageWindow {
    /// Its span.
    #[serde(flatten)]
    pub window: Window,
    /// The rows of all rooms, by room.
    pub rows: Vec<Box<RawValue>>,
}

impl ResultsQuery {
    /// Reads decoded parameters.
    ///
    /// # Errors
    /// Says which parameter is wrong and what would be right: an unknown name, a bad value, a cursor of another order.
    pub fn parse(table: &Table, parameters: &[(String, String)]) -> Result<Self, String> {
        let mut span = Span { from: None, to: None, after: None, newest_first: true };
        let mut query = Self { span: span.clone(), limit: DEFAULT_LIMIT, filters: BTreeMap::new() };
        let mut cursor = None;
        for (name, value) in parameters {
            match name.as_str() {
                "from" => span.from = Some(time(name, value)?),
                "to" => span.to = Some(time(name, value)?),
                "order" => span.newest_first = is_newest_first(value)?,
                "limit" => query.limit = limit(value)?,
                "cursor" => cursor = Some(value),
                _ => {
                    let column = name.strip_prefix(COLUMN_PREFIX).unwrap_or(name);
                    let (_, known) = table.column(column).ok_or_else(|| unknown(table, name))?;
                    let wanted = Wanted::parse(column, known.data_type, value)?;
                    query.filters.entry(column.to_owned()).or_default().push(wanted);
                }
            }
        }
        if let Some(cursor) = cursor {
            span.after = Some(read_cursor(cursor, span.newest_first)?);
        }
        query.span = span;
        Ok(query)
    }

    /// The page of `table` that this asks for, `None` when the store knows no such sink.
    ///
    /// # Errors
    /// When a stored row is no JSON, which is a bug.
    pub fn page<'a>(
        &self,
        table: &'a Table,
        store: &ResultStore,
    ) -> Result<Option<Page<'a>>, serde_json::Error> {
        let mut page = Page { table: &table.name, windows: Vec::new(), next: None };
        let mut span = self.span.clone();
        let mut bytes = 0;
        loop {
            let Some(windows) = store.windows(&table.name, &span, CHUNK) else { return Ok(None) };
            let is_last = windows.len() < CHUNK;
            for (window, rooms) in windows {
                let rows = self.rows(window, &rooms)?;
                if rows.is_empty() {
                    continue;
                }
                if page.windows.len() == self.limit || bytes >= MAX_PAGE_BYTES {
                    page.next = page.windows.last().map(|last| write_cursor(last.window, span.newest_first));
                    return Ok(Some(page));
                }
                bytes += rows.iter().map(|row| row.get().len()).sum::<usize>();
                span.after = Some(window);
                page.windows.push(PageWindow { window, rows });
            }
            if is_last {
                return Ok(Some(page));
            }
        }
    }

    fn rows(&self, window: Window, rooms: &Rooms) -> Result<Vec<Box<RawValue>>, serde_json::Error> {
        let mut found = Vec::new();
        for (room, rows) in rooms.iter() {
            // A room is known by its text; one that is no text in the table, by its JSON.
            let is_room = |wanted: &Wanted| match wanted {
                Wanted::Text(text) => text == room,
                other => other.is(room),
            };
            if self.filters.get(COLUMN_ROOM).is_some_and(|wanted| !wanted.iter().any(is_room)) {
                continue;
            }
            for row in rows {
                if self.matches(window, row)? {
                    found.push(RawValue::from_string(row.to_string())?);
                }
            }
        }
        Ok(found)
    }

    fn matches(&self, window: Window, row: &str) -> Result<bool, serde_json::Error> {
        let mut filters = self.filters.iter().filter(|(column, _)| *column != COLUMN_ROOM).peekable();
        if filters.peek().is_none() {
            return Ok(true);
        }
        let fields: BTreeMap<&str, &RawValue> = match serde_json::from_str(row) {
            Ok(fields) => fields,
            Err(_) => return self.matches_escaped(window, row),
        };
        Ok(filters.all(|(column, wanted)| {
            let edge = window_edge(window, column);
            let value = fields.get(column.as_str()).map_or("null", |value| value.get());
            wanted
                .iter()
                .any(|wanted| edge.map_or_else(|| wanted.is(value), |ns| *wanted == Wanted::Time(ns)))
        }))
    }

    /// For the rare table whose columns have names that JSON must escape.
    fn matches_escaped(&self, window: Window, row: &str) -> Result<bool, serde_json::Error> {
        let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(row)?;
        Ok(self.filters.iter().filter(|(column, _)| *column != COLUMN_ROOM).all(|(column, wanted)| {
            let edge = window_edge(window, column);
            let value = fields.get(column).map_or("null", |value| value.get());
            wanted
                .iter()
                .any(|wanted| edge.map_or_else(|| wanted.is(value), |ns| *wanted == Wanted::Time(ns)))
        }))
    }
}

/// The window's own columns are answered from the window.
fn window_edge(window: Window, column: &str) -> Option<i64> {
    let [start, end] = WINDOW_COLUMNS;
    if column == start {
        Some(window.start)
    } else if column == end {
        Some(window.end)
    } else {
        None
    }
}

impl Wanted {
    fn parse(column: &str, data_type: ColumnType, text: &str) -> Result<Self, String> {
        let read = match data_type {
            ColumnType::Text => Some(Self::Text(text.to_owned())),
            ColumnType::Timestamp => return time(column, text).map(Self::Time),
            ColumnType::Int | ColumnType::Bigint | ColumnType::IntUnsigned | ColumnType::BigintUnsigned => {
                text.parse().ok().map(Self::Integer)
            }
            ColumnType::Float | ColumnType::Double => text.parse().ok().map(Self::Float),
            ColumnType::Boolean => text.parse().ok().map(Self::Boolean),
            ColumnType::Decimal { precision, scale } => {
                let value = parse_decimal(text, precision, scale).ok();
                value.map(|value| Self::Text(format_decimal(value, scale)))
            }
            ColumnType::Bytea => Some(Self::Text(text.to_owned())),
            ColumnType::Array(_) => {
                return Err(format!("{column} is an array; rows are not chosen by one"));
            }
        };
        read.ok_or_else(|| format!("{column} is {}, and '{text}' is none", data_type.sql_name()))
    }

    /// Whether a JSON value is this one; null never is.
    fn is(&self, json: &str) -> bool {
        if json == "null" {
            return false;
        }
        match self {
            Self::Text(wanted) => serde_json::from_str::<String>(json).is_ok_and(|text| text == *wanted),
            Self::Time(wanted) => serde_json::from_str::<String>(json)
                .is_ok_and(|text| parse_rfc3339(&text).is_ok_and(|ns| ns == *wanted)),
            Self::Integer(wanted) => json.parse::<i128>().is_ok_and(|number| number == *wanted),
            Self::Float(wanted) => json.parse::<f64>().is_ok_and(|number| number == *wanted),
            Self::Boolean(wanted) => json.parse::<bool>().is_ok_and(|boolean| boolean == *wanted),
        }
    }
}

fn time(name: &str, value: &str) -> Result<i64, String> {
    // A `+` that was not written as %2B arrives as a space.
    let value = value
        .rsplit_once(' ')
        .filter(|(day, _)| day.contains('T'))
        .map_or_else(|| value.to_owned(), |(time, zone)| format!("{time}+{zone}"));
    parse_rfc3339(&value).map_err(|wrong| format!("{name}: {wrong}"))
}

fn is_newest_first(value: &str) -> Result<bool, String> {
    match value {
        "desc" => Ok(true),
        "asc" => Ok(false),
        _ => Err(format!("order is asc (oldest first) or desc (newest first), not '{value}'")),
    }
}

fn limit(value: &str) -> Result<usize, String> {
    let read = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    read.ok_or_else(|| format!("limit is a number of windows between 1 and {MAX_LIMIT}, not '{value}'"))
}

fn unknown(table: &Table, name: &str) -> String {
    let columns: Vec<String> = table
        .columns
        .iter()
        .map(|column| match PARAMETERS.contains(&column.name.as_str()) {
            true => format!("{COLUMN_PREFIX}{}", column.name),
            false => column.name.clone(),
        })
        .collect();
    let (parameters, columns) = (PARAMETERS.join(", "), columns.join(", "));
    format!(
        "there is no parameter or column {name}; parameters: {parameters}; columns of {}: {columns}",
        table.name
    )
}

fn write_cursor(window: Window, newest_first: bool) -> String {
    let order = if newest_first { "desc" } else { "asc" };
    format!("{order}_{}_{}", format_rfc3339(window.start), format_rfc3339(window.end))
}

fn read_cursor(cursor: &str, newest_first: bool) -> Result<Window, String> {
    let mut parts = cursor.splitn(3, '_');
    let order = parts.next().unwrap_or_default();
    let mut edge = || parts.next().and_then(|text| parse_rfc3339(text).ok());
    let window = match (order, edge(), edge()) {
        ("asc" | "desc", Some(start), Some(end)) => Window { start, end },
        _ => return Err(format!("cursor is what `next` of the page before said, not '{cursor}'")),
    };
    if (order == "desc") != newest_first {
        return Err(format!("this cursor belongs to order={order}; keep the order from page to page"));
    }
    Ok(window)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::log::{
        HEADER_FINAL, HEADER_REVISION, HEADER_WINDOW_END, HEADER_WINDOW_ROWS, HEADER_WINDOW_START, NewRecord,
        Record, result_row::sink,
    };
    use crate::query::Settings;

    fn table() -> Table {
        let (window, text) = (ColumnType::Timestamp, ColumnType::Text);
        sink(
            "counts",
            &[
                ("window_start", window),
                ("window_end", window),
                ("room", text),
                ("emoji_type", text),
                ("count", ColumnType::Bigint),
                ("limit", ColumnType::Bigint),
            ],
        )
    }

    fn second(s: i64) -> String {
        format_rfc3339(s * 1_000_000_000)
    }

    fn record(offset: i64, start_s: i64, rows: usize, value: &serde_json::Value) -> Record {
        let new = NewRecord::default()
            .header(HEADER_WINDOW_START, second(start_s))
            .header(HEADER_WINDOW_END, second(start_s + 2))
            .header(HEADER_FINAL, "true")
            .header(HEADER_REVISION, "0")
            .header(HEADER_WINDOW_ROWS, rows.to_string());
        Record {
            offset,
            timestamp_ms: 0,
            key: None,
            value: Some(value.to_string().into()),
            headers: new.headers,
        }
    }

    /// `windows` windows of two seconds from the epoch on, each with a row in room a and one in room b.
    fn store(windows: i64, settings: &Settings) -> ResultStore {
        let store = ResultStore::new(settings);
        store.begin(&Arc::new(table()));
        for n in 0..windows {
            let row = |room: &str, emoji: &str| {
                let (start, end) = (second(2 * n), second(2 * n + 2));
                serde_json::json!({"window_start": start, "window_end": end, "room": room, "emoji_type": emoji, "count": n})
            };
            let records =
                [record(2 * n, 2 * n, 1, &row("a", "😀")), record(2 * n + 1, 2 * n, 1, &row("b", "🎉"))];
            store.apply("counts", 0, &records, 2 * n + 2);
        }
        store
    }

    fn parse(query: &[(&str, &str)]) -> Result<ResultsQuery, String> {
        let pairs: Vec<_> = query.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        ResultsQuery::parse(&table(), &pairs)
    }

    /// The starts of the page's windows in seconds, and its cursor.
    fn starts(store: &ResultStore, query: &[(&str, &str)]) -> (Vec<i64>, Option<String>) {
        let table = table();
        let page = parse(query).unwrap().page(&table, store).unwrap().unwrap();
        (page.windows.iter().map(|w| w.window.start / 1_000_000_000).collect(), page.next)
    }

    #[test]
    fn windows_come_newest_first_between_from_and_to() {
        let store = store(5, &Settings::default());
        assert_eq!(starts(&store, &[]).0, [8, 6, 4, 2, 0]);
        assert_eq!(starts(&store, &[("order", "asc")]).0, [0, 2, 4, 6, 8]);
        let (from, to) = (second(2), second(6));
        assert_eq!(starts(&store, &[("from", &from), ("to", &to)]).0, [4, 2]);
        assert_eq!(starts(&store, &[("from", &to), ("to", &from)]).0, [0; 0]);
        assert_eq!(starts(&store, &[("from", &to), ("to", &to)]).0, [0; 0]);
    }

    #[test]
    fn pages_follow_one_another_without_gap_or_repeat() {
        let store = store(5, &Settings::default());
        for order in ["asc", "desc"] {
            let mut all = Vec::new();
            let mut cursor = None;
            loop {
                let mut query = vec![("order", order), ("limit", "2")];
                query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
                let (page, next) = starts(&store, &query);
                all.extend(page);
                let Some(next) = next else { break };
                cursor = Some(next);
            }
            if order == "desc" {
                all.reverse();
            }
            assert_eq!(all, [0, 2, 4, 6, 8]);
        }
        assert_eq!(starts(&store, &[("limit", "5")]).1, None, "a full last page has no next");
    }

    #[test]
    fn a_cursor_outside_of_the_span_does_not_widen_it() {
        let store = store(5, &Settings::default());
        let (from, cursor) = (second(4), format!("asc_{}_{}", second(0), second(2)));
        assert_eq!(starts(&store, &[("order", "asc"), ("from", &from), ("cursor", &cursor)]).0, [4, 6, 8]);
    }

    #[test]
    fn columns_filter_rows_and_windows_without_rows_are_left_out() {
        let store = store(3, &Settings::default());
        let table = table();
        let page = parse(&[("emoji_type", "😀"), ("count", "1")]).unwrap().page(&table, &store).unwrap();
        let answered = serde_json::to_string(&page.unwrap()).unwrap();
        let row = r#"{"room":"a","emoji_type":"😀","count":1,"limit":null}"#;
        let window = format!(r#"{{"start":"{}","end":"{}","rows":[{row}]}}"#, second(2), second(4));
        assert_eq!(answered, format!(r#"{{"table":"counts","windows":[{window}],"next":null}}"#));
        assert_eq!(starts(&store, &[("room", "c")]).0, [0; 0]);
        assert_eq!(starts(&store, &[("room", "c"), ("room", "a")]).0, [4, 2, 0]);
        assert_eq!(starts(&store, &[("window_end", &second(4))]).0, [2]);
        assert_eq!(starts(&store, &[("col.limit", "7")]).0, [0; 0]);
    }

    #[test]
    fn a_room_that_is_a_number_is_found_by_its_value() {
        let mut table = table();
        table.columns[2].data_type = ColumnType::Bigint;
        let store = ResultStore::new(&Settings::default());
        store.begin(&Arc::new(table.clone()));
        let rooms = [
            serde_json::json!({"room": 7}),
            serde_json::json!({"room": 8}),
            serde_json::json!({"room": null}),
        ];
        for (offset, row) in (0..).zip(&rooms) {
            store.apply("counts", 0, &[record(offset, 0, 1, row)], offset + 1);
        }
        let rows = |room: &str| {
            let asked = ResultsQuery::parse(&table, &[("room".to_owned(), room.to_owned())]).unwrap();
            let page = asked.page(&table, &store).unwrap().unwrap();
            page.windows.iter().flat_map(|window| &window.rows).count()
        };
        assert_eq!((rows("7"), rows("8"), rows("9")), (1, 1, 0));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_right() {
        let check = |query: &[(&str, &str)], expected: &str| {
            let message = parse(query).unwrap_err();
            assert!(message.contains(expected), "{message}");
        };
        check(
            &[("form", "x")],
            "parameters: from, to, order, limit, cursor; columns of counts: window_start",
        );
        check(&[("form", "x")], "col.limit");
        check(&[("from", "yesterday")], "from: 'yesterday' is no time");
        check(&[("order", "up")], "asc");
        check(&[("limit", "1001")], "between 1 and 1000");
        check(&[("limit", "0")], "between 1 and 1000");
        check(&[("count", "many")], "count is BIGINT");
        check(&[("cursor", "xyz")], "next");
        check(
            &[("order", "asc"), ("cursor", "desc_1970-01-01T00:00:00Z_1970-01-01T00:00:02Z")],
            "order=desc",
        );
    }

    #[test]
    fn beyond_the_bounds_the_oldest_windows_go() {
        let by_count = store(5, &Settings { history_windows: 2, ..Settings::default() });
        assert_eq!(starts(&by_count, &[]).0, [8, 6]);
        let by_bytes = store(5, &Settings { history_bytes: 600, ..Settings::default() });
        let kept = starts(&by_bytes, &[]).0;
        assert!(!kept.is_empty() && kept.len() < 5 && kept[0] == 8, "{kept:?}");
    }

    #[test]
    fn a_repeated_window_changes_nothing() {
        let store = store(1, &Settings::default());
        let again = serde_json::json!({"room": "a", "emoji_type": "x", "count": 99});
        store.apply("counts", 0, &[record(9, 0, 1, &again)], 10);
        assert_eq!(starts(&store, &[("count", "99")]).0, [0; 0]);
        assert_eq!(starts(&store, &[("count", "0"), ("room", "a")]).0, [0]);
    }
}
