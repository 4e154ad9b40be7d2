//! Telling many windows with a checkpoint that names one of them.
//!
//! A sweep is of one table. It has a cut: an offset of each partition such that every window with a record before it is
//! whole before it, or told already. Those whole windows are told in the order of their keys, and meanwhile the table's
//! `resume` stays where it was; so what is told is what has all its rows before the cut and a key up to that of the last
//! one told. After a crash the same windows become whole from the same records, and nothing of the table is told until
//! all records before the cut were read again. When the sweep is over, nothing untold lies before the cut: `resume`
//! passes it, and no name is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Gather, Offsets, Positions, WindowKey};

/// One table's windows before a cut, told in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// By partition: from where it is read again, and the cut.
    span: BTreeMap<u32, (i64, i64)>,
    /// The last window told.
    through: Option<WindowKey>,
    /// All of it is told.
    #[serde(skip)]
    is_over: bool,
}

impl Sweep {
    /// Whether a window with these last offsets of its rows is one of those to be told.
    pub(super) fn holds(&self, last: &BTreeMap<u32, i64>) -> bool {
        last.iter().all(|(partition, last)| self.span.get(partition).is_some_and(|(_, cut)| last < cut))
    }

    /// Whether such a window is told.
    pub(super) fn has_told(&self, key: &WindowKey, last: &BTreeMap<u32, i64>) -> bool {
        self.through.as_ref().is_some_and(|through| key <= through) && self.holds(last)
    }

    pub(super) fn tell(&mut self, key: &WindowKey) {
        if self.through.as_ref().is_none_or(|through| key > through) {
            self.through = Some(key.clone());
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// By partition: from where it is read again.
    pub(super) fn from(&self) -> impl Iterator<Item = (u32, i64)> {
        self.span.iter().map(|(&partition, &(from, _))| (partition, from))
    }

    /// Whether its cut lies in records that are not there, in a topic of so many partitions one of which ends at `next`.
    pub(super) fn is_of_another_log(&self, partition: u32, next: i64, partitions: usize) -> bool {
        let is_missing =
            |&partition: &u32| usize::try_from(partition).is_ok_and(|number| number >= partitions);
        self.span.get(&partition).is_some_and(|&(_, cut)| next < cut) || self.span.keys().any(is_missing)
    }

    /// Whether every partition reaches its cut. One that is read again from there has nothing before it.
    fn is_reached(&self, table: &Arc<str>, positions: &Positions) -> bool {
        let reaches = |(&partition, &(from, cut)): (&u32, &(i64, i64))| {
            let position = positions.get(&(Arc::clone(table), partition)).copied();
            position.unwrap_or(from) >= cut
        };
        self.span.iter().all(reaches)
    }
}

impl Gather {
    /// Whether all that a sweep holds is known.
    pub(super) fn is_read(&self, table: &Arc<str>, sweep: &Sweep) -> bool {
        sweep.is_reached(table, &self.next)
    }

    /// Begins one of each table of which whole windows wait that incomplete ones do not hold back.
    pub(super) fn begin_sweeps(&mut self) {
        let tables: BTreeSet<Arc<str>> = self.ready.keys().map(|key| Arc::clone(&key.table)).collect();
        let resume = self.untold();
        for table in tables {
            if self.sweeps.contains_key(&table) {
                continue;
            }
            let Some(cut) = self.cut(&table) else { continue };
            let span = cut.into_iter().map(|(partition, cut)| {
                let from = resume.get(&(Arc::clone(&table), partition)).copied();
                (partition, (from.unwrap_or(cut), cut))
            });
            let sweep = Sweep { span: span.collect(), through: None, is_over: false };
            self.sweeps.insert(table, sweep);
        }
    }

    /// The highest cut with nothing incomplete before it; `None` when nothing that waits to be told is before it either.
    fn cut(&self, table: &Arc<str>) -> Option<BTreeMap<u32, i64>> {
        let of_table = self.next.iter().filter(|((name, _), _)| name == table);
        let mut cut: BTreeMap<u32, i64> = of_table.map(|((_, number), &next)| (*number, next)).collect();
        for (_, waiting) in self.waiting.iter().filter(|(key, _)| key.table == *table) {
            lower(&mut cut, &waiting.offsets);
        }
        let ready = self.ready.iter().filter(|(key, _)| key.table == *table);
        let mut before: Vec<&Offsets> = ready.map(|(_, whole)| &whole.offsets).collect();
        loop {
            let known = before.len();
            // One that lies on both sides goes to the far one, and perhaps takes others with it.
            before.retain(|offsets| {
                let reaches = |(partition, (_, last)): (&u32, &(i64, i64))| {
                    cut.get(partition).is_none_or(|cut| last >= cut)
                };
                let is_beyond = offsets.0.iter().any(reaches);
                if is_beyond {
                    lower(&mut cut, offsets);
                }
                !is_beyond
            });
            if before.len() == known {
                break;
            }
        }
        (!before.is_empty()).then_some(cut)
    }

    /// Ends those of which all is told, once nothing untold lies before their cut.
    pub(super) fn end_sweeps(&mut self) {
        if self.sweeps.is_empty() {
            return;
        }
        for (table, sweep) in &mut self.sweeps {
            let is_left =
                || self.ready.iter().any(|(key, whole)| key.table == *table && sweep.holds(&whole.last));
            if !sweep.is_over && sweep.is_reached(table, &self.next) && !is_left() {
                sweep.is_over = true;
            }
        }
        if self.sweeps.values().any(|sweep| sweep.is_over) {
            let untold = self.untold();
            self.sweeps.retain(|table, sweep| !sweep.is_over || !sweep.is_reached(table, &untold));
        }
    }
}

/// Lowers a cut until a window with these offsets has nothing before it.
fn lower(cut: &mut BTreeMap<u32, i64>, offsets: &Offsets) {
    for (partition, &(first, _)) in &offsets.0 {
        if let Some(cut) = cut.get_mut(partition) {
            *cut = first.min(*cut);
        }
    }
}
