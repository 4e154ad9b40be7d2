//! Senders that write down what each of their requests was answered.
//!
//! All rows of a request carry its tag as their emoji and nobody else's, so that the results tell what became of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Between two requests of one sender.
const PACE: Duration = Duration::from_millis(25);
/// After so long a request's outcome is not known.
const ANSWER: Duration = Duration::from_secs(20);

/// What became of a request, as far as its sender knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answered 202.
    Accepted,
    /// Never sent, or answered that nothing was kept.
    Refused,
    /// The connection died, or the answer says that nobody knows.
    Unknown,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) room: &'static str,
    pub(crate) rows: u64,
    pub(crate) outcome: Outcome,
}

/// Requests by tag.
pub(crate) type Ledger = BTreeMap<String, Sent>;

/// Running senders.
pub(crate) struct Load {
    stop: CancellationToken,
    senders: JoinSet<()>,
    ledger: Arc<Mutex<Ledger>>,
}

impl Load {
    /// One sender per room, posting to `path` of whatever address is told; while none is told they wait. The rows have no
    /// timestamp: the time of receipt is theirs.
    pub(crate) fn start(
        address: &watch::Receiver<Option<String>>,
        path: &'static str,
        rooms: &[&'static str],
    ) -> Self {
        Self::of(address, path, rooms, |room, number, tag| {
            let row = |n| json!({"user_id": format!("user{n}"), "emoji_type": tag, "room": room});
            (0..1 + number * 13 % 37).map(row).collect()
        })
    }

    /// The same with the rows that `rows` makes of a sender's room, the request's number and its tag.
    pub(crate) fn of(
        address: &watch::Receiver<Option<String>>,
        path: &'static str,
        rooms: &[&'static str],
        rows: impl Fn(&str, u64, &str) -> Vec<Value> + Clone + Send + Sync + 'static,
    ) -> Self {
        let (stop, ledger) = (CancellationToken::new(), Arc::<Mutex<Ledger>>::default());
        let mut senders = JoinSet::new();
        for &room in rooms {
            let (address, stop, ledger) = (address.clone(), stop.clone(), Arc::clone(&ledger));
            let rows = rows.clone();
            senders.spawn(async move { keep_sending(address, path, room, rows, &ledger, &stop).await });
        }
        Self { stop, senders, ledger }
    }

    /// How many requests were answered 202 so far.
    pub(crate) fn accepted(&self) -> usize {
        let ledger = self.ledger.lock().unwrap();
        ledger.values().filter(|sent| sent.outcome == Outcome::Accepted).count()
    }

    /// Ends every sender after its answer.
    pub(crate) async fn stop(mut self) -> Ledger {
        self.stop.cancel();
        while let Some(ended) = self.senders.join_next().await {
            ended.expect("a sender got an answer that it should not get");
        }
        std::mem::take(&mut self.ledger.lock().unwrap())
    }
}

async fn keep_sending(
    mut address: watch::Receiver<Option<String>>,
    path: &str,
    room: &'static str,
    rows: impl Fn(&str, u64, &str) -> Vec<Value>,
    ledger: &Mutex<Ledger>,
    stop: &CancellationToken,
) {
    let client = reqwest::Client::builder().timeout(ANSWER).build().unwrap();
    for number in 0_u64.. {
        let known = stop.run_until_cancelled(address.wait_for(Option::is_some)).await;
        let Some(Ok(base)) = known.map(|known| known.map(|base| base.clone().unwrap_or_default())) else {
            return;
        };
        let tag = format!("{room}-{number}");
        let rows = rows(room, number, &tag);
        let outcome = post(&client, &format!("{base}{path}"), &tag, &rows).await;
        ledger.lock().unwrap().insert(tag, Sent { room, rows: rows.len() as u64, outcome });
        tokio::time::sleep(PACE).await;
    }
}

async fn post(client: &reqwest::Client, url: &str, tag: &str, rows: &[Value]) -> Outcome {
    let answer = match client.post(url).json(rows).send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => return Outcome::Refused,
        Err(_) => return Outcome::Unknown,
    };
    let status = answer.status().as_u16();
    let body = answer.json::<Value>().await;
    match (status, body) {
        (202, _) => Outcome::Accepted,
        (503, Ok(problem)) if problem["outcome"].is_null() => Outcome::Refused,
        (503, _) => Outcome::Unknown,
        (status, body) => panic!("{tag} was answered {status} {body:?}"),
    }
}
