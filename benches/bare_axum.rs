//! The floor that ingest is measured against: an axum handler that parses the same JSON and answers 202, nothing else.
//!
//! ```text
//! cargo bench --bench bare_axum -- listen=127.0.0.1:8090
//! ```
//!
//! Serves until it is stopped. Drive it and a running `emostream up` with the same client and compare the CPU time
//! of the two processes.

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;

#[derive(serde::Deserialize)]
struct Reaction<'a> {
    #[serde(borrow)]
    user_id: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    emoji_type: std::borrow::Cow<'a, str>,
}

async fn take(body: Bytes) -> (StatusCode, &'static str) {
    let rows = if body.first() == Some(&b'[') {
        serde_json::from_slice::<Vec<Reaction<'_>>>(&body).map(|rows| rows.iter().map(size).sum::<usize>())
    } else {
        serde_json::from_slice::<Reaction<'_>>(&body).map(|row| size(&row))
    };
    match rows {
        Ok(1..) => (StatusCode::ACCEPTED, r#"{"accepted":1}"#),
        _ => (StatusCode::BAD_REQUEST, ""),
    }
}

fn size(row: &Reaction<'_>) -> usize {
    row.user_id.len() + row.emoji_type.len()
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let listen = std::env::args().find_map(|argument| argument.strip_prefix("listen=").map(str::to_owned));
    let listener = tokio::net::TcpListener::bind(listen.as_deref().unwrap_or("127.0.0.1:8090")).await?;
    eprintln!("bare axum at {}", listener.local_addr()?);
    axum::serve(listener, Router::new().route("/emoji", post(take)).route("/v1/tables/reactions", post(take)))
        .await
}
