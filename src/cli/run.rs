//! `emostream run`: SQL over inputs that end, to their end. The wall clock plays no part.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use indicatif::ProgressBar;

use super::Failure;
use super::check::{compiled, load_files};
use super::print::{Printed, Shape};
use crate::engine::bounded::{BoundedError, Ended, run_to_end};
use crate::engine::compile::CompiledQuery;
use crate::engine::connector::output::Output;
use crate::engine::connector::{ConnectorError, Cursor, Input, beside, file, impulse};
use crate::engine::statics::StaticTables;
use crate::reaction::table::{Connector, Table};
use crate::sql::{Program, Query, SqlFile, plan_program_with};

const NO_SOURCE: &str = "is a topic of the log (connector = 'kafka'), which has no end; declare it with connector = \
                         'single_file', path = '…', or run it by 'emostream up'";
const NO_SINK: &str = "is a topic of the log (connector = 'kafka'), which 'emostream run' does not write; declare it with \
                       connector = 'single_file', path = '…', or 'stdout', or run it by 'emostream up'";

/// Run SQL to the end of its inputs and exit
///
/// The sources are files (connector = 'single_file') or made up (connector = 'impulse' with a message_count). At their
/// end every window closes. INSERTs write their sinks; a SELECT on its own is printed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The files, as one program whatever their order; tables not declared among them come from tables.sql beside them
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// How the rows of a SELECT on its own are printed
    #[arg(long, value_enum, default_value_t = Shape::Table)]
    format: Shape,
}

/// Runs the files' queries one after the other, in the order of the files, SELECTs last.
///
/// # Errors
/// Exit code 1 for what is wrong in the SQL or an input, with its place; 3 when a file or the terminal fails.
pub fn run(args: &Args) -> Result<(), Failure> {
    let (files, beside) = load_files(&args.files).map_err(|error| Failure::input(error.to_string()))?;
    let read: Vec<SqlFile> = files.iter().chain(&beside).cloned().collect();
    let planned = plan_program_with(&files, &beside).and_then(|program| compiled(program, &read));
    let program = planned.map_err(|found| {
        found.iter().for_each(|diagnostic| eprintln!("{diagnostic}\n"));
        Failure::input("")
    })?;
    program.warnings.iter().for_each(|warning| eprintln!("{warning}\n"));
    if program.queries.is_empty() && program.selects.is_empty() {
        return Err(Failure::input("there is nothing to run: write a SELECT, or INSERT INTO a sink SELECT"));
    }
    check_connectors(&program)?;
    let progress = ProgressBar::no_length();
    for query in &program.queries {
        let mut outputs = Vec::new();
        for sink in query.sinks() {
            outputs.push(open_output(sink, &read)?);
        }
        let ended = run_query(query, &read, &progress, |output, rows| outputs[output].write(rows))?;
        outputs.into_iter().try_for_each(Output::finish).map_err(failure)?;
        tell(&query.name, &ended);
    }
    for select in &program.selects {
        let mut printed = Printed::new(args.format, &select.columns, Box::new(std::io::stdout()));
        let ended = run_query(&select.query, &read, &progress, |_, rows| printed.write(rows))?;
        printed.finish().map_err(failure)?;
        tell(&select.query.name, &ended);
    }
    progress.finish_and_clear();
    Ok(())
}

/// Before anything is written.
fn check_connectors(program: &Program) -> Result<(), Failure> {
    for query in program.queries.iter().chain(program.selects.iter().map(|select| &select.query)) {
        let refused = |table: &Table, why: &str| {
            Err(Failure::input(format!("{}: table '{}' {why}", query.name, table.name)))
        };
        for source in &query.sources {
            match source.with.connector {
                Connector::SingleFile { .. } | Connector::Impulse { message_count: Some(_), .. } => {}
                Connector::Impulse { message_count: None, .. } => {
                    return refused(source, "has no end; give it a message_count");
                }
                _ => return refused(source, NO_SOURCE),
            }
        }
        if let Some(sink) = query.sinks().find(|sink| sink.with.connector == Connector::Kafka) {
            return refused(sink, NO_SINK);
        }
    }
    Ok(())
}

fn run_query(
    query: &Query,
    files: &[SqlFile],
    progress: &ProgressBar,
    on_result: impl FnMut(usize, &RecordBatch) -> Result<(), ConnectorError>,
) -> Result<Ended, Failure> {
    progress.set_message(query.name.clone());
    let failed = |error: &dyn std::fmt::Display| Failure::input(format!("{}: {error}", query.name));
    let statics = StaticTables::read(&query.statics, files).map_err(|(_, error)| failure(error))?;
    let compiled = CompiledQuery::compile_with(query, &statics).map_err(|error| failed(&error))?;
    let mut inputs: Vec<Input> = Vec::new();
    for source in &compiled.sources {
        let progress = progress.clone();
        inputs.push(Box::new(open_input(&source.table, files)?.inspect(move |_| progress.inc(1))));
    }
    run_to_end(&Arc::new(compiled), inputs, on_result).map_err(|error| match error {
        BoundedError::Connector(error) => failure(error),
        BoundedError::Query(error) => failed(&error),
    })
}

fn open_input(source: &Table, files: &[SqlFile]) -> Result<Input, Failure> {
    match &source.with.connector {
        Connector::SingleFile { path } => {
            file::read(source, &beside(source, path, files), path, Cursor::default()).map_err(failure)
        }
        Connector::Impulse { event_rate, message_count } => {
            Ok(impulse::impulse(source, *event_rate, message_count.unwrap_or_default(), Cursor::default()))
        }
        // Refused before.
        _ => Ok(Box::new(std::iter::empty())),
    }
}

fn open_output(sink: &Table, files: &[SqlFile]) -> Result<Output, Failure> {
    match &sink.with.connector {
        Connector::SingleFile { path } => {
            Output::file(sink, &beside(sink, path, files), path).map_err(failure)
        }
        Connector::Stdout => Ok(Output::stdout(sink, Box::new(std::io::stdout()))),
        _ => Ok(Output::Nothing),
    }
}

fn failure(error: ConnectorError) -> Failure {
    match error {
        ConnectorError::Input(message) => Failure::input(message),
        ConnectorError::Outside(message) => Failure::outside(message),
    }
}

/// What a person would ask when rows are missing from a result.
fn tell(query: &str, ended: &Ended) {
    let Ended { figures, bad, first_bad } = ended;
    if let Some(first) = first_bad {
        let what = "cannot be read and are not counted; bad_data = 'fail' would stop there. The first: ";
        eprintln!("emostream: {query}: {bad} lines {what}{first}");
    }
    if figures.late > 0 {
        let delay = "their order in the input is further from that of time than the watermark's delay";
        eprintln!("emostream: {query}: {} rows came late and are not counted: {delay}", figures.late);
    }
}
