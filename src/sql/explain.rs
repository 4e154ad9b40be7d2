//! A cut plan in words: what is done with each record, what is kept of a window, what is done with a closed one.

use std::fmt::Write as _;

use super::Query;
use super::cut::Part;
use super::statics::Step;

/// The plan of a query as several lines of text, the same for the same plan.
pub fn explain(query: &Query) -> String {
    let mut text = String::new();
    for (place, cut) in query.cuts.iter().enumerate() {
        for input in &cut.inputs {
            text += &format!("below cut {place}, for each record:\n");
            line(&mut text, "read", &input.source);
            steps(&mut text, &input.steps);
            for key in &input.keys {
                line(&mut text, "key", key);
            }
            for aggregate in &input.aggregates {
                line(&mut text, "keep", aggregate);
            }
        }
        text += &format!("at cut {place}:\n");
        line(&mut text, "window", cut.windowing);
    }
    for output in &query.outputs {
        for part in &output.parts {
            explain_part(&mut text, part);
        }
        line(&mut text, "write", &output.sink.name);
    }
    text
}

fn explain_part(text: &mut String, part: &Part) {
    match part {
        Part::Windowed(part) => {
            let cuts: Vec<String> = part.cuts.iter().map(ToString::to_string).collect();
            *text += &format!("above cut {}, for each closed window:\n", cuts.join(" and "));
            for step in part.above.display_indent().to_string().lines() {
                *text += &format!("  {step}\n");
            }
        }
        Part::RowWise(rows) => {
            *text += "for each row as it comes:\n";
            line(text, "read", &rows.source);
            steps(text, &rows.steps);
            for column in &rows.columns {
                line(text, "column", column);
            }
        }
    }
}

fn steps(text: &mut String, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Where(condition) => line(text, "where", condition),
            Step::Join(_) => *text += &format!("  {step}\n"),
        }
    }
}

fn line(text: &mut String, what: &str, of: impl std::fmt::Display) {
    // Writing to a String does not fail.
    writeln!(text, "  {what:<7} {of}").unwrap_or_default();
}
