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
    as_sql(&text)
}

/// Intervals and counts as SQL writes them: DataFusion prints them as values of Rust.
fn as_sql(plan: &str) -> String {
    const OPEN: &str = "IntervalMonthDayNano(\"IntervalMonthDayNano {";
    const CLOSE: &str = "}\")";
    let counted = plan.replace("count(Int64(1)) AS count(*)", "count(*)");
    let mut text = counted.replace("count(Int64(1))", "count(*)");
    while let Some(start) = text.find(OPEN)
        && let Some(length) = text[start..].find(CLOSE)
    {
        let fields = text[start + OPEN.len()..start + length].split(',');
        let numbers = fields.filter_map(|field| field.split_once(": ")?.1.trim().parse::<f64>().ok());
        let units = [("months", 1.0), ("days", 1.0), ("seconds", 1e9)];
        let parts = numbers.zip(units).filter(|(number, _)| *number != 0.0);
        let parts: Vec<String> =
            parts.map(|(number, (unit, of_one))| format!("{} {unit}", number / of_one)).collect();
        let parts = if parts.is_empty() { "0 seconds".to_owned() } else { parts.join(" ") };
        text.replace_range(start..start + length + CLOSE.len(), &format!("INTERVAL '{parts}'"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_and_counts_are_written_as_sql_writes_them() {
        let interval = |fields| format!("IntervalMonthDayNano(\"IntervalMonthDayNano {{ {fields} }}\")");
        let width = interval("months: 0, days: 0, nanoseconds: 2500000000");
        let long = interval("months: 1, days: -2, nanoseconds: 0");
        let plan = format!("Projection: tumble({width}) AS w, {long}, count(Int64(1)) AS count(*) AS count");
        let written =
            "Projection: tumble(INTERVAL '2.5 seconds') AS w, INTERVAL '1 months -2 days', count(*) AS count";
        assert_eq!(as_sql(&plan), written);
        assert_eq!(as_sql("keep    count(Int64(1))"), "keep    count(*)");
    }
}
