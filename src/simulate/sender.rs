//! Senders: each posts its share of the crowd's reactions over one connection, at the times the crowd gives.

use std::fmt::Write as _;
use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::{Response, StatusCode, Url, header};
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::crowd::{Crowd, Intent};
use super::tally::Tally;
use super::{GRACE, Plan, TABLE, endpoint, room_name, with_causes};
use crate::shutdown::Tasks;

/// A request without an answer by then has an unknown outcome.
pub(super) const REQUEST_LIMIT: Duration = Duration::from_secs(20);
/// An unset `--batch` means this much time's worth of a sender's reactions.
const ADAPTIVE_S: f64 = 0.1;
/// The most reactions in one request of an unset `--batch`; well below what ingest takes.
const ADAPTIVE_ROWS: u64 = 5_000;
/// Each sender speaks for so many people.
const USERS_PER_SENDER: u32 = 1_000;

/// Starts every sender; they end when their share is sent, at the latest [`GRACE`] after the duration.
pub(super) fn send_all(
    plan: &Plan,
    crowd: &Arc<Crowd>,
    client: &reqwest::Client,
    tally: &Arc<Tally>,
    start: Instant,
    tasks: &Tasks,
) -> Vec<JoinHandle<()>> {
    let per_sender = plan.rate / plan.senders as f64;
    let adaptive_rows = ((per_sender * ADAPTIVE_S).ceil() as u64).clamp(1, ADAPTIVE_ROWS);
    let spawn = |number| {
        let sender = Sender {
            number,
            senders: plan.senders,
            room: room_name(number % plan.rooms),
            batch: plan.batch.unwrap_or(adaptive_rows),
            most_rows: if plan.batch.is_some() { 0 } else { ADAPTIVE_ROWS },
            url: endpoint(&plan.url, &["v1", "tables", TABLE]),
            start,
            until: start + plan.duration + GRACE,
            crowd: Arc::clone(crowd),
            client: client.clone(),
            tally: Arc::clone(tally),
            tasks: tasks.clone(),
            rng: StdRng::seed_from_u64(plan.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
        };
        tasks.spawn(sender.run())
    };
    (0..plan.senders).map(spawn).collect()
}

struct Sender {
    number: u64,
    senders: u64,
    room: String,
    batch: u64,
    /// When behind, requests are merged up to this many reactions.
    most_rows: u64,
    url: Url,
    start: Instant,
    until: Instant,
    crowd: Arc<Crowd>,
    client: reqwest::Client,
    tally: Arc<Tally>,
    tasks: Tasks,
    rng: StdRng,
}

/// What became of one attempt.
enum Answer {
    Accepted(u64),
    /// Taken for certain not: try again after that time.
    Later(Duration),
    /// Nobody knows: not sent again, as it might count twice.
    Unknown,
    Refused,
}

impl Sender {
    async fn run(mut self) {
        let crowd = Arc::clone(&self.crowd);
        let mut intents = crowd.schedule(self.number, self.senders, self.batch).peekable();
        let mut due = Vec::new();
        while let Some(first) = intents.next() {
            let leaves = self.start + first.at;
            if !self.wait_until(leaves).await || Instant::now() > self.until {
                return;
            }
            due.clear();
            due.push(leaves);
            let rows = first.rows + self.merge_overdue(first.rows, &mut intents, &mut due);
            let body = Bytes::from(self.body(&crowd, first.at, rows));
            if !self.deliver(body, rows, &due).await {
                return;
            }
        }
    }

    /// Adds what is due already to the request that is about to leave; its latency counts from when it was due.
    fn merge_overdue(
        &self,
        mut rows: u64,
        intents: &mut Peekable<impl Iterator<Item = Intent>>,
        due: &mut Vec<Instant>,
    ) -> u64 {
        let before = rows;
        let since_start = self.start.elapsed();
        while let Some(next) =
            intents.next_if(|next| next.at <= since_start && rows + next.rows <= self.most_rows)
        {
            rows += next.rows;
            due.push(self.start + next.at);
        }
        rows - before
    }

    fn body(&mut self, crowd: &Crowd, at: Duration, rows: u64) -> String {
        let celebration = crowd.celebration_at(at);
        let mut body = String::with_capacity(rows as usize * 72 + 2);
        for row in 0..rows {
            body.push(if row == 0 { '[' } else { ',' });
            let emoji = crowd.emoji(celebration, &mut self.rng);
            let user = self.rng.random_range(0..USERS_PER_SENDER);
            // Writing to a String does not fail.
            write!(
                body,
                r#"{{"user_id":"u{}-{user}","emoji_type":"{emoji}","room":"{}"}}"#,
                self.number, self.room
            )
            .unwrap_or_default();
        }
        body.push(']');
        body
    }

    /// Posts until there is an answer that is not "later". False when time is up.
    async fn deliver(&mut self, body: Bytes, rows: u64, due: &[Instant]) -> bool {
        loop {
            match self.attempt(body.clone(), rows).await {
                Answer::Accepted(accepted) => {
                    let sender = usize::try_from(self.number).unwrap_or_default();
                    let now = Instant::now();
                    let since_due = due.iter().map(|due| now.saturating_duration_since(*due));
                    self.tally.record_accepted(sender, accepted, since_due);
                    return true;
                }
                Answer::Unknown => {
                    self.tally.record_unknown(rows);
                    return true;
                }
                Answer::Refused => {
                    self.tally.refused.fetch_add(rows, Relaxed);
                    return true;
                }
                Answer::Later(wait) => {
                    // Half as much again at random, so that all do not come back at once.
                    let again = Instant::now() + wait.mul_f64(self.rng.random_range(1.0..1.5));
                    if again > self.until || !self.wait_until(again).await {
                        return false;
                    }
                }
            }
        }
    }

    async fn attempt(&self, body: Bytes, rows: u64) -> Answer {
        let request = self
            .client
            .post(self.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .timeout(REQUEST_LIMIT)
            .body(body);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => {
                self.tally.unreachable.fetch_add(1, Relaxed);
                self.tally.record_trouble(&with_causes(&error.without_url()));
                return Answer::Later(Duration::from_secs(1));
            }
            Err(error) => {
                self.tally.record_trouble(&with_causes(&error.without_url()));
                return Answer::Unknown;
            }
        };
        self.tally.requests.fetch_add(1, Relaxed);
        let (status, retry_after) = (response.status(), retry_after(&response));
        let text = match response.text().await {
            Ok(text) => text,
            // The status of an accepted request stands, even if its body does not come.
            Err(_) if status == StatusCode::ACCEPTED => return Answer::Accepted(rows),
            Err(error) => {
                self.tally.record_trouble(&with_causes(&error.without_url()));
                return Answer::Unknown;
            }
        };
        let answer = read_answer(status, retry_after, &text, rows);
        match answer {
            Answer::Later(_) => {
                self.tally.busy.fetch_add(1, Relaxed);
            }
            Answer::Refused | Answer::Unknown => self.tally.record_trouble(&trouble(status, &text)),
            Answer::Accepted(_) => {}
        }
        answer
    }

    /// False when the simulation is asked to stop first.
    async fn wait_until(&self, at: Instant) -> bool {
        if at <= Instant::now() {
            return !self.tasks.is_cancelled();
        }
        tokio::select! {
            () = tokio::time::sleep_until(at) => true,
            () = self.tasks.cancelled() => false,
        }
    }
}

#[derive(Deserialize)]
struct Accepted {
    accepted: u64,
}

#[derive(Default, Deserialize)]
struct ProblemText {
    #[serde(default)]
    detail: Option<String>,
    #[serde(default)]
    outcome: Option<String>,
}

/// What the server's answer means for the request's reactions.
fn read_answer(status: StatusCode, retry_after: Option<Duration>, text: &str, rows: u64) -> Answer {
    let problem: ProblemText = serde_json::from_str(text).unwrap_or_default();
    match status {
        StatusCode::ACCEPTED => {
            Answer::Accepted(serde_json::from_str::<Accepted>(text).map_or(rows, |answer| answer.accepted))
        }
        _ if problem.outcome.as_deref() == Some("unknown") => Answer::Unknown,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            Answer::Later(retry_after.unwrap_or(Duration::from_secs(1)))
        }
        _ if status.is_server_error() => Answer::Unknown,
        _ => Answer::Refused,
    }
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    // A server that asks for more would outlive the simulation anyway.
    Some(Duration::from_secs(u64::min(seconds, 60)))
}

fn trouble(status: StatusCode, text: &str) -> String {
    let detail = serde_json::from_str::<ProblemText>(text).ok().and_then(|problem| problem.detail);
    match detail {
        Some(detail) => format!("{status}: {detail}"),
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, text: &str) -> String {
        match read_answer(StatusCode::from_u16(status).unwrap(), Some(Duration::from_secs(3)), text, 10) {
            Answer::Accepted(rows) => format!("accepted {rows}"),
            Answer::Later(wait) => format!("later {}", wait.as_secs()),
            Answer::Unknown => "unknown".to_owned(),
            Answer::Refused => "refused".to_owned(),
        }
    }

    #[test]
    fn only_what_was_certainly_not_taken_is_sent_again() {
        assert_eq!(read(202, r#"{"accepted": 7}"#), "accepted 7");
        assert_eq!(read(503, r#"{"detail":"the log is full"}"#), "later 3");
        assert_eq!(read(429, ""), "later 3");
        assert_eq!(read(503, r#"{"outcome":"unknown"}"#), "unknown");
        assert_eq!(read(500, "oh"), "unknown");
        assert_eq!(read(400, r#"{"detail":"row 0"}"#), "refused");
        assert_eq!(read(404, ""), "refused");
    }
}
