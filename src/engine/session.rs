//! Session windows: one window per group and burst of rows. Pure.
//!
//! A partition collects bursts ([`Bursts`]); when windows close, every partition hands over all of its own, and the
//! query puts them together with those still open ([`Sessions`]), because a session's rows may lie in several partitions.
//! A session is closed when the watermark is a gap past its last row; a row that comes after a closing and is dated
//! before it is late, since it could have belonged to a session already told.

use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::{concat, take};
use datafusion::common::Result;

use super::aggregate::{Accumulators, Aggregation, Arguments, Partial, result};
use super::bounds::Size;
use super::closed::{ClosedRows, WindowRows};
use super::expression::{RowExpr, Rows};
use super::groups::{Groups, Scratch};
use super::session_switch::SessionSwitch;
use crate::reaction::time::Window;

/// Partial sessions: a row each, with the group's keys and the functions' states.
#[derive(Clone, Debug)]
pub(crate) struct SessionRows {
    /// The event times of the first and the last row.
    pub(crate) spans: Vec<(i64, i64)>,
    /// How many reactions each has: of a row that a join repeats, only the first copy.
    pub(crate) rows: Vec<u64>,
    pub(crate) partial: Partial,
}

/// The bursts of one partition since the last hand-over.
pub(crate) struct Bursts {
    gap_ns: i64,
    aggregation: Arc<Aggregation>,
    groups: Groups,
    accumulators: Accumulators,
    /// By burst: which group, first and last event time, rows.
    bursts: Vec<Burst>,
    /// By group: its bursts.
    of_group: Vec<Vec<u32>>,
    burst_of_row: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Burst {
    group: u32,
    first: i64,
    last: i64,
    rows: u64,
}

impl Bursts {
    pub(crate) fn new(gap_ns: i64, aggregation: Arc<Aggregation>) -> Result<Self> {
        Ok(Self {
            gap_ns,
            groups: Groups::new(&aggregation.key_types)?,
            accumulators: Accumulators::new(&aggregation)?,
            aggregation,
            bursts: Vec::new(),
            of_group: Vec::new(),
            burst_of_row: Vec::new(),
        })
    }

    /// How much is held.
    pub(crate) fn size(&self) -> Size {
        let own = self.bursts.len() * (size_of::<Burst>() + size_of::<u32>())
            + self.of_group.len() * size_of::<Vec<u32>>();
        Size { groups: self.bursts.len(), bytes: own + self.groups.size() + self.accumulators.size() }
    }

    pub(crate) fn rows(&self) -> u64 {
        self.bursts.iter().map(|burst| burst.rows).sum()
    }

    /// When the first of them can be over.
    pub(crate) fn earliest_end(&self) -> Option<i64> {
        self.bursts.iter().map(|burst| burst.last.saturating_add(self.gap_ns)).min()
    }

    /// Takes in rows.
    pub(crate) fn update(
        &mut self,
        keys: &[RowExpr],
        arguments: &[Arguments],
        rows: &Rows,
        event_ns: &[i64],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let keys = keys.iter().map(|key| key.evaluate(rows)).collect::<Result<Vec<_>>>()?;
        self.groups.number(&keys, rows.len(), scratch)?;
        self.of_group.resize(self.groups.len(), Vec::new());
        self.burst_of_row.clear();
        for ((&group, &ns), counts) in scratch.group_of_row.iter().zip(event_ns).zip(rows.counts()) {
            let burst = self.burst_of(group, ns);
            self.bursts[burst].rows += u64::from(counts);
            self.burst_of_row.push(burst);
        }
        self.accumulators.update(arguments, rows, &self.burst_of_row, self.bursts.len())
    }

    /// The burst that a row belongs to. One that joins two of them goes to the first; the two meet when sessions are put
    /// together.
    fn burst_of(&mut self, group: usize, ns: i64) -> usize {
        let (gap_ns, bursts) = (self.gap_ns, &mut self.bursts);
        let near =
            |burst: &Burst| ns > burst.first.saturating_sub(gap_ns) && ns < burst.last.saturating_add(gap_ns);
        let known = self.of_group[group].iter().rev().find(|&&place| near(&bursts[place as usize]));
        if let Some(&place) = known {
            let burst = &mut bursts[place as usize];
            (burst.first, burst.last) = (burst.first.min(ns), burst.last.max(ns));
            return place as usize;
        }
        let place = bursts.len();
        bursts.push(Burst { group: group as u32, first: ns, last: ns, rows: 0 });
        self.of_group[group].push(place as u32);
        place
    }

