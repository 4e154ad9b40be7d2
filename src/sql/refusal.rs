//! Why a plan cannot be cut, and where that is to be told.

use datafusion::common::DataFusionError;

/// Where a refusal points, to be looked up in the query's syntax tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    /// The window call.
    Window,
    /// The first table that is joined.
    Join,
    /// The table whose name the message quotes first.
    Table,
    /// The GROUP BY or DISTINCT next to the source, or its first aggregate function.
    Innermost,
    /// The GROUP BY, DISTINCT or OVER furthest from the source.
    Outermost,
    /// The aggregate function that the message begins with.
    Function,
    /// The query's first word.
    Query,
}

/// A plan that cannot be cut.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) at: Anchor,
    pub(crate) message: String,
    pub(crate) help: String,
}

impl From<DataFusionError> for Refusal {
    fn from(error: DataFusionError) -> Self {
        let help = "simplify the query, and report this as a defect of emostream".to_owned();
        Self { at: Anchor::Query, message: error.strip_backtrace(), help }
    }
}

pub(crate) fn refuse<T>(
    at: Anchor,
    message: impl Into<String>,
    help: impl Into<String>,
) -> Result<T, Refusal> {
    Err(Refusal { at, message: message.into(), help: help.into() })
}

pub(crate) const GROUP_BY_WINDOW: &str =
    "write SELECT tumble(INTERVAL '2 seconds') AS window, … GROUP BY window, …";
