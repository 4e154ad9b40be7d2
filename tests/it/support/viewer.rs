//! A viewer that comes back after every broken connection, with the last id it has seen.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use emostream::reaction::live::{LiveId, LiveMessage};
use futures::StreamExt;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Between a broken connection and the next attempt.
const AGAIN: Duration = Duration::from_millis(20);

/// What a viewer was shown.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// In the order of arrival, each with how many older ones of its table and room were left out before it.
    pub(crate) messages: Vec<(LiveMessage, u64)>,
    /// Windows told before their end.
    pub(crate) early: Vec<LiveMessage>,
    /// How often it was told that messages may be missing.
    pub(crate) gaps: usize,
    /// What should not have come.
    pub(crate) wrong: Vec<String>,
    windows: BTreeSet<(String, String, i64, i64)>,
    last: Option<LiveId>,
}

impl Shown {
    fn take(&mut self, event: &str) {
        let field = |name: &str| {
            let of = |line: &'_ str| line.strip_prefix(name).map(|value| value.trim_start().to_owned());
            event.lines().find_map(of)
        };
        match (field("event:").as_deref(), field("data:")) {
            (None, Some(data)) => self.take_window(field("id:").as_deref(), &data),
            (Some("gap"), _) => self.gaps += 1,
            (Some("drain"), _) | (None, None) => {}
            (Some(other), _) => self.wrong.push(format!("an event {other}")),
        }
    }

    fn take_window(&mut self, id: Option<&str>, data: &str) {
        let message: LiveMessage = match serde_json::from_str(data) {
            Ok(message) => message,
            Err(error) => return self.wrong.push(format!("{error}: {data}")),
        };
        let skipped = serde_json::from_str::<serde_json::Value>(data).unwrap()["skipped"].as_u64();
        if id != Some(&message.id.to_string()) {
            self.wrong.push(format!("{} came as id {id:?}", message.id));
        }
        if self.last.is_some_and(|last| message.id <= last) {
            self.wrong.push(format!("{} after {:?}", message.id, self.last));
        }
        self.last = Some(message.id);
        let LiveMessage { table, room, window, .. } = &message;
        let key = (table.clone(), room.clone(), window.start, window.end);
        if !message.is_final && !self.windows.contains(&key) {
            return self.early.push(message);
        }
        if !self.windows.insert(key) {
            self.wrong.push(format!("again after its end: {table} {room} {window:?}"));
        }
        self.messages.push((message, skipped.unwrap_or_default()));
    }
}

/// A watching viewer; leaves when dropped.
pub(crate) struct Viewer {
    shown: Arc<Mutex<Shown>>,
    _watching: JoinSet<()>,
}

impl Viewer {
    /// Watches these rooms at whatever address is told.
    pub(crate) fn start(address: watch::Receiver<Option<String>>, rooms: &[&str]) -> Self {
        Self::start_asking(address, rooms, "")
    }

    /// The same with more parameters.
    pub(crate) fn start_asking(
        mut address: watch::Receiver<Option<String>>,
        rooms: &[&str],
        more: &str,
    ) -> Self {
        let shown = Arc::<Mutex<Shown>>::default();
        let rooms: Vec<String> = rooms.iter().map(|room| format!("room={room}")).collect();
        let path = format!("/v1/live?{}{more}", rooms.join("&"));
        let mut watching = JoinSet::new();
        let seen = Arc::clone(&shown);
        watching.spawn(async move {
            let client = reqwest::Client::new();
            loop {
                let base = match address.wait_for(Option::is_some).await {
                    Ok(base) => base.clone().unwrap_or_default(),
                    Err(_) => return,
                };
                watch_once(&client, &format!("{base}{path}"), &seen).await;
                tokio::time::sleep(AGAIN).await;
            }
        });
        Self { shown, _watching: watching }
    }

    /// What it has been shown so far.
    pub(crate) fn shown<T>(&self, look: impl FnOnce(&Shown) -> T) -> T {
        look(&self.shown.lock().unwrap())
    }
}

async fn watch_once(client: &reqwest::Client, url: &str, shown: &Mutex<Shown>) {
    let mut request = client.get(url);
    let last = shown.lock().unwrap().last;
    if let Some(last) = last {
        request = request.header("last-event-id", last.to_string());
    }
    let Ok(answer) = request.send().await else { return };
    if !answer.status().is_success() {
        return;
    }
    let mut stream = answer.bytes_stream();
    let mut text = Vec::new();
    while let Some(Ok(bytes)) = stream.next().await {
        text.extend_from_slice(&bytes);
        while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = text.drain(..end + 2).collect();
            shown.lock().unwrap().take(&String::from_utf8_lossy(&event));
        }
    }
}
