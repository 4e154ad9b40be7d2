//! `emostream watch`: the live counts as bars in the terminal.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use clap::ValueEnum;
use console::Term;
use reqwest::Url;
use tokio::time::{Instant, sleep, sleep_until};

use super::bars::{self, Heard};
use super::live::{self, Live, Trouble};
use crate::clock;
use crate::simulate::sse::Event;

/// How long to wait before a lost connection is tried again: at first, and at most; doubled each time, up to half of it left
/// to chance.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// The longest time a server may ask to stay away.
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// Tables that are drawn one below the other at most; of more, those heard of last.
const MAX_TABLES: usize = 8;

/// Draw the live counts as bars in the terminal
///
/// The biggest first, each window in place of the one before. Elsewhere than on a terminal each window is one line. A lost
/// connection is opened again where it left off. Ctrl-C ends it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A running `emostream up`, a front or a subscriber
    #[arg(long, value_parser = live::server_url, default_value = "http://127.0.0.1:8080")]
    url: Url,
    /// Only this table; may be given several times [default: all]
    #[arg(long, value_name = "NAME")]
    table: Vec<String>,
    /// This room; may be given several times [default: main]
    #[arg(long, value_name = "NAME")]
    room: Vec<String>,
    /// The column that the bars show, in tables that have it [default: count, else scaled, else the last number]
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Begin with the newest window that has closed already
    #[arg(long)]
    last: bool,
    /// text, or json: the messages as they are, one a line
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Watches until it is asked to stop. Returns the exit code.
pub async fn run(args: Args) -> u8 {
    let terminal = Term::stdout();
    let screen = match (args.format, terminal.is_term()) {
        (Format::Json, _) => Screen::Messages,
        (Format::Text, false) => Screen::Lines(args.column.clone()),
        (Format::Text, true) => {
            let (windows, column) = (BTreeMap::new(), args.column.clone());
            Screen::Picture(Picture { terminal, column, windows, lines: 0, note: String::new() })
        }
    };
    let mut watch = Watch { args, screen, last_id: None, was_open: false };
    let ended = tokio::select! {
        ended = watch.run() => ended,
        _ = tokio::signal::ctrl_c() => return 0,
    };
    let (code, message) = match ended {
        End::Refused(problem) => (1, problem),
        End::Outside(error) => (3, error),
        // Whoever reads this has read enough.
        End::OutputClosed => return 0,
    };
    eprintln!("emostream watch: {message}");
    code
}

/// Why there is nothing more to watch.
enum End {
    Refused(String),
    Outside(String),
    OutputClosed,
}

impl From<std::io::Error> for End {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Outside(format!("standard output: {error}")),
        }
    }
}

struct Watch {
    args: Args,
    screen: Screen,
    /// Where to go on.
    last_id: Option<String>,
    was_open: bool,
}

