//! Windows as bars: what `emostream watch` draws.
//!
//! Pure: a window, a width and a height in, lines out. Names and emojis come from strangers, so what could move a terminal's
//! cursor is replaced.

use serde::Deserialize;
use serde_json::{Map, Value};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::reaction::live::LiveMessage;
use crate::reaction::time::{NS_PER_MS, format_rfc3339};

/// The column that the bars show, where a table has it; else [`SCALED`], else its last number that tells no place.
const COUNT: &str = "count";
/// The column shown beside the count, where a table has both.
const SCALED: &str = "scaled";
/// Columns that tell a place in an order: the first would have the shortest bar.
const PLACES: [&str; 6] = ["rank", "position", "place", "row_number", "index", "nr"];
/// Characters of one text that are looked at.
const MAX_CHARACTERS: usize = 200;
/// The least room a bar is given.
const LEAST_BAR: usize = 8;

/// A live message as a viewer gets it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Heard {
    #[serde(flatten)]
    pub(super) message: LiveMessage,
    /// How many older windows of its table and room were left out before it.
    #[serde(default)]
    pub(super) skipped: u64,
}

/// One bar.
struct Bar {
    /// What the row's other columns say: texts as they are, the rest with the column's name.
    label: String,
    /// As it is written.
    count: String,
    scaled: String,
    value: f64,
}

impl Bar {
    fn of(row: &Map<String, Value>, column: Option<&str>) -> Self {
        let count = column.and_then(|column| row.get(column)).filter(|value| value.is_number());
        let scaled = row.get(SCALED).filter(|value| value.is_number() && column == Some(COUNT));
        let is_beside = |name: &str| column == Some(name) || scaled.is_some() && name == SCALED;
        let said = row.iter().filter(|(name, _)| !is_beside(name)).filter_map(|(name, value)| match value {
            Value::Null => None,
            Value::String(text) => Some(harmless(text)),
            value => Some(harmless(&format!("{name} {value}"))),
        });
        Self {
            label: said.collect::<Vec<_>>().join(" "),
            count: count.map(Value::to_string).unwrap_or_default(),
            scaled: scaled.map(|scaled| format!("×{scaled}")).unwrap_or_default(),
            value: count.and_then(Value::as_f64).unwrap_or(0.0),
        }
    }
}

/// The column that the bars of these rows show.
fn column_of<'a>(rows: &'a [Map<String, Value>], wanted: Option<&str>) -> Option<&'a str> {
    let numbers = |row: &'a Map<String, Value>| {
        row.iter().filter(|(_, value)| value.is_number()).map(|(name, _)| name.as_str())
    };
    // A value may be missing in some rows.
    let named = |name: &str| rows.iter().flat_map(numbers).find(|column| *column == name);
    let is_place = |name: &&str| PLACES.iter().any(|place| name.eq_ignore_ascii_case(place));
    let last = |places: bool| rows.iter().find_map(|row| numbers(row).rfind(|name| is_place(name) == places));
    let wanted = wanted.and_then(named).or_else(|| named(COUNT)).or_else(|| named(SCALED));
    wanted.or_else(|| last(false)).or_else(|| last(true))
}

/// The rows as bars, the biggest first.
fn bars(message: &LiveMessage, column: Option<&str>) -> Vec<Bar> {
    let column = column_of(&message.rows, column);
    let mut bars: Vec<Bar> = message.rows.iter().map(|row| Bar::of(row, column)).collect();
    bars.sort_by(|a, b| b.value.total_cmp(&a.value).then_with(|| a.label.cmp(&b.label)));
    bars
}

/// What a window is: table, room, time, how late it came, what is missing before it. Who watches a picture knows the day.
fn title(heard: &Heard, lag_ms: i64, with_day: bool) -> String {
    let Heard { message: LiveMessage { table, room, window, .. }, skipped } = heard;
    let (start, end) = (format_rfc3339(window.start), format_rfc3339(window.end));
    // Where both are of one day, the end's day is no news.
    let (start, end) = match start.split_once('T').zip(end.split_once('T')) {
        Some(((day, _), (same, end))) if day == same && with_day => (start, end.to_owned()),
        Some(((day, start), (same, end))) if day == same => (start.to_owned(), end.to_owned()),
        _ => (start, end),
    };
    let skipped = if *skipped > 0 { format!(" · {skipped} skipped") } else { String::new() };
    format!("{} · {} · {start} – {end} · {lag_ms} ms after its end{skipped}", harmless(table), harmless(room))
}