    /// Everything since the last call.
    pub(crate) fn hand_over(&mut self) -> Result<Option<SessionRows>> {
        if self.bursts.is_empty() {
            return Ok(None);
        }
        let fresh = Self::new(self.gap_ns, Arc::clone(&self.aggregation))?;
        let Self { groups, accumulators, bursts, .. } = std::mem::replace(self, fresh);
        let places: UInt32Array = bursts.iter().map(|burst| Some(burst.group)).collect();
        let keys =
            groups.into_keys()?.iter().map(|key| take(key, &places, None)).collect::<Result<_, _>>()?;
        Ok(Some(SessionRows {
            spans: bursts.iter().map(|burst| (burst.first, burst.last)).collect(),
            rows: bursts.iter().map(|burst| burst.rows).collect(),
            partial: Partial { groups: bursts.len(), keys, states: accumulators.into_states()? },
        }))
    }
}

/// The sessions of a query that are still open.
pub(crate) struct Sessions {
    gap_ns: i64,
    aggregation: Arc<Aggregation>,
    /// Those put together, then what was handed over since.
    parts: Vec<SessionRows>,
    /// Nothing was handed over since: a part as it is handed over may have two bursts of one session.
    is_together: bool,
    unsaved: Vec<SessionRows>,
    /// Which of them are emitted.
    switch: SessionSwitch,
    left_out: LeftOut,
}

/// Rows of sessions that are not emitted, so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LeftOut {
    /// Those of sessions that another version has emitted.
    pub(crate) emitted_before: u64,
    /// Those of sessions that may lack rows.
    pub(crate) not_whole: u64,
}

impl Sessions {
    pub(crate) fn new(gap_ns: i64, aggregation: Arc<Aggregation>) -> Self {
        Self {
            gap_ns,
            aggregation,
            parts: Vec::new(),
            is_together: true,
            unsaved: Vec::new(),
            switch: SessionSwitch::default(),
            left_out: LeftOut::default(),
        }
    }

    /// Says which sessions are emitted.
    pub(crate) fn go_on(&mut self, switch: SessionSwitch) {
        self.switch = switch;
    }

    /// The first row of those that are open.
    pub(crate) fn first_open(&self) -> Option<i64> {
        self.parts.iter().flat_map(|part| &part.spans).map(|(first, _)| *first).min()
    }

    /// Rows of sessions that ended and were not emitted.
    pub(crate) fn left_out(&self) -> LeftOut {
        self.left_out
    }

    /// How much is held.
    pub(crate) fn size(&self) -> Size {
        let own = |part: &SessionRows| part.spans.len() * size_of::<((i64, i64), u64)>();
        let held = |part: &SessionRows| part.partial.size() + Size { groups: 0, bytes: own(part) };
        self.parts.iter().map(held).sum()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.parts.iter().flat_map(|part| &part.rows).sum()
    }

    /// When the first of them can be over.
    pub(crate) fn next_end(&self) -> Option<i64> {
        let spans = self.parts.iter().flat_map(|part| &part.spans);
        spans.map(|(_, last)| last.saturating_add(self.gap_ns)).min()
    }

    pub(crate) fn add(&mut self, rows: SessionRows) {
        self.unsaved.push(rows.clone());
        self.restore(rows);
    }

    /// Takes in sessions as they were saved.
    pub(crate) fn restore(&mut self, rows: SessionRows) {
        self.is_together = false;
        self.parts.push(rows);
    }

    /// Forgets the sessions that were closed at `closed_to`: what was saved of them is there until it is replaced. To be
    /// called once all is restored, because the first rows of an open session may lie far back.
    pub(crate) fn forget_closed(&mut self, closed_to: i64, scratch: &mut Scratch) -> Result<()> {
        self.take_over(closed_to, scratch).map(drop)
    }

    /// What was handed over since the last call.
    pub(crate) fn unsaved(&mut self) -> Vec<SessionRows> {
        std::mem::take(&mut self.unsaved)
    }

    /// The open sessions as one, for a save that replaces all before it. To be called after [`Self::close`].
    pub(crate) fn all(&self) -> Option<&SessionRows> {
        self.parts.first()
    }

    /// Closes every session whose gap is over at `to`. Returns how many rows it had.
    pub(crate) fn close(&mut self, to: i64, closed: &mut ClosedRows, scratch: &mut Scratch) -> Result<u64> {
        let Some(over) = self.take_over(to, scratch)? else { return Ok(0) };
        let Some(over) = self.emitted_of(over)? else { return Ok(0) };
        let rows = over.rows.iter().sum();
        self.tell(over, closed)?;
        Ok(rows)
    }

    /// Those of the sessions that are emitted.
    fn emitted_of(&mut self, over: SessionRows) -> Result<Option<SessionRows>> {
        let SessionSwitch { emitted, whole_from, .. } = self.switch;
        let mut kept = Vec::with_capacity(over.spans.len());
        for (place, ((first, last), rows)) in (0_u32..).zip(over.spans.iter().zip(&over.rows)) {
            if last.saturating_add(self.gap_ns) <= emitted {
                self.left_out.emitted_before += rows;
            } else if *first < whole_from {
                self.left_out.not_whole += rows;
            } else {
                kept.push(place);
            }
        }
        match kept.len() {
            0 => Ok(None),
            all if all == over.spans.len() => Ok(Some(over)),
            _ => over.taken(&kept).map(Some),
        }
    }