impl Watch {
    async fn run(&mut self) -> End {
        let mut pause = AGAIN.0;
        loop {
            let begun = Instant::now();
            let again = match self.watch_once().await {
                Ok(again) => again,
                Err(end) => return end,
            };
            if begun.elapsed() > AGAIN.1 {
                pause = AGAIN.0;
            }
            sleep(again.unwrap_or_else(|| pause.mul_f64(rand::random_range(0.5..=1.0)))).await;
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    /// Watches over one connection; returns how long the server asks to stay away.
    async fn watch_once(&mut self) -> Result<Option<Duration>, End> {
        let mut live = match Live::open(&self.args.url, &self.parameters()).await {
            Ok(live) => live,
            Err(Trouble::Refused(problem)) => return Err(End::Refused(problem)),
            Err(Trouble::Outside(error)) if !self.was_open => return Err(End::Outside(error)),
            Err(Trouble::Outside(error)) => {
                self.screen.note(&format!("{error}; trying again"))?;
                return Ok(None);
            }
        };
        self.screen.note(if self.was_open { "connected again" } else { "connected" })?;
        if !self.was_open && !self.args.table.is_empty() {
            let unheard = live::unheard_of(&self.args.url, &self.args.table).await;
            if !unheard.is_empty() {
                self.screen.note(&format!("waiting: {}", unheard.join("; ")))?;
            }
        }
        self.was_open = true;
        // Told to go elsewhere, and served here until then.
        let mut leave_at = None;
        loop {
            let next = tokio::select! {
                next = live.next() => next,
                () = sleep_until(leave_at.unwrap_or_else(Instant::now)), if leave_at.is_some() => {
                    return Ok(Some(Duration::ZERO));
                }
            };
            match next {
                Ok(Some(event)) => {
                    if let Some(retry_ms) = event.retry_ms.filter(|_| event.name == "drain") {
                        leave_at = Some(Instant::now() + Duration::from_millis(retry_ms).min(LONGEST_RETRY));
                    }
                    self.hear(&event)?;
                }
                Ok(None) | Err(Trouble::Refused(_)) => {
                    self.screen.note("the server closed the stream; connecting again")?;
                    return Ok(leave_at.map(|at| at.saturating_duration_since(Instant::now())));
                }
                Err(Trouble::Outside(error)) => {
                    self.screen.note(&format!("{error}; connecting again"))?;
                    return Ok(None);
                }
            }
        }
    }

    fn parameters(&self) -> Vec<(&str, &str)> {
        let Args { table, room, last, .. } = &self.args;
        let tables = table.iter().map(|table| ("table", table.as_str()));
        let rooms = room.iter().map(|room| ("room", room.as_str()));
        let after = self.last_id.as_deref().map(|id| ("after", id));
        let last = (*last && self.last_id.is_none()).then_some(("last", "1"));
        tables.chain(rooms).chain(after).chain(last).collect()
    }

    fn hear(&mut self, event: &Event) -> Result<(), End> {
        match event.name.as_str() {
            "" => {}
            "gap" => return Ok(self.screen.note("some windows before this are missing")?),
            _ => return Ok(()),
        }
        match serde_json::from_str::<Heard>(&event.data) {
            Ok(heard) => {
                self.last_id = Some(heard.message.id.to_string());
                Ok(self.screen.show(heard, &event.data)?)
            }
            Err(error) => Ok(self.screen.note(&format!("a message that cannot be read: {error}"))?),
        }
    }
}

/// Where windows are shown.
enum Screen {
    /// Drawn in place.
    Picture(Picture),
    /// A line for each, with the numbers of that column.
    Lines(Option<String>),
    /// As they are.
    Messages,
}

impl Screen {
    fn show(&mut self, heard: Heard, data: &str) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        match self {
            Self::Messages => writeln!(out, "{data}")?,
            Self::Lines(column) => {
                writeln!(out, "{}", bars::line(&heard, clock::wall_ns(), column.as_deref()))?;
            }
            Self::Picture(picture) => {
                drop(out);
                return picture.show(heard);
            }
        }
        out.flush()
    }

    /// Says how the connection is.
    fn note(&mut self, note: &str) -> std::io::Result<()> {
        match self {
            Self::Picture(picture) => {
                note.clone_into(&mut picture.note);
                picture.draw()
            }
            Self::Lines(_) | Self::Messages => {
                eprintln!("emostream watch: {note}");
                Ok(())
            }
        }
    }
}

/// The newest window of each table and room, one below the other.
struct Picture {
    terminal: Term,
    /// What the bars show.
    column: Option<String>,
    /// By table and room: when it was heard, how late it was, and the window.
    windows: BTreeMap<(String, String), (Instant, i64, Heard)>,
    /// Lines that are drawn.
    lines: usize,
    note: String,
}

impl Picture {
    fn show(&mut self, heard: Heard) -> std::io::Result<()> {
        let lag_ms = bars::lag_ms(&heard, clock::wall_ns());
        let stream = (heard.message.table.clone(), heard.message.room.clone());
        self.windows.insert(stream, (Instant::now(), lag_ms, heard));
        if self.windows.len() > MAX_TABLES {
            let oldest = self.windows.iter().min_by_key(|(_, (at, ..))| *at);
            if let Some(oldest) = oldest.map(|(stream, _)| stream.clone()) {
                self.windows.remove(&oldest);
            }
        }
        self.note.clear();
        self.draw()
    }

    fn draw(&mut self) -> std::io::Result<()> {
        let (height, width) = self.terminal.size();
        // One line stays free for the cursor, one for the note.
        let height = usize::from(height).saturating_sub(2) / self.windows.len().max(1);
        let column = self.column.as_deref();
        let of_one = |(_, lag_ms, heard): &(Instant, i64, Heard)| {
            bars::draw(heard, *lag_ms, (width.into(), height), column)
        };
        let mut lines: Vec<String> = self.windows.values().flat_map(of_one).collect();
        if !self.note.is_empty() {
            lines.push(bars::cut(&bars::harmless(&self.note), width.into()));
        }
        let text = bars::redraw(self.lines, &lines);
        self.lines = lines.len();
        self.terminal.write_str(&text)?;
        self.terminal.flush()
    }
}
