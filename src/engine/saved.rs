//! Which saved records belong to a query's checkpoint: what to write, what to remove, what to read back. Pure.
//!
//! Panes are saved once, as they are handed over, and removed with their last window. Sessions are saved as they are
//! handed over too; when more has been added than is open, one record set of all open ones replaces those before.

use std::collections::BTreeMap;

use datafusion::common::{Result, exec_err};

use super::compile::CompiledQuery;
use super::session::SessionRows;
use super::snapshot::Chunk;

/// A record of the checkpoints topic; without a value it removes the key.
#[derive(Clone, Debug)]
pub struct SavedRecord {
    /// See the module `snapshot`.
    pub key: String,
    /// An Arrow IPC stream.
    pub value: Option<Vec<u8>>,
}

/// A state read back.
pub(crate) struct Restored {
    pub(crate) cut: usize,
    pub(crate) state: State,
}

pub(crate) enum State {
    Pane(Chunk),
    Sessions(SessionRows),
}

/// The saved records of one query.
pub(crate) struct Saved {
    /// `QUERY/IDENTITY`
    prefix: String,
    cuts: Vec<OfCut>,
    changes: Vec<SavedRecord>,
}

#[derive(Default)]
struct OfCut {
    is_saved: bool,
    next: u64,
    /// By number: the pane's start.
    live: BTreeMap<u64, i64>,
    /// Sessions written since they were last written as a whole.
    added: usize,
}

/// Sessions are not written as a whole for fewer than these.
const WORTH_REPLACING: usize = 1_000;

impl Saved {
    pub(crate) fn new(query: &CompiledQuery) -> Self {
        let of_cut =
            |cut: &super::compile::CompiledCut| OfCut { is_saved: cut.is_saved(), ..OfCut::default() };
        Self {
            prefix: format!("{}/{}", query.name, query.fingerprint),
            cuts: query.cuts.iter().map(of_cut).collect(),
            changes: Vec::new(),
        }
    }

    /// How many records each cut has; nothing when no cut is saved.
    pub(crate) fn counts(&self) -> Vec<u64> {
        if self.cuts.iter().any(|cut| cut.is_saved) {
            self.cuts.iter().map(|cut| cut.live.len() as u64).collect()
        } else {
            Vec::new()
        }
    }

    /// What has changed since the last call.
    pub(crate) fn take(&mut self) -> Vec<SavedRecord> {
        std::mem::take(&mut self.changes)
    }

    /// Saves panes; forgets those before `first_open`.
    pub(crate) fn panes(&mut self, cut: usize, fresh: Vec<Chunk>, first_open: Option<i64>) -> Result<()> {
        if !self.cuts[cut].is_saved {
            return Ok(());
        }
        let first_open = first_open.unwrap_or(i64::MIN);
        let over = self.cuts[cut].live.iter().filter(|(_, start)| **start < first_open);
        let over: Vec<u64> = over.map(|(number, _)| *number).collect();
        for number in over {
            self.remove(cut, number);
        }
        for chunk in fresh.iter().filter(|chunk| chunk.start >= first_open) {
            for value in chunk.encode()? {
                self.write(cut, chunk.start, value);
            }
        }
        Ok(())
    }

    /// Saves sessions handed over; `all` are those that are open now.
    pub(crate) fn sessions(
        &mut self,
        cut: usize,
        fresh: Vec<SessionRows>,
        all: Option<&SessionRows>,
    ) -> Result<()> {
        self.cuts[cut].added += fresh.iter().map(|rows| rows.spans.len()).sum::<usize>();
        let open = all.map_or(0, |rows| rows.spans.len());
        let replace = self.cuts[cut].added > open.max(WORTH_REPLACING);
        if replace {
            let old: Vec<u64> = self.cuts[cut].live.keys().copied().collect();
            for number in old {
                self.remove(cut, number);
            }
            self.cuts[cut].added = 0;
        }
        let written: Vec<&SessionRows> =
            if replace { all.into_iter().collect() } else { fresh.iter().collect() };
        for rows in written {
            for value in rows.encode()? {
                self.write(cut, 0, value);
            }
        }
        Ok(())
    }

    fn key(&self, cut: usize, number: u64) -> String {
        format!("{}/{cut}/{number}", self.prefix)
    }

    fn write(&mut self, cut: usize, start: i64, value: Vec<u8>) {
        let of_cut = &mut self.cuts[cut];
        let number = of_cut.next;
        of_cut.next += 1;
        of_cut.live.insert(number, start);
        let key = self.key(cut, number);
        self.changes.push(SavedRecord { key, value: Some(value) });
    }

    fn remove(&mut self, cut: usize, number: u64) {
        self.cuts[cut].live.remove(&number);
        let key = self.key(cut, number);
        self.changes.push(SavedRecord { key, value: None });
    }

    /// Reads back what belongs to the checkpoint, which names how many records each cut has. What another plan of the
    /// query left is removed with the next changes.
    pub(crate) fn restore<'r>(
        &mut self,
        query: &CompiledQuery,
        counts: &[u64],
        records: impl IntoIterator<Item = (&'r [u8], &'r [u8])>,
    ) -> Result<Vec<Restored>> {
        let own = format!("{}/", query.name);
        let mut found = Vec::new();
        for (key, value) in records {
            let Some(key) = std::str::from_utf8(key).ok().filter(|key| key.starts_with(&own)) else {
                continue;
            };
            let place = key.strip_prefix(&self.prefix).and_then(place_of);
            let Some((cut, number)) =
                place.filter(|(cut, _)| counts.get(*cut).is_some_and(|count| *count > 0))
            else {
                self.changes.push(SavedRecord { key: key.to_owned(), value: None });
                continue;
            };
            let compiled = &query.cuts[cut];
            let (start, state) = match compiled.panes {
                Some(_) => {
                    let chunk = Chunk::decode(value, &compiled.shape)?;
                    (chunk.start, State::Pane(chunk))
                }
                None => (0, State::Sessions(SessionRows::decode(value, &compiled.shape)?)),
            };
            let of_cut = &mut self.cuts[cut];
            if let State::Sessions(rows) = &state {
                of_cut.added += rows.spans.len();
            }
            of_cut.live.insert(number, start);
            of_cut.next = of_cut.next.max(number + 1);
            found.push(Restored { cut, state });
        }
        for (cut, expected) in counts.iter().enumerate() {
            let there = self.cuts.get(cut).map_or(0, |of_cut| of_cut.live.len() as u64);
            if there != *expected {
                return exec_err!(
                    "the saved state of {} has {there} records where its checkpoint names {expected}",
                    query.name
                );
            }
        }
        Ok(found)
    }
}

/// `/CUT/NUMBER`
fn place_of(rest: &str) -> Option<(usize, u64)> {
    let (cut, number) = rest.strip_prefix('/')?.split_once('/')?;
    Some((cut.parse().ok()?, number.parse().ok()?))
}
