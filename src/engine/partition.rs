//! One partition of a query: records in, panes out. Pure: records, times and boundaries are arguments.
//!
//! A record is atomic for time: its rows are judged by what was closed before it, then its largest event time
//! advances the watermark. Every row is accounted once: filtered, future, late, bad, or in a pane (open, then counted).

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::datatypes::TimestampNanosecondType;
use datafusion::common::Result;

use super::aggregate::Pane;
use super::compile::CompiledQuery;
use super::defaults::read_record;
use super::expression::Rows;
use super::groups::Scratch;
use super::watermark::Watermark;
use super::window::runs;
use crate::log::{HEADER_ROWS, Record, codec};
use crate::reaction::checkpoint::Position;
use crate::reaction::time::NS_PER_MS;

/// Rows accounted so far in one partition since the query's start (or its last one), besides those in panes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// By the records' row-count headers.
    pub accepted: u64,
    /// Left out by a WHERE.
    pub filtered: u64,
    /// Their window was closed.
    pub late: u64,
    /// Dated too far ahead of their record.
    pub future: u64,
    /// In records that could not be decoded.
    pub bad: u64,
}

/// How the wall clock is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRules {
    /// How far a row may be dated after its record's timestamp.
    pub future_tolerance_ms: i64,
    /// How long a partition must have been quiet before a proof of its end moves its watermark.
    pub idle_ms: i64,
}

/// What a partition hands over when windows close: one step, so that results and positions agree.
pub struct HandOver {
    /// The panes that are over, by start.
    pub(crate) panes: Vec<Pane>,
    /// Positions after it.
    pub position: Position,
    /// The account up to `position.seen`.
    pub account: Account,
    /// Rows in panes still open.
    pub open: u64,
}

/// One partition's panes, watermark and account.
pub struct Partition {
    query: Arc<CompiledQuery>,
    rules: TimeRules,
    number: u32,
    /// Records below are already accounted: they only fill panes again.
    accounted_to: i64,
    /// What they fill begins this version's account.
    begins_account: bool,

    /// Windows ending at or before this are closed; a row for them is late.
    closed_to: Option<i64>,
    next: i64,
    watermark: Watermark,
    last_record_ms: Option<i64>,
    panes: BTreeMap<i64, Pane>,

    account: Account,
    scratch: Scratch,
}

impl Partition {
    /// A partition that goes on from a checkpoint's position, with everything up to `emitted` closed.
    pub fn new(query: Arc<CompiledQuery>, rules: TimeRules, from: Position, emitted: Option<i64>) -> Self {
        Self {
            watermark: Watermark::new(query.delay_ns, from.watermark),
            query,
            rules,
            number: 0,
            accounted_to: from.seen,
            begins_account: false,
            closed_to: emitted,
            next: from.resume,
            last_record_ms: None,
            panes: BTreeMap::new(),
            account: Account::default(),
            scratch: Scratch::default(),
        }
    }

    /// The same as partition `number` of its topic, for `METADATA FROM 'partition'`.
    #[must_use]
    pub fn numbered(self, number: u32) -> Self {
        Self { number, ..self }
    }

    /// The same, where rows filled in again are the first of a new account.
    #[must_use]
    pub fn beginning_account(self, begins: bool) -> Self {
        Self { begins_account: begins, ..self }
    }

    /// The offset after the last record taken in.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// Whether everything that was accounted before the start has been read again.
    pub fn is_rebuilt(&self) -> bool {
        self.next >= self.accounted_to
    }

    /// The partition's watermark; held at the checkpoint's until the partition is rebuilt.
    pub fn watermark(&self) -> Option<i64> {
        self.watermark.value()
    }

    /// Groups held in open panes.
    pub fn groups(&self) -> usize {
        self.panes.values().map(Pane::groups).sum()
    }

    /// Rows in open panes.
    pub fn open(&self) -> u64 {
        self.panes.values().map(|pane| pane.rows).sum()
    }

    /// The account so far.
    pub fn account(&self) -> Account {
        self.account
    }

    /// The end of the earliest open pane: nothing has to happen before the watermark is there.
    pub fn earliest_end(&self) -> Option<i64> {
        self.panes.first_key_value().map(|(_, pane)| pane.window.end)
    }

    /// Takes in the next record. `now_ms` is the wall clock when it was read.
    ///
    /// # Errors
    /// When an expression fails on a row: the query cannot go on. A record that cannot be decoded is no error; its
    /// rows are `bad`.
    pub fn push(&mut self, record: &Record, now_ms: i64) -> Result<Option<codec::CodecError>> {
        let fresh = record.offset >= self.accounted_to;
        let declared = record.header(HEADER_ROWS).and_then(|rows| rows.parse::<u64>().ok());
        let decoded = self.decode(record, declared);
        self.next = record.offset + 1;
        self.last_record_ms = Some(now_ms);
        match decoded {
            Ok(rows) => {
                let total = rows.len() as u64;
                let before = self.account;
                let refilled_from = (!fresh && self.begins_account).then(|| self.open());
                self.take_in(&rows, record)?;
                if fresh {
                    self.account.accepted += declared.unwrap_or(total);
                } else {
                    self.account = before;
                }
                if let Some(open) = refilled_from {
                    self.account.accepted += self.open() - open;
                }
                Ok(None)
            }
            Err(error) => {
                if fresh {
                    self.account.accepted += declared.unwrap_or_default();
                    self.account.bad += declared.unwrap_or_default();
                }
                Ok(Some(error))
            }
        }
    }

