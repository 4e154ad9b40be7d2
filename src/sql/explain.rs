//! A cut plan in words: what is done with each record, what is kept of a window, what is done with a closed one.

use std::fmt::Write as _;

use super::Query;

/// The plan of a query as several lines of text, the same for the same plan.
pub fn explain(query: &Query) -> String {
    let cut = &query.cut;
    let mut text = format!("{} → {}\n", query.source.name, query.sink.name);
    text += "below the cut, for each record:\n";
    line(&mut text, "read", &query.source.topic);
    for filter in &cut.filters {
        line(&mut text, "where", filter);
    }
    text += "at the cut:\n";
    line(&mut text, "window", format!("tumble({})", width(cut.window.width_ns)));
    for (_, key) in &cut.keys {
        line(&mut text, "key", key);
    }
    for aggregate in &cut.aggregates {
        line(&mut text, "keep", aggregate);
    }
    text += "above the cut, for each closed window:\n";
    for step in cut.above.display_indent().to_string().lines() {
        text += &format!("  {step}\n");
    }
    line(&mut text, "write", &query.sink.topic);
    text
}

fn line(text: &mut String, what: &str, of: impl std::fmt::Display) {
    // Writing to a String does not fail.
    writeln!(text, "  {what:<7} {of}").unwrap_or_default();
}

/// A span of time as people write it.
pub fn width(ns: i64) -> String {
    match ns {
        ns if ns % 1_000_000_000 == 0 => format!("{} s", ns / 1_000_000_000),
        ns if ns % 1_000_000 == 0 => format!("{} ms", ns / 1_000_000),
        ns => format!("{ns} ns"),
    }
}