/// A window in one line, for who reads it elsewhere than on a terminal.
pub(super) fn line(heard: &Heard, now_ns: i64, column: Option<&str>) -> String {
    let bars = bars(&heard.message, column);
    let one = |bar: &Bar| {
        let parts = [&bar.label, &bar.count, &bar.scaled];
        parts.into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(" ")
    };
    let rows: Vec<String> = bars.iter().map(one).collect();
    format!("{}: {}", title(heard, lag_ms(heard, now_ns), true), rows.join(", "))
}

/// How long after its end a window is here.
pub(super) fn lag_ms(heard: &Heard, now_ns: i64) -> i64 {
    (now_ns - heard.message.window.end) / NS_PER_MS
}

/// A window as lines of at most `width` columns, at most `height` of them; the bars show that column, where there is one.
pub(super) fn draw(
    heard: &Heard,
    lag_ms: i64,
    (width, height): (usize, usize),
    column: Option<&str>,
) -> Vec<String> {
    let all = bars(&heard.message, column);
    let most = all.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let room = height.saturating_sub(1).max(1);
    let shown = if all.len() > room { &all[..room - 1] } else { &all[..] };
    let widest = |part: fn(&Bar) -> &str| shown.iter().map(|bar| part(bar).width()).max().unwrap_or(0);
    let counts = widest(|bar| &bar.count);
    let scales = widest(|bar| &bar.scaled);
    let beside = counts + scales + 2 + usize::from(scales > 0);
    let labels = widest(|bar| &bar.label).min(width.saturating_sub(beside + LEAST_BAR));
    let length = width.saturating_sub(labels + beside);
    let mut lines = vec![cut(&title(heard, lag_ms, false), width)];
    for bar in shown {
        let part = if most > 0.0 { (bar.value / most).clamp(0.0, 1.0) } else { 0.0 };
        let mut line = format!("{} {}", padded(&bar.label, labels), padded(&blocks(part, length), length));
        line.push_str(&format!(" {:>counts$}", bar.count));
        if scales > 0 {
            line.push_str(&format!(" {:>scales$}", bar.scaled));
        }
        lines.push(cut(line.trim_end(), width));
    }
    if shown.len() < all.len() {
        lines.push(cut(&format!("… and {} more", all.len() - shown.len()), width));
    }
    lines
}

/// So much of `length` columns, to an eighth of one; something where there is anything.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // columns of a terminal
fn blocks(part: f64, length: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (part * length as f64 * 8.0).round() as usize;
    let eighths = if part > 0.0 { eighths.max(1) } else { 0 };
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

/// The text in exactly so many columns.
fn padded(text: &str, columns: usize) -> String {
    let text = cut(text, columns);
    let missing = columns.saturating_sub(text.width());
    text + &" ".repeat(missing)
}

/// The text in at most so many columns, with a sign where something is left out.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut kept = String::new();
    for character in text.chars() {
        kept.push(character);
        if kept.width() + 1 > columns {
            kept.pop();
            break;
        }
    }
    // Half of a joined emoji would stand there as another one.
    while kept.ends_with(|last: char| last == '\u{200d}' || last.width() == Some(0)) {
        kept.pop();
    }
    if columns > 0 { kept + "…" } else { kept }
}

/// The text without what a terminal would obey, or would write the other way round.
pub(super) fn harmless(text: &str) -> String {
    let is_harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
    };
    text.chars().take(MAX_CHARACTERS).map(|c| if is_harmful(c) { '\u{fffd}' } else { c }).collect()
}