    /// Puts everything together and takes out the sessions whose gap is over at `to`, in the order of their windows.
    fn take_over(&mut self, to: i64, scratch: &mut Scratch) -> Result<Option<SessionRows>> {
        let Some(together) = self.put_together(scratch)? else { return Ok(None) };
        let is_over = |&place: &u32| {
            let (_, last) = together.spans[place as usize];
            last.saturating_add(self.gap_ns) <= to
        };
        let (mut over, open): (Vec<u32>, Vec<u32>) = (0..together.spans.len() as u32).partition(is_over);
        over.sort_by_key(|&place| together.spans[place as usize]);
        self.is_together = true;
        self.parts = if open.is_empty() { Vec::new() } else { vec![together.taken(&open)?] };
        if over.is_empty() { Ok(None) } else { together.taken(&over).map(Some) }
    }

    /// One row of results per session, windows in order.
    fn tell(&self, over: SessionRows, closed: &mut ClosedRows) -> Result<()> {
        let SessionRows { spans, partial, .. } = over;
        let mut accumulators = Accumulators::new(&self.aggregation)?;
        let each: Vec<usize> = (0..partial.groups).collect();
        accumulators.merge(&partial.states, &each, partial.groups)?;
        let windows: Vec<Window> = spans
            .iter()
            .map(|(first, last)| Window { start: *first, end: last.saturating_add(self.gap_ns) })
            .collect();
        let bounds = windows.iter().map(|window| (window.start, window.end)).unzip();
        let batch = result(&self.aggregation, partial.keys, bounds, accumulators.into_results()?)?;
        let mut from = 0;
        for same in windows.chunk_by(|a, b| a == b) {
            closed.push(same[0], WindowRows::Whole(batch.slice(from, same.len())));
            from += same.len();
        }
        Ok(())
    }

    /// All parts as one, parts of one session merged.
    fn put_together(&self, scratch: &mut Scratch) -> Result<Option<SessionRows>> {
        let all = match self.parts.as_slice() {
            [] => return Ok(None),
            [only] if self.is_together => return Ok(Some(only.clone())),
            parts => SessionRows::concat(parts)?,
        };
        let mut groups = Groups::new(&self.aggregation.key_types)?;
        groups.number(&all.partial.keys, all.spans.len(), scratch)?;
        let group = |place: u32| scratch.group_of_row[place as usize];
        let mut order: Vec<u32> = (0..all.spans.len() as u32).collect();
        order.sort_by_key(|&place| (group(place), all.spans[place as usize]));

        let mut session_of_row = vec![0; all.spans.len()];
        let (mut firsts, mut spans, mut rows) = (Vec::new(), Vec::<(i64, i64)>::new(), Vec::<u64>::new());
        let mut last_group = None;
        for place in order {
            let (first, last) = all.spans[place as usize];
            let joins = last_group == Some(group(place))
                && spans.last().is_some_and(|open| first < open.1.saturating_add(self.gap_ns));
            match spans.last_mut().zip(rows.last_mut()).filter(|_| joins) {
                Some((open, count)) => {
                    open.1 = open.1.max(last);
                    *count += all.rows[place as usize];
                }
                None => {
                    firsts.push(place);
                    spans.push((first, last));
                    rows.push(all.rows[place as usize]);
                }
            }
            last_group = Some(group(place));
            session_of_row[place as usize] = spans.len() - 1;
        }
        let mut accumulators = Accumulators::new(&self.aggregation)?;
        accumulators.merge(&all.partial.states, &session_of_row, spans.len())?;
        let firsts = UInt32Array::from(firsts);
        let keys = all.partial.keys.iter().map(|key| take(key, &firsts, None)).collect::<Result<_, _>>()?;
        let partial = Partial { groups: spans.len(), keys, states: accumulators.into_states()? };
        Ok(Some(SessionRows { spans, rows, partial }))
    }
}

impl SessionRows {
    /// The rows at these places.
    fn taken(&self, places: &[u32]) -> Result<Self> {
        Ok(Self {
            spans: places.iter().map(|&place| self.spans[place as usize]).collect(),
            rows: places.iter().map(|&place| self.rows[place as usize]).collect(),
            partial: self.partial.taken(places)?,
        })
    }

    fn concat(parts: &[Self]) -> Result<Self> {
        let column = |of: &dyn Fn(&Partial) -> ArrayRef| -> Result<ArrayRef> {
            let arrays: Vec<ArrayRef> = parts.iter().map(|part| of(&part.partial)).collect();
            let arrays: Vec<_> = arrays.iter().map(AsRef::as_ref).collect();
            Ok(concat(&arrays)?)
        };
        let shape = &parts[0].partial;
        let keys = (0..shape.keys.len()).map(|at| column(&|part| Arc::clone(&part.keys[at])));
        let states = shape.states.iter().enumerate().map(|(function, columns)| {
            let columns = (0..columns.len()).map(|at| column(&|part| Arc::clone(&part.states[function][at])));
            columns.collect::<Result<Vec<_>>>()
        });
        Ok(Self {
            spans: parts.iter().flat_map(|part| part.spans.iter().copied()).collect(),
            rows: parts.iter().flat_map(|part| part.rows.iter().copied()).collect(),
            partial: Partial {
                groups: parts.iter().map(|part| part.partial.groups).sum(),
                keys: keys.collect::<Result<_>>()?,
                states: states.collect::<Result<_>>()?,
            },
        })
    }
}
