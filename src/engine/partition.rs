//! One partition of a query's source: records in, panes out. Pure: records, times and boundaries are arguments.
//!
//! A record is atomic for time: its rows are judged by what was closed before it, and its largest event time advances
//! the watermark. Every row is accounted once for each input of the query that reads the source: filtered,
//! future, late, bad, or taken in (open, then counted).

mod handing;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::BooleanArray;
use datafusion::common::Result;

pub use self::handing::HandOver;
use super::above::batch_of;
use super::bounds::Size;
use super::closing::{Lane, Start};
use super::compile::{CompiledInput, CompiledQuery, CompiledSource, Target};
use super::decode::{Decoded, Extent, decode};
use super::expression::Rows;
use super::filling::IntoPanes;
use super::groups::Scratch;
use super::kept::{Kept, Missed, Origin};
use super::sharing::InPanes;
use super::steps;
use super::taken::Taken;
use super::watermark::Watermark;
use crate::log::Record;
use crate::log::codec::CodecError;
use crate::reaction::table::{BadData, LateRows};
use crate::reaction::time::NS_PER_MS;

/// Rows accounted so far in one partition since the query's start (or its last one), besides those taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// By the records' row-count headers.
    pub accepted: u64,
    /// Left out by a WHERE, or by a join that found nothing.
    pub filtered: u64,
    /// Their window was closed.
    pub late: u64,
    /// Dated too far ahead of their record.
    pub future: u64,
    /// In records that could not be decoded.
    pub bad: u64,
    /// Copies of rows that joins made, besides all these.
    pub expanded: u64,
}

/// How the wall clock is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRules {
    /// How far a row may be dated after its record's timestamp.
    pub future_tolerance_ms: i64,
    /// How long a partition must have been quiet before a proof of its end moves its watermark.
    pub idle_ms: i64,
}

/// What [`Partition::push`] did.
#[derive(Debug)]
pub struct Pushed {
    /// How many of the records are taken in or left out.
    pub taken: usize,
    /// Which of them cannot be decoded, and why.
    pub bad: Vec<(usize, CodecError)>,
    /// The record after those taken cannot be decoded, and its table says `bad_data = 'fail'`: nothing after it may be
    /// taken in.
    pub stopped_by: Option<CodecError>,
}

/// One partition's panes, watermark and account.
pub struct Partition {
    query: Arc<CompiledQuery>,
    source: usize,
    partition: u32,
    rules: TimeRules,
    /// Records below are already accounted: they only fill panes again.
    accounted_to: i64,
    /// What they fill begins this version's account.
    begins_account: bool,

    /// Windows ending at or before this are closed; a row for them is late.
    closed_to: Option<i64>,
    /// Up to here panes were saved by the checkpoint that this started from.
    restored_to: Option<i64>,
    /// Rows of sessions are filled in again from here on.
    sessions_from: Option<i64>,
    next: i64,
    watermark: Watermark,
    last_record_ms: Option<i64>,
    /// One for each input of the source.
    taken: Vec<Taken>,

    account: Account,
    kept: Kept,
    /// Of the record at hand: the rows to be kept because they are in no window.
    missed: BTreeMap<usize, Missed>,
    scratch: Scratch,
}

