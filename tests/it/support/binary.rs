//! The real binary as a child process.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(30);

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

    /// Starts it and waits until it says where it is. What it logs goes to the test's standard error.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("its first line");
        let address =
            line.split_once("http://").map(|(_, rest)| rest.split_whitespace().next().unwrap_or(rest));
        let base = format!("http://{}", address.unwrap_or_else(|| panic!("no address in '{line}'")));
        Self { child, base }
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

    async fn poll(&self, path: &str, enough: impl Fn(&Value) -> bool) -> Value {
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
        let ending = async {
            loop {
                if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                    return status.code();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ending).await.expect("it ends")
    }
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
