//! Chromium, driven by WebDriver.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a script of a page may take.
const PATIENCE: Duration = Duration::from_secs(60);
const DRIVER: &str = "chromedriver";
/// Its names, as systems have it.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// A headless browser with a profile of its own and one open page; ends when dropped.
pub(crate) struct Browser {
    driver: Child,
    client: reqwest::Client,
    /// Of the session.
    url: String,
    _profile: TempDir,
}

impl Browser {
    /// Starts it; the test fails when there is none.
    pub(crate) async fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut driver = Command::new(DRIVER)
            .args(["--port=0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| missing(DRIVER, &error.to_string()));
        let port = port(driver.stdout.take().unwrap());
        let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        let mut browser =
            Self { driver, client, url: format!("http://127.0.0.1:{port}/session"), _profile: profile };
        let id = browser.begin().await;
        browser.url = format!("{}/{id}", browser.url);
        browser.post("/timeouts", &json!({"script": PATIENCE.as_millis() as u64})).await;
        browser
    }

    async fn begin(&self) -> String {
        let installed =
            |name: &&str| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok();
        let binary = BROWSERS.iter().find(|name| installed(name));
        let binary = binary.unwrap_or_else(|| missing("chromium", "none of its names runs"));
        let path = Command::new("sh").args(["-c", &format!("command -v {binary}")]).output().unwrap().stdout;
        // By a pipe, so that it ends with its driver however that ends.
        let arguments = [
            "--headless",
            "--remote-debugging-pipe",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &format!("--user-data-dir={}", self._profile.path().display()),
        ];
        let options = json!({"binary": String::from_utf8_lossy(&path).trim(), "args": arguments});
        let wanted = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}});
        let session = self.post("", &wanted).await;
        session["sessionId"].as_str().expect("a session").to_owned()
    }

    /// Opens a page.
    pub(crate) async fn open(&self, url: &str) {
        self.post("/url", &json!({"url": url})).await;
    }

    /// Runs the body of an async function in the page; returns what it returns.
    pub(crate) async fn run(&self, script: &str) -> Value {
        let script = format!(
            "const done = arguments[arguments.length - 1];
             (async () => {{ {script} }})().then((value) => done({{ value }}), (error) => done({{ error: `${{error.stack}}` }}));"
        );
        let mut outcome = self.post("/execute/async", &json!({"script": script, "args": []})).await;
        assert!(outcome["error"].is_null(), "the page fails: {}", outcome["error"]);
        outcome["value"].take()
    }

    /// Runs a script until `enough` of what it returns, and returns that.
    pub(crate) async fn poll(&self, script: &str, enough: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let polling = async {
            loop {
                last = self.run(script).await;
                if enough(&last) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, polling).await.is_err() {
            panic!("the page still says {last:#}");
        }
        last
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let answer =
            self.client.post(format!("{}{path}", self.url)).json(body).send().await.expect("it answers");
        let status = answer.status();
        let mut answer: Value = answer.json().await.expect("JSON");
        assert!(status.is_success(), "the browser refuses {path}: {answer:#}");
        answer["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // An error means that it has ended already.
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}

/// The port that the driver says it is at.
fn port(stdout: ChildStdout) -> u16 {
    let (tell, told) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let port =
                line.split_once("successfully on port ").map(|(_, port)| port.trim_end_matches('.').parse());
            if let Some(Ok(port)) = port {
                // Nobody listens any more when it came too late.
                tell.send(port).ok();
            }
        }
    });
    told.recv_timeout(PATIENCE).unwrap_or_else(|_| missing(DRIVER, "it does not say its port"))
}

fn missing(name: &str, why: &str) -> ! {
    panic!(
        "this test needs {name} ({why}). Debian: apt install chromium chromium-driver; \
         Fedora: dnf install chromium chromedriver; macOS: brew install --cask google-chrome chromedriver"
    )
}
