//! What queries over one source do once for all of them: the columns that are decoded, and what becomes of rows in panes
//! for queries that differ only above the cut. Pure.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use datafusion::common::Result;

use super::aggregate::{Aggregation, Pane, Partial};
use super::compile::{CompiledInput, CompiledQuery, CompiledSource, Target};
use super::decode::{Columns, Decoded, project};
use super::expression::Rows;
use super::filling::IntoPanes;
use super::groups::Scratch;
use super::steps;
use crate::reaction::time::Window;

/// Rows fewer than this go into every query's panes by themselves: taking in partial aggregates has a price of its own.
const MIN_ROWS: usize = 256;
/// And so do rows with fewer than so many in a group.
const MIN_ROWS_OF_GROUP: usize = 4;

/// A query as a reader of one of its sources.
#[derive(Clone, Debug)]
pub(crate) struct SourceOf {
    pub(crate) query: Arc<CompiledQuery>,
    pub(crate) source: usize,
}

impl SourceOf {
    pub(crate) fn compiled(&self) -> &CompiledSource {
        &self.query.sources[self.source]
    }

    pub(crate) fn columns(&self) -> &Columns {
        &self.compiled().columns
    }
}

/// What those have in common that read a source together.
#[derive(Debug)]
pub(crate) struct Common {
    /// All columns that any of them reads.
    pub(crate) columns: Columns,
    /// The inputs that several of them have.
    inputs: Vec<CommonInput>,
}

#[derive(Debug)]
struct CommonInput {
    identity: Arc<str>,
    /// One of those that have it, and which of its inputs it is.
    of: SourceOf,
    input: usize,
    /// Where its columns are among all.
    columns: Vec<usize>,
}

impl Common {
    /// Of one query alone.
    pub(crate) fn of_one(reader: &SourceOf) -> Self {
        Self { columns: reader.columns().clone(), inputs: Vec::new() }
    }

    /// Of all `readers` of a table, of which `one` is any.
    pub(crate) fn of<'s>(one: &SourceOf, readers: impl IntoIterator<Item = &'s SourceOf>) -> Self {
        let readers: Vec<&SourceOf> = readers.into_iter().collect();
        let one = one.columns();
        let columns = one.with(readers.iter().flat_map(|reader| reader.columns().places.iter().copied()));
        let inputs = common_inputs(&readers, &columns);
        Self { columns, inputs }
    }

    /// What becomes of decoded rows in the panes of every common input, where that is worth its price. What fails is left
    /// out: each query will find that out for itself.
    pub(crate) fn in_panes(&self, decoded: &Decoded) -> Arc<[(Arc<str>, InPanes)]> {
        if self.inputs.is_empty() || decoded.rows().len() < MIN_ROWS {
            return Arc::default();
        }
        let mut scratch = Scratch::default();
        let in_panes = self.inputs.iter().filter_map(|input| {
            let in_panes = input.in_panes(decoded.rows(), &mut scratch).ok()??;
            Some((Arc::clone(&input.identity), in_panes))
        });
        in_panes.collect()
    }
}

fn common_inputs(readers: &[&SourceOf], columns: &Columns) -> Vec<CommonInput> {
    let mut found: BTreeMap<&Arc<str>, Vec<(&SourceOf, usize)>> = BTreeMap::new();
    for reader in readers {
        for (place, input) in reader.compiled().inputs.iter().enumerate() {
            if let Some(identity) = &input.identity {
                found.entry(identity).or_default().push((reader, place));
            }
        }
    }
    let common = found.into_iter().filter_map(|(identity, having)| match having[..] {
        [(of, input), _, ..] => Some(CommonInput {
            identity: Arc::clone(identity),
            of: of.clone(),
            input,
            columns: columns.places_of(of.columns())?,
        }),
        _ => None,
    });
    common.collect()
}

impl CommonInput {
    fn in_panes(&self, rows: &Rows, scratch: &mut Scratch) -> Result<Option<InPanes>> {
        let source = self.of.compiled();
        let CompiledInput { steps, into, .. } = &source.inputs[self.input];
        let Target::Cut { cut, keys, arguments } = into else { return Ok(None) };
        let cut = &self.of.query.cuts[*cut];
        let (Some(panes), aggregation) = (cut.panes, &cut.aggregation) else { return Ok(None) };
        let rows = project(rows, &self.columns)?;
        let kept = steps::apply(steps, &rows)?;
        let passed = kept.as_ref().unwrap_or(&rows);
        let mut open = BTreeMap::new();
        let into = IntoPanes { aggregation, keys, arguments };
        let event_ns = source.columns.event_ns(passed);
        let left_out = into.fill(panes, &mut open, passed, event_ns, 0, scratch)?;
        let groups: usize = open.values().map(|pane| pane.accumulation.size().groups).sum();
        if groups * MIN_ROWS_OF_GROUP > passed.len() {
            return Ok(None);
        }
        let panes = open.into_values().map(|Pane { window, rows, accumulation, .. }| {
            Ok(OfPane { window, rows, partial: accumulation.into_partial()? })
        });
        Ok(Some(InPanes { passed: passed.len() as u64, left_out, panes: panes.collect::<Result<_>>()? }))
    }
}

