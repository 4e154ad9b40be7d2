//! `emostream watch` as a process of its own, its output read by a program: windows as lines, or as they are.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use emostream::reaction::live::LiveMessage;
use emostream::reaction::time::parse_rfc3339;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::support::binary::{Running, emostream};
use crate::support::by_request;
use crate::support::load::Load;

const PATIENCE: Duration = Duration::from_secs(60);

/// A watching process; killed when dropped.
pub(crate) struct Watching {
    child: Child,
    lines: Receiver<String>,
}

impl Watching {
    pub(crate) fn start(url: &str, args: &[&str]) -> Self {
        let mut command = emostream(&std::env::temp_dir());
        command.args(["watch", "--url", url]).args(args).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (tell, lines) = sync_channel(10_000);
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line.
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line in time")
    }

    /// Ctrl-C; returns the exit code.
    fn interrupt(&mut self) -> Option<i32> {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn program() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sql")).unwrap();
    std::fs::write(dir.path().join("sql/tables.sql"), by_request::TABLES).unwrap();
    std::fs::write(dir.path().join("sql/by_request.sql"), by_request::QUERY).unwrap();
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_prints_each_window_and_goes_on_when_the_server_comes_back() {
    let dir = program();
    let mut process = Running::up(dir.path(), &[]);
    process.ready().await;
    let address = watch::Sender::new(Some(process.url("")));
    let load = Load::start(&address.subscribe(), "/v1/tables/reactions", &["left", "right"]);
    let url = process.url("");
    let mut lines = Watching::start(&url, &["--room", "left", "--table", "by_request"]);
    let mut messages = Watching::start(&url, &["--room", "left", "--format", "json"]);
    for _ in 0..3 {
        let line = lines.line();
        assert!(line.starts_with("by_request · left · 20"), "{line}");
        assert!(line.contains(" ms after its end: ") && line.contains("left-"), "{line}");
    }
    let mut heard: Vec<LiveMessage> = Vec::new();
    let mut hear = |messages: &Watching| {
        let message: LiveMessage = serde_json::from_str(&messages.line()).unwrap();
        assert_eq!((message.room.as_str(), message.is_final), ("left", true));
        heard.push(message);
    };
    (0..3).for_each(|_| hear(&messages));
    address.send_replace(None);
    assert_eq!(process.terminate().await, Some(0));
    let listen = url.strip_prefix("http://").unwrap();
    process = Running::start(emostream(dir.path()).args(["up", "--listen", listen]));
    process.ready().await;
    address.send_replace(Some(process.url("")));
    (0..6).for_each(|_| hear(&messages));
    load.stop().await;
    assert!(heard.windows(2).all(|two| two[0].id < two[1].id));
    // None is missing between the first and the last.
    let told: Vec<i64> = heard.iter().map(|message| message.window.start).collect();
    let closed = |windows: &[Value]| {
        let is_left =
            |window: &&Value| window["rows"].as_array().unwrap().iter().any(|row| row["room"] == "left");
        let starts = windows.iter().rev().filter(is_left).map(|window| window["start"].as_str().unwrap());
        let starts = starts.map(|start| parse_rfc3339(start).unwrap());
        starts.filter(|start| (told[0]..=told[told.len() - 1]).contains(start)).collect::<Vec<_>>()
    };
    process.windows("by_request", |windows| closed(windows) == told).await;
    assert_eq!((lines.interrupt(), messages.interrupt()), (Some(0), Some(0)));

    // The newest window that has closed, at once.
    let mut newest = Watching::start(&process.url(""), &["--room", "left", "--last"]);
    assert!(newest.line().starts_with("by_request · left · 20"));
    assert_eq!(newest.interrupt(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_says_what_is_wrong_and_ends() {
    let dir = program();
    let run = |url: String, args: &[&str]| {
        let mut command = emostream(dir.path());
        let output = command.args(["watch", "--url", &url]).args(args).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run("http://127.0.0.1:1".to_owned(), &[]);
    assert!(code == Some(3) && said.contains("emostream up"), "{code:?} {said}");
    let process = Running::up(dir.path(), &[]);
    process.ready().await;
    let (code, said) = run(process.url(""), &["--room", ""]);
    assert!(code == Some(1) && said.contains("room takes"), "{code:?} {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_table_that_nobody_fills_is_told_which_ones_there_are() {
    let dir = program();
    let process = Running::up(dir.path(), &[]);
    process.ready().await;
    let url = process.url("");
    for (args, said) in [
        (["watch", "--table", "nosuch"], "there is no table nosuch yet; windows come from: by_request"),
        (["tail", "nosuch", "--url"], "there is no table nosuch yet; windows come from: by_request"),
        (["tail", "reactions", "--url"], "reactions is a source table"),
    ] {
        let mut command = emostream(dir.path());
        let address = if args[2] == "--url" { vec![url.as_str()] } else { vec!["--url", &url] };
        command.args(args).args(address).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let connected = lines.find(|line| line.contains(": connected"));
        let told = lines.next();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(connected.is_some() && told.as_ref().is_some_and(|told| told.contains(said)), "{told:?}");
    }
}
