//! Which saved records belong to a query's checkpoint: what to write, what to remove, what to read back. Pure.
//!
//! Panes are saved once, as they are handed over, and removed with their last window. Sessions are saved as they are
//! handed over too; when more has been added than is open, one record set of all open ones replaces those before.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::common::{Result, exec_err};

use super::compile::CompiledQuery;
use super::session::SessionRows;
use super::sliding::Unsaved;
use super::snapshot::{Chunk, fitting};
use super::spill::Piece;

/// A record of the checkpoints topic.
#[derive(Clone, Debug)]
pub struct SavedRecord {
    /// See the module `snapshot`.
    pub key: String,
    state: SavedState,
}

#[derive(Clone, Debug)]
enum SavedState {
    /// The key is removed.
    Gone,
    Here(Bytes),
    /// One of the values of what was put aside.
    Aside(Arc<Piece>, usize),
}

impl SavedRecord {
    /// An Arrow IPC stream; without one the key is removed.
    ///
    /// # Errors
    /// When what was put aside cannot be read, or fits no record.
    pub fn value(&self) -> Result<Option<Bytes>> {
        match &self.state {
            SavedState::Gone => Ok(None),
            SavedState::Here(value) => Ok(Some(value.clone())),
            SavedState::Aside(piece, place) => Ok(Some(fitting(piece.value(*place)?)?.into())),
        }
    }

    /// Whether it goes ahead of the commit that it belongs to, with as many others as one transaction can hold. As long as
    /// no checkpoint counts it, it does not exist.
    pub fn goes_ahead(&self) -> bool {
        matches!(self.state, SavedState::Aside(..))
    }
}

/// A record that the checkpoint counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SavedKey {
    pub(crate) cut: usize,
    number: u64,
    /// Its key in the checkpoints topic.
    pub key: String,
}

/// A state read back.
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
    pub(crate) fn panes(&mut self, cut: usize, fresh: Vec<Unsaved>, first_open: Option<i64>) -> Result<()> {
        if !self.cuts[cut].is_saved {
            return Ok(());
        }
        let first_open = first_open.unwrap_or(i64::MIN);
        let over = self.cuts[cut].live.iter().filter(|(_, start)| **start < first_open);
        let over: Vec<u64> = over.map(|(number, _)| *number).collect();
        for number in over {
            self.remove(cut, number);
        }
        for unsaved in fresh.iter().filter(|unsaved| unsaved.start() >= first_open) {
            match unsaved {
                Unsaved::Chunk(chunk) => {
                    let values = chunk.encode()?.into_iter();
                    values.for_each(|value| self.write(cut, chunk.start, SavedState::Here(value.into())));
                }
                Unsaved::Piece(start, piece) => {
                    let values = (0..piece.values()).map(|place| SavedState::Aside(Arc::clone(piece), place));
                    values.for_each(|value| self.write(cut, *start, value));
                }
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
                self.write(cut, 0, SavedState::Here(value.into()));
            }
        }
        Ok(())
    }

    fn key(&self, cut: usize, number: u64) -> String {
        format!("{}/{cut}/{number}", self.prefix)
    }

    fn write(&mut self, cut: usize, start: i64, state: SavedState) {
        let of_cut = &mut self.cuts[cut];
        let number = of_cut.next;
        of_cut.next += 1;
        of_cut.live.insert(number, start);
        let key = self.key(cut, number);
        self.changes.push(SavedRecord { key, state });
    }

    fn remove(&mut self, cut: usize, number: u64) {
        self.cuts[cut].live.remove(&number);
        let key = self.key(cut, number);
        self.changes.push(SavedRecord { key, state: SavedState::Gone });
    }

    /// Finds what belongs to the checkpoint, which names how many records each cut has: those with the lowest numbers.
    /// What another plan of the query left is removed with the next changes, and so is what went ahead of a commit that did
    /// not come.
    pub(crate) fn find<'k>(
        &mut self,
        query: &CompiledQuery,
        counts: &[u64],
        keys: impl IntoIterator<Item = &'k [u8]>,
    ) -> Result<Vec<SavedKey>> {
        let own = format!("{}/", query.name);
        let mut found = Vec::new();
        for key in keys {
            let Some(key) = std::str::from_utf8(key).ok().filter(|key| key.starts_with(&own)) else {
                continue;
            };
            let place = key.strip_prefix(&self.prefix).and_then(place_of);
            match place.filter(|(cut, _)| *cut < self.cuts.len()) {
                Some((cut, number)) => found.push(SavedKey { cut, number, key: key.to_owned() }),
                None => self.changes.push(SavedRecord { key: key.to_owned(), state: SavedState::Gone }),
            }
        }
        found.sort_unstable();
        let mut there = vec![0; self.cuts.len()];
        found.retain(|SavedKey { cut, number, key }| {
            self.cuts[*cut].next = number + 1;
            let belongs = there[*cut] < counts.get(*cut).copied().unwrap_or_default();
            if belongs {
                there[*cut] += 1;
            } else {
                self.changes.push(SavedRecord { key: key.clone(), state: SavedState::Gone });
            }
            belongs
        });
        for (cut, expected) in counts.iter().enumerate() {
            let there = there.get(cut).copied().unwrap_or_default();
            if there != *expected {
                return exec_err!(
                    "the saved state of {} has {there} records where its checkpoint names {expected}",
                    query.name
                );
            }
        }
        Ok(found)
    }

    /// Reads one of them back.
    pub(crate) fn restore(&mut self, query: &CompiledQuery, key: &SavedKey, value: &[u8]) -> Result<State> {
        let compiled = &query.cuts[key.cut];
        let (start, state) = match compiled.panes {
            Some(_) => {
                let chunk = Chunk::decode(value, &compiled.shape)?;
                (chunk.start, State::Pane(chunk))
            }
            None => (0, State::Sessions(SessionRows::decode(value, &compiled.shape)?)),
        };
        let of_cut = &mut self.cuts[key.cut];
        if let State::Sessions(rows) = &state {
            of_cut.added += rows.spans.len();
        }
        of_cut.live.insert(key.number, start);
        Ok(state)
    }
}

/// `/CUT/NUMBER`
fn place_of(rest: &str) -> Option<(usize, u64)> {
    let (cut, number) = rest.strip_prefix('/')?.split_once('/')?;
    Some((cut.parse().ok()?, number.parse().ok()?))
}
