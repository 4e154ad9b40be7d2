//! Why a run of a query ended, by what is to be done.

use datafusion::error::DataFusionError;

use crate::log::LogError;

/// Why a run of a query ended, by what is to be done.
pub(super) enum Failure {
    /// Recover: fence, read the checkpoint, rebuild.
    Recover(String),
    /// The same at once, because something has come that only a start takes in. Nothing is wrong.
    Renew(String),
    /// Another process took over.
    Fenced(String),
    /// Somebody has to look.
    Stop(String),
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Unavailable(_) | LogError::Indefinite(_) | LogError::UnknownTopic(_) => {
                Self::Recover(error.to_string())
            }
            LogError::Fenced(_) => Self::Fenced(error.to_string()),
            LogError::OffsetGone { .. } | LogError::Refused(_) => Self::Stop(error.to_string()),
        }
    }
}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Self {
        // What the engine says itself has nothing to be introduced by.
        match error.find_root() {
            DataFusionError::External(own) => Self::Stop(own.to_string()),
            DataFusionError::ResourcesExhausted(what) => Self::Stop(format!(
                "what is made of a window that is on disk takes too much memory: {what}. It has as much as [engine] \
                 max_state_bytes says, from 32 MB to 1 GB. What is committed stays, and the query goes on from there: raise \
                 it and start again, or let HAVING leave fewer rows"
            )),
            _ => Self::Stop(error.to_string()),
        }
    }
}