/// What puts `lines` in the place of a picture of so many lines that was drawn before, on a terminal.
pub(super) fn redraw(before: usize, lines: &[String]) -> String {
    let back = if before > 0 { format!("\x1b[{before}A\r\x1b[J") } else { String::new() };
    let lines: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
    back + &lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn heard(rows: Value) -> Heard {
        let message = json!({"id": "e1-4711", "table": "emoji_counts", "room": "main", "final": true, "pace_ms": 2000,
            "window": {"start": "2026-06-11T20:00:00Z", "end": "2026-06-11T20:00:02Z"}, "rows": rows});
        serde_json::from_value(message).unwrap()
    }

    fn row(emoji: &str, count: u64) -> Value {
        json!({"emoji_type": emoji, "count": count, "scaled": count.div_ceil(1000)})
    }

    #[track_caller]
    fn check(heard: &Heard, (width, height): (usize, usize), expected: &[&str]) {
        let lines = draw(heard, 45, (width, height), None);
        assert_eq!(lines, expected, "\n{}\n", lines.join("\n"));
        assert!(lines.len() <= height.max(2) && lines.iter().all(|line| line.width() <= width), "{lines:?}");
    }

    #[test]
    fn bars_fill_the_width_the_biggest_first() {
        let rows = json!([row("🎉", 1000), row("😀", 4000), row("👨‍👩‍👧", 0), row("❤️", 1), row("🇩🇪", 2500)]);
        check(
            &heard(rows.clone()),
            (64, 24),
            &[
                "emoji_counts · main · 20:00:00Z – 20:00:02Z · 45 ms after its e…",
                "😀 █████████████████████████████████████████████████████ 4000 ×4",
                "🇩🇪 █████████████████████████████████▏                    2500 ×3",
                "🎉 █████████████▎                                        1000 ×1",
                "❤️ ▏                                                        1 ×1",
                "👨‍👩‍👧                                                          0 ×0",
            ],
        );
        check(
            &heard(rows),
            (24, 4),
            &[
                "emoji_counts · main · 2…",
                "😀 █████████████ 4000 ×4",
                "🇩🇪 ████████▏     2500 ×3",
                "… and 3 more",
            ],
        );
    }

    #[test]
    fn rows_of_any_sink_are_drawn() {
        let rows = json!([
            {"country": "de", "mood": "glad", "people": 2, "share": 0.25},
            {"country": "fr", "mood": null, "people": 4, "share": 0.5},
        ]);
        check(
            &heard(rows),
            (30, 24),
            &[
                "emoji_counts · main · 20:00:0…",
                "fr people 4      ████████  0.5",
                "de glad people 2 ████     0.25",
            ],
        );
        check(&heard(json!([{"mood": "glad"}])), (30, 24), &["emoji_counts · main · 20:00:0…", "glad"]);
        check(
            &heard(json!([])),
            (80, 24),
            &["emoji_counts · main · 20:00:00Z – 20:00:02Z · 45 ms after its end"],
        );
    }

    #[track_caller]
    fn check_line(rows: Value, column: Option<&str>, expected: &str) {
        let line = line(&heard(rows), 0, column);
        assert_eq!(line.split_once("end: ").map(|(_, bars)| bars), Some(expected), "{line}");
    }

    #[test]
    fn bars_show_what_is_counted_and_not_a_place_in_an_order() {
        let top = json!([
            {"rank": 1, "emoji": "🎉", "reactions": 9}, {"rank": 2, "emoji": "😀", "reactions": 4},
        ]);
        check_line(top.clone(), None, "rank 1 🎉 9, rank 2 😀 4");
        check_line(top.clone(), Some("rank"), "😀 reactions 4 2, 🎉 reactions 9 1");
        check_line(top, Some("none"), "rank 1 🎉 9, rank 2 😀 4");
        check_line(json!([{"reactions": 12, "sentiment": 0.25}]), None, "reactions 12 0.25");
        check_line(json!([{"scaled": 2, "share": 0.5, "on": true}]), None, "share 0.5 on true 2");
        check_line(json!([{"a": "x", "users": null}, {"a": "y", "users": 3}]), None, "y 3, x");
        check_line(json!([{"rank": 1, "emoji": "🎉"}]), None, "🎉 1");
        check_line(json!([{"emoji": "🎉", "count": 3, "scaled": 1}]), Some("scaled"), "🎉 count 3 1");
    }

    #[test]
    fn what_strangers_write_stays_in_its_line_and_obeys_no_width() {
        let hostile = heard(json!([row("\x1b[2J\u{202e}\nx", 1), row(&"😀".repeat(200), 2)]));
        for (width, height) in [(80, 24), (20, 2), (3, 1), (0, 0)] {
            let lines = draw(&hostile, 45, (width, height), None);
            assert!(!lines.concat().contains(['\x1b', '\n', '\u{202e}']), "{lines:?}");
            assert!(lines.iter().all(|line| line.width() <= width), "{width}: {lines:?}");
        }
        assert!(!line(&hostile, 0, None).contains(['\x1b', '\n', '\u{202e}']));
    }

    #[test]
    fn elsewhere_than_on_a_terminal_a_window_is_one_line() {
        let mut window = heard(json!([row("🎉", 12), row("😀", 3785)]));
        window.skipped = 3;
        let now_ns = window.message.window.end + 45 * NS_PER_MS;
        assert_eq!(
            line(&window, now_ns, None),
            "emoji_counts · main · 2026-06-11T20:00:00Z – 20:00:02Z · 45 ms after its end · 3 skipped: 😀 3785 ×4, 🎉 12 ×1"
        );
    }

    #[test]
    fn a_picture_takes_the_place_of_the_one_before() {
        let lines = ["a".to_owned(), "b".to_owned()];
        assert_eq!(redraw(0, &lines), "a\nb\n");
        assert_eq!(redraw(3, &lines), "\x1b[3A\r\x1b[Ja\nb\n");
    }
}
