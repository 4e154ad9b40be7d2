//! The real binary as a child process.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary, in that folder, with no settings but its defaults.
pub(crate) fn emostream(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_emostream"));
    command.current_dir(dir).env_clear().stdin(Stdio::null());
    command
}

/// A running process that serves; killed when dropped.
pub(crate) struct Running {
    child: Child,
    base: String,
}

impl Running {
    /// `emostream up` on a free port, in that folder.
    pub(crate) fn up(dir: &Path, args: &[&str]) -> Self {
        Self::start(emostream(dir).args(["up", "--listen", "127.0.0.1:0"]).args(args))
    }

    /// Starts it and waits until it says where it is. What it logs goes to the test's standard error, unless the
    /// command says otherwise.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::begin(command).unwrap_or_else(|status| panic!("it ended before it served: {status}"))
    }

    /// The same for a process that may end before it says where it is: then how it ended.
    pub(crate) fn begin(command: &mut Command) -> Result<Self, ExitStatus> {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary starts");
        let line = first_line(child.stdout.take().expect("it is piped"));
        let mut running = Self { child, base: String::new() };
        let line = line.expect("it says where it is, or ends");
        let address =
            line.split_once("http://").map(|(_, rest)| rest.split_whitespace().next().unwrap_or(rest));
        match address {
            Some(address) => running.base = format!("http://{address}"),
            None => return Err(running.child.wait().expect("it can be waited for")),
        }
        Ok(running)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The answer's body, whatever its status.
    pub(crate) async fn json(&self, path: &str) -> Value {
        let answer = reqwest::get(self.url(path)).await.expect("it answers");
        let text = answer.text().await.expect("a body");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    /// Waits until `/readyz` says so.
    pub(crate) async fn ready(&self) {
        let ready = self.poll("/readyz", |answer| answer["ready"] == true);
        ready.await;
    }

    /// Waits until the results of a sink satisfy `enough`, and returns its windows.
    pub(crate) async fn windows(&self, sink: &str, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let windows = |answer: &Value| answer["windows"].as_array().cloned().unwrap_or_default();
        windows(&self.poll(&format!("/v1/results/{sink}"), |answer| enough(&windows(answer))).await)
    }

    /// Waits until an answer satisfies `enough`, and returns it.
    pub(crate) async fn poll(&self, path: &str, enough: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let polling = async {
            loop {
                last = self.json(path).await;
                if enough(&last) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, polling).await.is_err() {
            panic!("{path} still says {last}");
        }
        last
    }

    /// Sends SIGTERM and returns the exit code.
    pub(crate) async fn terminate(&mut self) -> Option<i32> {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
        self.ended().await.expect("it ends").code()
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it can be waited for");
    }

    /// How it ended by itself; `None` when it has not ended within a test's patience.
    pub(crate) async fn ended(&mut self) -> Option<ExitStatus> {
        let ending = async {
            loop {
                if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ending).await.ok()
    }
}

/// The line that says where it is, empty when there is none; `None` when it does not come within a test's patience. What a
/// query writes to standard output may come before it.
fn first_line(stdout: ChildStdout) -> Option<String> {
    let (tell, told) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let line = lines.find(|line| !line.starts_with('{'));
        // Nobody listens any more when it came too late.
        tell.send(line.unwrap_or_default()).ok();
    });
    told.recv_timeout(PATIENCE).ok()
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Status and body of a POST of JSON.
pub(crate) async fn post_json(url: &str, body: &'static str) -> (u16, String) {
    let request = reqwest::Client::new().post(url).header("content-type", "application/json").body(body);
    let answer = request.send().await.expect("it answers");
    (answer.status().as_u16(), answer.text().await.expect("a body"))
}
