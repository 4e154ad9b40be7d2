//! What a process offers at `/v1/live` beside windows.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::command::Accepted;
pub use crate::http::upgrade::Patience;
use crate::http::{Origins, Problem};

/// Takes rows (JSON: an array, or one object) into the table of that name, as a POST does. Ingest is another stage:
/// whoever starts both brings them together.
pub type TakeRows = Arc<dyn Fn(String, Bytes) -> BoxFuture<'static, Result<Accepted, Problem>> + Send + Sync>;

/// What clients may do besides watching.
#[derive(Clone, Default)]
pub struct Live {
    /// Where rows go that they send; without it they may send none here.
    pub take_rows: Option<TakeRows>,
    /// From which pages they may send rows. Watching is free.
    pub origins: Origins,
    /// How long the server waits for them.
    pub patience: Patience,
}