/// What becomes of rows in the panes of an input when none of them is late or in the future.
#[derive(Debug)]
pub(crate) struct InPanes {
    /// How many pass the filters.
    pub(crate) passed: u64,
    /// Of those, how many no window holds.
    pub(crate) left_out: u64,
    panes: Vec<OfPane>,
}

#[derive(Debug)]
struct OfPane {
    window: Window,
    rows: u64,
    partial: Partial,
}

impl InPanes {
    /// As [`IntoPanes::fill`] with the rows themselves.
    pub(crate) fn fill(
        &self,
        aggregation: &Aggregation,
        open: &mut BTreeMap<i64, Pane>,
        offset: i64,
        scratch: &mut Scratch,
    ) -> Result<()> {
        for OfPane { window, rows, partial } in &self.panes {
            let pane = match open.entry(window.start) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(Pane::new(aggregation, *window, offset)?),
            };
            pane.accumulation.merge(partial, scratch)?;
            pane.rows += rows;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use serde_json::json;

    use super::*;
    use crate::engine::closing::{Closer, Start};
    use crate::engine::decode::decode;
    use crate::engine::partition::{Partition, TimeRules};
    use crate::log::Record;
    use crate::reaction::figures::Figures;
    use crate::reaction::time::{NS_PER_MS, format_rfc3339};
    use crate::sql::{SqlFile, plan_program};

    const TABLES: &str = "
CREATE TABLE given (user_id TEXT NOT NULL, room TEXT NOT NULL, weight BIGINT, at TIMESTAMP NOT NULL,
  WATERMARK FOR at AS (at - INTERVAL '500 milliseconds'))
WITH (connector = 'kafka', type = 'source', format = 'json', framing = 'newline');
CREATE TABLE sums (start TIMESTAMP, room TEXT, a BIGINT, b BIGINT) WITH (connector = 'kafka', type = 'sink');";
    const WINDOWS: [&str; 3] = [
        "tumble(INTERVAL '2 seconds')",
        "hop(INTERVAL '1 second', INTERVAL '3 seconds')",
        "tumble(INTERVAL '90 seconds')",
    ];

    /// A query over what `below` says of `given`, with a condition above the cut.
    fn reader(below: &str, above: &str) -> SourceOf {
        let text = format!(
            "INSERT INTO sums SELECT window.start, room, a, b FROM ({below} GROUP BY 1, 2) WHERE {above};"
        );
        let file = |name: &str, text: &str| SqlFile { name: name.to_owned(), text: text.to_owned() };
        let program = plan_program(&[file("tables.sql", TABLES), file("sums.sql", &text)]).unwrap();
        SourceOf { query: Arc::new(CompiledQuery::compile(&program.queries[0]).unwrap()), source: 0 }
    }

    fn below(window: &str) -> String {
        format!(
            "SELECT {window} AS window, upper(room) AS room, count(*) AS a, sum(weight) FILTER (WHERE room <> 'r1') AS b
             FROM given WHERE user_id <> 'u3'"
        )
    }

    /// Records of a hundred rows; every fourth read has rows that are late or in the future.
    fn reads(random: &mut StdRng) -> Vec<Vec<Record>> {
        let mut offset = 0;
        let mut read = |number: i64| {
            let now_ms = 100_000 + number * 700;
            let records = (0..5).map(|_| {
                let rows = (0..100).map(|_| {
                    let ms = match random.random_range(0..40) {
                        0 if number % 4 == 3 => now_ms - 9_000,
                        1 if number % 4 == 3 => now_ms + 7_000,
                        _ => now_ms - random.random_range(0..400),
                    };
                    let user = format!("u{}", random.random_range(0..9));
                    let room = format!("r{}", random.random_range(0..4));
                    let at = format_rfc3339(ms * NS_PER_MS);
                    json!({"user_id": user, "room": room, "weight": random.random_range(0..9), "at": at})
                        .to_string()
                });
                let value = Some(rows.collect::<Vec<_>>().join("\n").into());
                offset += 1;
                Record { offset, timestamp_ms: now_ms, key: None, value, headers: Vec::new() }
            });
            records.collect()
        };
        (0..24).map(&mut read).collect()
    }

    fn decoded(reader: &SourceOf, columns: &Columns, records: &[Record]) -> Decoded {
        decode(&reader.compiled().codec, columns, records, 0)
    }

    fn partition(reader: &SourceOf) -> (Partition, Closer) {
        let start = Start::decide(&reader.query, None, &[vec![0]]);
        let rules = TimeRules { future_tolerance_ms: 5_000, idle_ms: 0 };
        let partition = Partition::new(Arc::clone(&reader.query), start.lanes[0], rules, &start).unwrap();
        (partition, Closer::new(Arc::clone(&reader.query), 1, &start))
    }

    /// The figures after every read, and the windows, with what is `common` worked out once or not at all.
    fn taken(
        reader: &SourceOf,
        reads: &[Vec<Record>],
        common: Option<&Common>,
    ) -> (Vec<Figures>, Vec<String>) {
        let ((mut partition, mut closer), mut figures, mut windows) = (partition(reader), vec![], vec![]);
        for read in reads {
            let mut rest = &read[..];
            while !rest.is_empty() {
                let decoded = match common {
                    Some(common) => {
                        let mut all = decoded(reader, &common.columns, rest);
                        all.in_panes = common.in_panes(&all);
                        assert!(!all.in_panes.is_empty());
                        all.project(&common.columns.places_of(reader.columns()).unwrap()).unwrap()
                    }
                    None => decoded(reader, reader.columns(), rest),
                };
                rest = &rest[partition.take(rest, &decoded, 0).unwrap().taken..];
            }
            let boundary = partition.watermark().and_then(|ns| reader.query.boundary_at_or_before(ns));
            let closed = closer.close(vec![partition.hand_over(boundary).unwrap()], boundary).unwrap();
            figures.push(closed.checkpoint.figures);
            for closed in closed.windows() {
                let mut rows: Vec<String> = closed.rows.iter().flat_map(lines).collect();
                rows.sort();
                windows.push(format!("{:?} {rows:?}", closed.window));
            }
        }
        (figures, windows)
    }

    fn lines(batch: &arrow::array::RecordBatch) -> Vec<String> {
        let row = |row| {
            let values = batch.columns().iter();
            values.map(|column| crate::reaction::json::json_value(column, row).unwrap().to_string()).collect()
        };
        (0..batch.num_rows()).map(row).collect()
    }

    #[test]
    fn what_is_worked_out_once_is_what_each_query_works_out_alone() {
        for (seed, window) in (0..).zip(WINDOWS) {
            let reads = reads(&mut StdRng::seed_from_u64(seed));
            let (all, many) = (reader(&below(window), "true"), reader(&below(window), "a > 30"));
            let other = reader(&below(window).replace("user_id <> 'u3'", "weight > 1"), "true");
            let common = Common::of(&all, [&other, &all, &many]);
            assert_eq!(common.inputs.len(), 1, "{window}");
            for query in [&all, &many] {
                let alone = taken(query, &reads, None);
                let last = alone.0.last().unwrap();
                assert!(last.future > 20 && last.filtered > 200, "{last:?}");
                assert!((last.late > 20 && alone.1.len() > 3) || window.contains("90"), "{last:?}");
                assert_eq!(taken(query, &reads, Some(&common)), alone, "{window}");
            }
        }
    }

    #[test]
    fn rows_that_are_all_on_time_are_not_looked_at_again() {
        let query = reader(&below(WINDOWS[0]), "true");
        let common = Common::of(&query, [&query, &query]);
        let reads = reads(&mut StdRng::seed_from_u64(7));
        let (mut one, other) =
            (decoded(&query, query.columns(), &reads[0]), decoded(&query, query.columns(), &reads[0][..3]));
        one.in_panes = common.in_panes(&other);
        let (mut partition, _) = partition(&query);
        partition.take(&reads[0], &one, 0).unwrap();
        assert_eq!(partition.open(), one.in_panes[0].1.passed, "what was worked out counts, not the rows");
        assert!(partition.open() < 300);
    }

    #[test]
    fn it_is_not_worth_it_for_few_rows_or_many_groups() {
        let query = reader(&below(WINDOWS[0]), "true");
        let by_user =
            reader(&below(WINDOWS[0]).replace("upper(room)", "concat(user_id, room, weight)"), "true");
        let reads = reads(&mut StdRng::seed_from_u64(7));
        for (query, records, is_worth_it) in [(&query, 3, true), (&query, 2, false), (&by_user, 5, false)] {
            let decoded = decoded(query, query.columns(), &reads[0][..records]);
            let in_panes = Common::of(query, [query, query]).in_panes(&decoded);
            assert_eq!(!in_panes.is_empty(), is_worth_it, "{records} records");
        }
        assert!(Common::of(&query, [&query, &by_user]).inputs.is_empty(), "nobody has the same");
    }
}