impl Partition {
    /// A partition of one of the query's sources that goes on as the start says.
    ///
    /// # Errors
    /// What DataFusion says of the query's aggregates.
    pub fn new(query: Arc<CompiledQuery>, lane: Lane, rules: TimeRules, start: &Start) -> Result<Self> {
        let Lane { source, partition, from } = lane;
        let compiled = &query.sources[source];
        Ok(Self {
            watermark: Watermark::new(compiled.delay_ns, from.watermark),
            taken: compiled.inputs.iter().map(|input| Taken::new(&query, input)).collect::<Result<_>>()?,
            query,
            source,
            partition,
            rules,
            accounted_to: from.seen,
            begins_account: start.begins_account,
            closed_to: start.emitted,
            restored_to: start.emitted,
            sessions_from: start.sessions.rows_from,
            next: from.resume,
            last_record_ms: None,
            account: Account::default(),
            kept: Kept::default(),
            missed: BTreeMap::new(),
            scratch: Scratch::default(),
        })
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

    /// How much is held here.
    pub fn size(&self) -> Size {
        self.taken.iter().map(Taken::size).sum()
    }

    /// Rows taken in and not handed over.
    pub fn open(&self) -> u64 {
        self.taken.iter().map(Taken::rows).sum()
    }

    /// Rows for outputs without a window, not handed over yet.
    pub fn pending(&self) -> u64 {
        let pending = self.taken.iter().filter_map(|taken| match taken {
            Taken::Rows(pending) => Some(pending),
            _ => None,
        });
        pending.flatten().map(|(rows, _)| rows.num_rows() as u64).sum()
    }

    /// The account so far.
    pub fn account(&self) -> Account {
        self.account
    }

    /// The end of the earliest open window of what is held here: nothing has to happen before the watermark is there.
    pub fn earliest_end(&self) -> Option<i64> {
        self.taken.iter().filter_map(|taken| taken.earliest_end(self.closed_to)).min()
    }

    /// Decodes and takes in the first of `records`, and with it as many of those that follow as make one batch worth its
    /// cost: call it until all are taken. `now_ms` is the wall clock when they were read.
    ///
    /// # Errors
    /// When an expression fails on a row: the query cannot go on. A record that cannot be decoded is no error: its
    /// rows are `bad`, unless its table says that it stops the query.
    pub fn push(&mut self, records: &[Record], now_ms: i64) -> Result<Pushed> {
        let source = &self.query.sources[self.source];
        let decoded = decode(&source.codec, &source.columns, records, self.partition);
        self.take(records, &decoded, now_ms)
    }

    /// Takes in what was decoded of the first of `records`. What of it was taken in before is passed over.
    pub(crate) fn take(&mut self, records: &[Record], decoded: &Decoded, now_ms: i64) -> Result<Pushed> {
        let query = Arc::clone(&self.query);
        let source = &query.sources[self.source];
        let done = decoded.spans.partition_point(|span| span.offset < self.next);
        let known = decoded.spans.partition_point(|span| span.offset < self.accounted_to).max(done);
        // A bad record that was left out before the table said that it stops the query is left out again.
        let stops = |(place, _): &&(usize, CodecError)| {
            source.table.with.bad_data == BadData::Fail && *place >= known
        };
        let stop = decoded.bad.iter().find(stops).cloned();
        let taken = stop.as_ref().map_or(decoded.spans.len(), |(place, _)| *place);
        if let Some(last) = decoded.spans[done.min(taken)..taken].last() {
            self.next = last.offset + 1;
            self.last_record_ms = Some(now_ms);
        }
        self.take_spans(&query, records, decoded, done.min(taken)..known.min(taken), false)?;
        self.take_spans(&query, records, decoded, known.min(taken)..taken, true)?;
        let bad = decoded.bad.iter().filter(|(place, _)| (done..taken).contains(place)).cloned().collect();
        Ok(Pushed { taken, bad, stopped_by: stop.map(|(_, error)| error) })
    }

    /// Takes in records that are all fresh (not accounted before the start) or all not.
    ///
    /// Nothing is closed meanwhile, so that a row is late or not whichever of the records it is in. Only what is future
    /// depends on the record, and what is kept of one: without such rows all go in as one.
    fn take_spans(
        &mut self,
        query: &CompiledQuery,
        records: &[Record],
        decoded: &Decoded,
        places: Range<usize>,
        fresh: bool,
    ) -> Result<()> {
        let source = &query.sources[self.source];
        let (topic, partition) = (&source.table.topic, self.partition);
        let origin = |place: usize| Origin { query: &query.name, topic, partition, record: &records[place] };
        let spans = &decoded.spans[places.clone()];
        let Some(earliest_ms) = spans.iter().map(|span| span.timestamp_ms).min() else { return Ok(()) };
        if fresh {
            let inputs = self.taken.len() as u64;
            self.account.accepted += spans.iter().map(|span| span.accepted).sum::<u64>() * inputs;
            self.account.bad += spans.iter().map(|span| span.bad).sum::<u64>() * inputs;
            for (place, error) in decoded.bad.iter().filter(|(place, _)| places.contains(place)) {
                self.kept.add_bad(origin(*place), error);
            }
        }
        let Some(rows) = decoded.rows_of(places.clone()) else { return Ok(()) };
        let is_all = places == (0..decoded.spans.len());
        let extent = if is_all { decoded.extent } else { Extent::of(source.columns.event_ns(&rows)) };
        let limits = Limits { fresh, future_from: self.future_from(earliest_ms), offset: spans[0].offset };
        if spans.len() == 1 && !self.keeps_missed(source, fresh)
            || extent.is_some_and(|extent| self.are_judged_alike(source, &limits, extent))
        {
            let in_panes = if is_all { &*decoded.in_panes } else { &[] };
            return self.take_rows(source, &limits, &Batch { rows: &rows, extent, in_panes });
        }
        for (place, span) in places.zip(spans) {
            let limits =
                Limits { fresh, future_from: self.future_from(span.timestamp_ms), offset: span.offset };
            if let Some(rows) = decoded.rows_of(place..place + 1) {
                let extent = Extent::of(source.columns.event_ns(&rows));
                self.take_rows(source, &limits, &Batch { rows: &rows, extent, in_panes: &[] })?;
            }
            if !self.missed.is_empty() {
                let missed = std::mem::take(&mut self.missed);
                self.kept.add_missed(source, origin(place), &missed);
            }
        }
        Ok(())
    }

    /// Whether no row is judged by its record.
    fn are_judged_alike(&self, source: &CompiledSource, limits: &Limits, extent: Extent) -> bool {
        let late_before = if self.keeps_missed(source, limits.fresh) {
            (0..self.taken.len()).map(|place| self.late_before(place, limits)).max().unwrap_or(i64::MIN)
        } else {
            i64::MIN
        };
        extent.is_within(late_before, limits.future_from)
    }

    /// Whether late and future rows are kept for inspection.
    fn keeps_missed(&self, source: &CompiledSource, fresh: bool) -> bool {
        fresh && source.table.with.late_rows == LateRows::Table
    }

    fn future_from(&self, timestamp_ms: i64) -> i64 {
        timestamp_ms.saturating_add(self.rules.future_tolerance_ms).saturating_mul(NS_PER_MS)
    }

    fn take_rows(&mut self, source: &CompiledSource, limits: &Limits, batch: &Batch<'_>) -> Result<()> {
        let Some(extent) = batch.extent else { return Ok(()) };
        let is_in_time = |ns: &i64| *ns <= limits.future_from;
        let largest = if is_in_time(&extent.latest) {
            Some(extent.latest)
        } else {
            source.columns.event_ns(batch.rows).iter().copied().filter(is_in_time).max()
        };
        if let Some(largest) = largest {
            self.watermark.advance(largest);
        }
        let open = if limits.fresh { 0 } else { self.open() };
        for (place, input) in source.inputs.iter().enumerate() {
            let late_before = self.late_before(place, limits);
            let all_on_time = extent.is_within(late_before, limits.future_from);
            match batch.in_panes_of(input).filter(|_| limits.fresh && all_on_time) {
                Some(in_panes) => self.take_in_panes(input, place, limits, batch, in_panes)?,
                None => self.take_input(source, input, place, limits, batch)?,
            }
        }
        if !limits.fresh && self.begins_account {
            self.account.accepted += self.open() - open;
        }
        Ok(())
    }

    /// Takes in what all queries with this input have worked out together: no row is late or in the future.
    fn take_in_panes(
        &mut self,
        input: &CompiledInput,
        place: usize,
        limits: &Limits,
        batch: &Batch<'_>,
        in_panes: &InPanes,
    ) -> Result<()> {
        let Self { taken, scratch, query, account, .. } = self;
        if let (Taken::Panes { open, .. }, Target::Cut { cut, .. }) = (&mut taken[place], &input.into) {
            account.filtered += batch.rows.len() as u64 - in_panes.passed;
            account.bad += in_panes.left_out;
            in_panes.fill(&query.cuts[*cut].aggregation, open, limits.offset, scratch)?;
        }
        Ok(())
    }

    fn take_input(
        &mut self,
        source: &CompiledSource,
        input: &CompiledInput,
        place: usize,
        limits: &Limits,
        batch: &Batch<'_>,
    ) -> Result<()> {
        let kept = steps::apply(&input.steps, batch.rows)?;
        let passed = kept.as_ref().unwrap_or(batch.rows);
        if limits.fresh {
            self.account.filtered += (batch.rows.len() - passed.reactions()) as u64;
        }
        let is_row_wise = matches!(self.taken[place], Taken::Rows(_));
        let late_before = self.late_before(place, limits);
        let all_on_time =
            is_row_wise || batch.extent.is_none_or(|all| all.is_within(late_before, limits.future_from));
        let on_time = if all_on_time { None } else { self.on_time(source, late_before, limits, passed)? };
        if on_time.is_some() && self.keeps_missed(source, limits.fresh) {
            self.note_missed(source, input, late_before, limits, batch.rows)?;
        }
        let rows = on_time.as_ref().unwrap_or(passed);
        if rows.len() == 0 {
            return Ok(());
        }
        if limits.fresh || self.begins_account && !is_row_wise {
            self.account.expanded += (rows.len() - rows.reactions()) as u64;
        }
        let event_ns = source.columns.event_ns(rows);
        let Self { taken, scratch, query, account, begins_account, .. } = self;
        match (&mut taken[place], &input.into) {
            (Taken::Panes { panes, open }, Target::Cut { cut, keys, arguments }) => {
                let into = IntoPanes { aggregation: &query.cuts[*cut].aggregation, keys, arguments };
                let left_out = into.fill(*panes, open, rows, event_ns, limits.offset, scratch)?;
                if limits.fresh {
                    account.bad += left_out;
                }
            }
            (Taken::Bursts(bursts), Target::Cut { keys, arguments, .. })
                if limits.fresh || *begins_account =>
            {
                bursts.update(keys, arguments, rows, event_ns, scratch)?;
            }
            (Taken::Rows(pending), Target::Output { columns, .. }) if limits.fresh => {
                pending.push((batch_of(columns, rows)?, rows.reactions() as u64));
            }
            // Committed or saved before the start.
            _ => {}
        }
        Ok(())
    }

    /// A row of that input before this is late.
    fn late_before(&self, place: usize, limits: &Limits) -> i64 {
        if let (Taken::Bursts(_), Some(from), false) = (&self.taken[place], self.sessions_from, limits.fresh)
        {
            return from;
        }
        let mut late_before = self.taken[place].late_before(self.closed_to);
        if let (Taken::Panes { panes, .. }, Some(restored_to)) = (&self.taken[place], self.restored_to)
            && panes.is_saved()
            && !limits.fresh
            && !self.begins_account
        {
            // Rows that were accounted in panes that are over: they are in the saved panes.
            late_before = late_before.max(panes.boundary_at_or_before(restored_to));
        }
        late_before
    }

    /// The rows that are neither future nor late, `None` when all are.
    fn on_time(
        &mut self,
        source: &CompiledSource,
        late_before: i64,
        limits: &Limits,
        rows: &Rows,
    ) -> Result<Option<Rows>> {
        let event_ns = source.columns.event_ns(rows);
        let future_from = limits.future_from;
        if event_ns.iter().all(|&ns| late_before <= ns && ns <= future_from) {
            return Ok(None);
        }
        let counted = || event_ns.iter().zip(rows.counts()).filter(|(_, counts)| *counts).map(|(&ns, _)| ns);
        let future = counted().filter(|&ns| ns > future_from).count();
        let late = counted().filter(|&ns| ns <= future_from && ns < late_before).count();
        if limits.fresh {
            self.account.future += future as u64;
            self.account.late += late as u64;
        }
        let keep: BooleanArray =
            event_ns.iter().map(|&ns| Some(ns <= future_from && ns >= late_before)).collect();
        Ok(Some(rows.filter(&keep)?))
    }

    /// Notes which rows of the record pass the input's filters and are late or future.
    fn note_missed(
        &mut self,
        source: &CompiledSource,
        input: &CompiledInput,
        late_before: i64,
        limits: &Limits,
        rows: &Rows,
    ) -> Result<()> {
        let numbered = rows.numbered();
        let passed = steps::apply(&input.steps, &numbered)?.unwrap_or(numbered);
        let places = passed.of().map(|of| of.values().to_vec()).unwrap_or_default();
        let event_ns = source.columns.event_ns(rows);
        for place in places.into_iter().map(|place| place as usize) {
            let missed = match event_ns[place] {
                ns if ns > limits.future_from => Missed::Future,
                ns if ns < late_before => Missed::Late,
                _ => continue,
            };
            self.missed.insert(place, missed);
        }
        Ok(())
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

    /// The input has ended: nothing follows.
    pub fn end(&mut self) {
        self.watermark.end();
    }
}

/// How the rows of one record are judged.
struct Limits {
    /// The record was not accounted before the start.
    fresh: bool,
    /// A row after this is future.
    future_from: i64,
    offset: i64,
}

/// Rows that are judged alike, or record by record.
struct Batch<'a> {
    rows: &'a Rows,
    extent: Option<Extent>,
    /// By identity of an input: what becomes of them there.
    in_panes: &'a [(Arc<str>, InPanes)],
}

impl Batch<'_> {
    fn in_panes_of(&self, input: &CompiledInput) -> Option<&InPanes> {
        let identity = input.identity.as_ref()?;
        self.in_panes.iter().find(|(of, _)| of == identity).map(|(_, in_panes)| in_panes)
    }
}
