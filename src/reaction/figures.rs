//! The figures: where every reaction of a query went. Conserved at every moment.

use serde::{Deserialize, Serialize};

/// One consistent cut of a query's account, in rows of its source topics.
///
/// `accepted = counted + filtered + late + future + bad + open`. `accepted` comes out of the records' row-count
/// headers, the others out of what the engine did with the rows, so that the equation can fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Rows on the source topics from the query's first offset to the cut.
    pub accepted: u64,
    /// Rows whose last window has closed and is committed.
    pub counted: u64,
    /// Rows that a WHERE below the window left out, or a join that found nothing for them.
    pub filtered: u64,
    /// Rows whose every window had closed before they were read.
    pub late: u64,
    /// Rows dated further ahead of their record than the tolerance.
    pub future: u64,
    /// Rows of records that could not be decoded.
    pub bad: u64,
    /// Rows in windows still open, and rows not yet read.
    pub open: u64,
    /// Copies of rows that a join with a static table made, besides all of the above. Told where there are any.
    #[serde(default, skip_serializing_if = "is_none")]
    pub expanded: u64,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

impl Figures {
    /// Whether every accepted row is accounted for exactly once.
    pub fn is_conserved(&self) -> bool {
        self.accepted == self.counted + self.filtered + self.late + self.future + self.bad + self.open
    }
}
