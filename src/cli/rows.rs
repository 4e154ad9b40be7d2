//! Where clients' connections meet ingest: the rows that they send go the way of a POST.

use std::sync::Arc;

use crate::http::Origins;
use crate::ingest::{Ingest, routes::take_json};
use crate::publish::Live;
use crate::publish::command::Accepted;

/// Live windows for everybody, rows from those pages that may POST them.
pub(super) fn taken_by(ingest: &Arc<Ingest>, origins: &Origins) -> Live {
    let ingest = Arc::clone(ingest);
    let take_rows = move |table: String, rows| -> futures::future::BoxFuture<'static, _> {
        let ingest = Arc::clone(&ingest);
        Box::pin(async move {
            let (accepted, warnings) = take_json(&ingest, &table, rows).await?;
            Ok(Accepted { accepted, warnings })
        })
    };
    Live { take_rows: Some(Arc::new(take_rows)), origins: origins.clone(), ..Live::default() }
}