    /// Offsets up to `next` hold no record for readers (transaction markers do take offsets).
    pub fn skip_to(&mut self, next: i64) {
        self.next = self.next.max(next);
    }

    /// Every record appended before `complete_until_ms` has been taken in.
    pub fn prove_end(&mut self, complete_until_ms: i64) {
        let quiet_since = self.last_record_ms.map_or(i64::MAX, |last| complete_until_ms.saturating_sub(last));
        if quiet_since >= self.rules.idle_ms {
            self.watermark.prove_idle(complete_until_ms.saturating_mul(NS_PER_MS));
        }
    }

    /// Closes every window that ends at or before `boundary` and hands it over; without one, only positions.
    pub fn hand_over(&mut self, boundary: Option<i64>) -> HandOver {
        self.closed_to = self.closed_to.max(boundary);
        let mut closed = BTreeMap::new();
        if let Some(first_open) = boundary {
            let open = self.panes.split_off(&(first_open.saturating_sub(self.query.panes.width_ns() - 1)));
            closed = std::mem::replace(&mut self.panes, open);
        }
        let resume = self.panes.values().map(|pane| pane.first_offset).min();
        HandOver {
            panes: closed.into_values().collect(),
            position: Position {
                resume: resume.unwrap_or(self.next),
                seen: self.next,
                watermark: self.watermark.value(),
            },
            account: self.account,
            open: self.open(),
        }
    }

    fn decode(&self, record: &Record, declared: Option<u64>) -> std::result::Result<Rows, codec::CodecError> {
        let query = &self.query;
        let batch = read_record(&query.source, &query.schema, &query.columns, record, self.number)?;
        if declared.is_some_and(|declared| declared != batch.num_rows() as u64) {
            return Err(codec::CodecError::Damaged("its row count is not that of its header".to_owned()));
        }
        for (column, &place) in batch.columns().iter().zip(&query.columns) {
            let field = query.schema.field(place);
            if !field.is_nullable() && column.is_nullable() && column.logical_null_count() > 0 {
                return Err(codec::CodecError::WrongSchema(format!("column {} holds a null", field.name())));
            }
        }
        Ok(Rows::new(batch))
    }

    fn take_in(&mut self, rows: &Rows, record: &Record) -> Result<()> {
        let query = Arc::clone(&self.query);
        self.watermark_after(rows, record);
        let mut kept = None;
        for filter in &query.filters {
            let input = kept.as_ref().unwrap_or(rows);
            let condition = filter.evaluate_condition(input)?;
            if condition.true_count() < input.len() {
                kept = Some(input.filter(&condition)?);
            }
        }
        let passed = kept.as_ref().unwrap_or(rows);
        self.account.filtered += (rows.len() - passed.len()) as u64;
        match self.on_time(passed, record) {
            Some(keep) => {
                let on_time = passed.filter(&keep)?;
                self.fill_panes(&on_time, record.offset)
            }
            None => self.fill_panes(passed, record.offset),
        }
    }

    fn event_ns<'r>(&self, rows: &'r Rows) -> &'r [i64] {
        rows.batch().column(self.query.event_time).as_primitive::<TimestampNanosecondType>().values()
    }

    fn future_from(&self, record: &Record) -> i64 {
        let tolerated_ms = record.timestamp_ms.saturating_add(self.rules.future_tolerance_ms);
        tolerated_ms.saturating_mul(NS_PER_MS)
    }

    /// The largest event time that is not future advances the watermark, whatever WHERE says of its row.
    fn watermark_after(&mut self, rows: &Rows, record: &Record) {
        let future_from = self.future_from(record);
        let largest = self.event_ns(rows).iter().filter(|&&ns| ns <= future_from).max();
        if let Some(&largest) = largest {
            self.watermark.advance(largest);
        }
    }

    /// Which rows are neither future nor late, `None` when all are.
    fn on_time(&mut self, rows: &Rows, record: &Record) -> Option<BooleanArray> {
        let future_from = self.future_from(record);
        let closed_to = self.closed_to.unwrap_or(i64::MIN);
        let event_ns = self.event_ns(rows);
        let future = event_ns.iter().filter(|&&ns| ns > future_from).count();
        let late = event_ns.iter().filter(|&&ns| ns <= future_from && ns < closed_to).count();
        if future + late == 0 {
            return None;
        }
        let keep = event_ns.iter().map(|&ns| Some(ns <= future_from && ns >= closed_to)).collect();
        self.account.future += future as u64;
        self.account.late += late as u64;
        Some(keep)
    }

    fn fill_panes(&mut self, rows: &Rows, offset: i64) -> Result<()> {
        let (runs, left_out) = runs(self.query.panes, self.event_ns(rows));
        // Times at the very ends of 64 bits, which no window holds.
        self.account.bad += left_out as u64;
        for run in runs {
            let pane = match self.panes.entry(run.pane.start) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(Pane::new(&self.query.aggregation, run.pane, offset)?)
                }
            };
            if run.rows == rows.len() {
                pane.update(&self.query.aggregation, rows, &mut self.scratch)?;
            } else {
                pane.update(&self.query.aggregation, &rows.slice(run.from, run.rows), &mut self.scratch)?;
            }
        }
        Ok(())
    }
}
