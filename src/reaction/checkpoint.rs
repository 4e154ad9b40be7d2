//! A checkpoint: from where a query goes on after a restart, stored in the transaction of the results it covers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::figures::Figures;
use super::time::rfc3339;

/// One query's checkpoint: the value of its record in the checkpoints topic, as JSON; the key is the query's name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The query.
    pub query: String,
    /// The version of the program that wrote it.
    pub version: u64,
    /// Identity of the plan at and below the cut; another one means other windows or groups.
    pub fingerprint: String,
    /// Every window that ends at or before this has been emitted. `None` before the first.
    #[serde(with = "optional_rfc3339")]
    pub emitted: Option<i64>,
    /// By source topic: one entry per partition, in order.
    pub sources: BTreeMap<String, Vec<Position>>,
    /// The account at `seen`; rows of open windows are in `open`.
    pub figures: Figures,
    /// The span that a change of the query could not rebuild, if there was one.
    pub gap: Option<Gap>,
    /// How many records beside this one hold state that is not read again from the log, by windowed aggregate.
    #[serde(default)]
    pub saved: Vec<u64>,
    /// The sessions that are open, for a version with another plan; of a query without sessions none.
    #[serde(default)]
    pub sessions: Option<OpenSessions>,
    /// The highest revision of results written; 0 as long as there were no early ones.
    #[serde(default)]
    pub revision: u64,
    /// Up to where versions before this one have told all rows.
    #[serde(default, with = "optional_rfc3339")]
    pub took_over_at: Option<i64>,
    /// What another version need not tell any more; `None` before the first window.
    #[serde(default)]
    pub told: Option<Told>,
}

/// Up to where rows are in windows that were emitted. Windows of several kinds end at different times, and long ones are
/// looked at between their ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// In windows of every kind.
    #[serde(with = "rfc3339")]
    pub by_all: i64,
    /// In windows of some kind.
    #[serde(with = "rfc3339")]
    pub by_some: i64,
}

impl Checkpoint {
    /// What was told up to now; `None` before the first window.
    pub fn told(&self) -> Option<Told> {
        self.told.or(self.emitted.map(|emitted| Told { by_all: emitted, by_some: emitted }))
    }
}

/// Where the sessions of a query stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSessions {
    /// What makes rows one session, as the identity of a text.
    pub definition: String,
    /// The first row of those that are open. `None` when none is.
    #[serde(with = "optional_rfc3339")]
    pub from: Option<i64>,
    /// Sessions that began before this are not emitted: rows of them may be missing.
    #[serde(with = "optional_rfc3339")]
    pub whole_from: Option<i64>,
}

/// Where one partition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The first record with a row of a window still open: reading goes on here.
    pub resume: i64,
    /// The first record not yet accounted in the figures.
    pub seen: i64,
    /// The partition's watermark, nanoseconds since the Unix epoch. `None` before the first row.
    #[serde(with = "optional_rfc3339")]
    pub watermark: Option<i64>,
}

/// Event time for which a new version of a query emitted nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Where the old version's last window ended.
    #[serde(with = "rfc3339")]
    pub from: i64,
    /// Where the new version's first window starts.
    #[serde(with = "rfc3339")]
    pub to: i64,
}

impl Gap {
    /// From the beginning of both to their end.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self { from: self.from.min(other.from), to: self.to.max(other.to) }
    }
}

/// For `#[serde(with = "…")]`: like [`rfc3339`], `None` as null.
pub mod optional_rfc3339 {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::reaction::time::{format_rfc3339, parse_rfc3339};

    #[allow(missing_docs, clippy::missing_errors_doc)]
    pub fn serialize<S: Serializer>(ns: &Option<i64>, to: S) -> Result<S::Ok, S::Error> {
        match ns {
            Some(ns) => to.serialize_str(&format_rfc3339(*ns)),
            None => to.serialize_none(),
        }
    }

    #[allow(missing_docs, clippy::missing_errors_doc)]
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| parse_rfc3339(&text).map_err(serde::de::Error::custom)).transpose()
    }
}
