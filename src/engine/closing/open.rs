//! What a query keeps of partitions' panes and sessions until their last window is closed. Pure.

use std::sync::Arc;

use datafusion::common::Result;

use super::Start;
use crate::engine::bounds::Size;
use crate::engine::compile::CompiledCut;
use crate::engine::session::Sessions;
use crate::engine::sliding::SlidingWindows;
use crate::engine::spill::Spill;
use crate::sql::cut::Windowing;

/// What one cut keeps of partitions' panes until their last window is closed.
pub(super) enum OpenWindows {
    /// Nothing: a window is one pane, and closed with it.
    Single,
    Sliding(SlidingWindows),
    Sessions(Sessions),
}

impl OpenWindows {
    pub(super) fn new(cut: &CompiledCut, start: &Start) -> Self {
        let aggregation = Arc::clone(&cut.aggregation);
        match (cut.panes, cut.windowing) {
            (None, Windowing::Session { gap_ns }) => {
                let mut sessions = Sessions::new(gap_ns, aggregation);
                sessions.go_on(start.sessions);
                Self::Sessions(sessions)
            }
            (Some(panes), _) if !panes.is_single() => Self::Sliding(SlidingWindows::new(panes, aggregation)),
            _ => Self::Single,
        }
    }

    pub(super) fn rows(&self) -> u64 {
        match self {
            Self::Single => 0,
            Self::Sliding(windows) => windows.rows(),
            Self::Sessions(sessions) => sessions.rows(),
        }
    }

    pub(super) fn size(&self) -> Size {
        match self {
            Self::Single => Size::default(),
            Self::Sliding(windows) => windows.size(),
            Self::Sessions(sessions) => sessions.size(),
        }
    }

    pub(super) fn first_offset(&self, lane: usize) -> Option<i64> {
        match self {
            Self::Sliding(windows) => windows.first_offset(lane),
            Self::Single | Self::Sessions(_) => None,
        }
    }

    pub(super) fn next_end(&self, closed_to: i64) -> Option<i64> {
        match self {
            Self::Single => None,
            Self::Sliding(windows) => windows.next_end(closed_to),
            Self::Sessions(sessions) => sessions.next_end(),
        }
    }

    pub(super) fn sliding(&self) -> Option<&SlidingWindows> {
        match self {
            Self::Sliding(windows) => Some(windows),
            Self::Single | Self::Sessions(_) => None,
        }
    }

    pub(super) fn sessions(&self) -> Option<&Sessions> {
        match self {
            Self::Sessions(sessions) => Some(sessions),
            Self::Single | Self::Sliding(_) => None,
        }
    }

    /// Puts aside what is in memory; sessions stay.
    pub(super) fn spill(&mut self, spill: &Arc<Spill>) -> Result<()> {
        match self {
            Self::Sliding(windows) => windows.spill(spill),
            Self::Single | Self::Sessions(_) => Ok(()),
        }
    }
}
