//! A client's own HTTP endpoint, which writes down what is POSTed to it and answers as it is told.

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use emostream::http;
use emostream::shutdown::Tasks;
use serde_json::Value;
use tokio::time::Instant;

/// How long a test waits for messages.
const PATIENCE: Duration = Duration::from_secs(60);

/// What it answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Status(u16),
    /// Nothing, ever.
    Nothing,
    /// 307 to that address.
    Elsewhere(String),
}

/// One POST.
#[derive(Clone, Debug)]
pub(crate) struct Posted {
    /// The `Host` header.
    pub(crate) host: String,
    pub(crate) message: Value,
    /// Whether it was answered 2xx.
    pub(crate) is_acknowledged: bool,
}

impl Posted {
    pub(crate) fn id(&self) -> &str {
        self.message["id"].as_str().unwrap_or_else(|| panic!("no window: {}", self.message))
    }
}

struct Book {
    posted: Mutex<Vec<Posted>>,
    answer: Mutex<Answer>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

/// A running endpoint on loopback; ends when dropped.
pub(crate) struct Endpoint {
    pub(crate) port: u16,
    book: Arc<Book>,
    tasks: Tasks,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

impl Endpoint {
    /// Answers 200.
    pub(crate) async fn start() -> Self {
        let book = Arc::new(Book {
            posted: Mutex::default(),
            answer: Mutex::new(Answer::Status(200)),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
        });
        let listener = http::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tasks = Tasks::new();
        http::serve(listener, Router::new().fallback(any(take)).with_state(Arc::clone(&book)), &tasks);
        Self { port, book, tasks }
    }

    pub(crate) fn answer(&self, answer: Answer) {
        *self.book.answer.lock().unwrap() = answer;
    }

    /// Everything that was POSTed, in order.
    pub(crate) fn posted(&self) -> Vec<Posted> {
        self.book.posted.lock().unwrap().clone()
    }

    /// The windows it acknowledged, in order.
    pub(crate) fn windows(&self) -> Vec<Posted> {
        let posted = self.posted().into_iter();
        posted.filter(|posted| posted.is_acknowledged && posted.message.get("type").is_none()).collect()
    }

    /// How many were under way at a time at most.
    pub(crate) fn most_under_way(&self) -> usize {
        self.book.most_under_way.load(Ordering::SeqCst)
    }

    /// Waits until what was POSTed satisfies `enough`.
    pub(crate) async fn until(&self, what: &str, enough: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !enough(self) {
            assert!(begun.elapsed() < PATIENCE, "{what}: {:#?}", self.posted());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn take(State(book): State<Arc<Book>>, headers: HeaderMap, body: String) -> Response {
    let under_way = book.under_way.fetch_add(1, Ordering::SeqCst) + 1;
    book.most_under_way.fetch_max(under_way, Ordering::SeqCst);
    let answer = book.answer.lock().unwrap().clone();
    assert_eq!(headers[header::CONTENT_TYPE], "application/json");
    let posted = Posted {
        host: headers[header::HOST].to_str().unwrap().to_owned(),
        message: serde_json::from_str(&body).unwrap(),
        is_acknowledged: matches!(answer, Answer::Status(200..=299)),
    };
    book.posted.lock().unwrap().push(posted);
    // An endpoint that never answers is left by its client, and so is this.
    let _over = Over(&book);
    match answer {
        Answer::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Answer::Elsewhere(url) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, url)]).into_response(),
        Answer::Nothing => pending().await,
    }
}

/// One less is under way when it goes.
struct Over<'a>(&'a Book);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}
