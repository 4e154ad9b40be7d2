//! Puts a server and a client on their cores, has the server publish, and reads what it took.

#![allow(clippy::disallowed_methods)] // this process has no runtime: it only waits for the others

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::AnyError;
use crate::message::Order;

/// From the last message to the end of measuring, so that all that is under way arrives.
const AFTER: Duration = Duration::from_secs(1);
/// From the last join to the reading of the memory.
const IDLE: Duration = Duration::from_secs(2);

/// What is measured.
pub(crate) struct Case {
    /// `floor`, `ws` or `sse`.
    pub(crate) server: String,
    pub(crate) viewers: u64,
    pub(crate) rate: f64,
    pub(crate) bytes: usize,
    pub(crate) seconds: f64,
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) deliveries_per_s: f64,
    pub(crate) skipped: u64,
    pub(crate) cpu_s_per_million: f64,
    /// Of one core, while messages were published.
    pub(crate) cpu_share: f64,
    pub(crate) kb_per_connection: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    pub(crate) client_cpu_s_per_million: f64,
}

impl Case {
    pub(crate) fn run(&self) -> Result<Outcome, AnyError> {
        let role = if self.server == "floor" { "floor" } else { "real" };
        let mut server = Process::start("0", &[format!("role={role}")])?;
        let address = server.answer("listening")?;
        let before_kb = server.resident_kb()?;
        let mut client = Process::start(
            "1",
            &[
                "role=watch".to_owned(),
                format!("url=http://{address}"),
                format!("viewers={}", self.viewers),
                format!("transport={}", self.server),
            ],
        )?;
        if client.answer("watching")? != self.viewers.to_string() {
            return Err(format!("not everyone joined: {}", client.rest()?).into());
        }
        std::thread::sleep(IDLE);
        let idle_kb = server.resident_kb()?.saturating_sub(before_kb);

        let cpu_before = server.cpu()?;
        server.say(&Order { rate: self.rate, bytes: self.bytes, seconds: self.seconds }.text())?;
        let published = server.answer("published")?;
        std::thread::sleep(AFTER);
        let cpu_s = (server.cpu()? - cpu_before).as_secs_f64();
        let seconds: f64 = published.split(' ').nth(1).unwrap_or_default().parse()?;

        client.stdin = None;
        let report: serde_json::Value = serde_json::from_str(&client.rest()?)?;
        let watched = &report["watched"];
        let of = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN);
        if report["verified"] != true || watched["reconnects"] != 0 {
            return Err(format!("the viewers complain: {report:#}").into());
        }
        let deliveries = of(&watched["deliveries"]);
        let latency_ms = &watched["latency_ms"];
        Ok(Outcome {
            deliveries_per_s: deliveries / seconds,
            skipped: watched["skipped"].as_u64().unwrap_or_default(),
            cpu_s_per_million: cpu_s * 1e6 / deliveries,
            cpu_share: cpu_s / seconds,
            kb_per_connection: idle_kb as f64 / self.viewers as f64,
            p50_ms: of(&latency_ms["p50"]),
            p99_ms: of(&latency_ms["p99"]),
            max_ms: of(&latency_ms["max"]),
            client_cpu_s_per_million: of(&watched["cpu_s_per_million"]),
        })
    }
}

/// This program in another role, on a core; ends when its standard input does, or when dropped.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(core: &str, arguments: &[String]) -> Result<Self, AnyError> {
        let mut command = Command::new("taskset");
        command.args(["-c", core]).arg(std::env::current_exe()?).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stdout = BufReader::new(stdout.ok_or("no standard output")?);
        Ok(Self { child, stdin, stdout })
    }

    fn say(&mut self, line: &str) -> Result<(), AnyError> {
        Ok(writeln!(self.stdin.as_mut().ok_or("no standard input")?, "{line}")?)
    }

    /// What follows that word in the next line.
    fn answer(&mut self, word: &str) -> Result<String, AnyError> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let rest = line.trim_end().strip_prefix(word).and_then(|rest| rest.strip_prefix(' '));
        rest.map(str::to_owned).ok_or_else(|| format!("'{line}' instead of {word}").into())
    }

    fn rest(&mut self) -> Result<String, AnyError> {
        self.stdin = None;
        Ok(std::io::read_to_string(&mut self.stdout)?)
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.child.id())
    }

    fn resident_kb(&self) -> Result<u64, AnyError> {
        let status = std::fs::read_to_string(self.proc("status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        Ok(resident.and_then(|text| text.split_whitespace().next()).ok_or("no VmRSS")?.parse()?)
    }

    /// CPU time of its threads, those that ended left out.
    fn cpu(&self) -> Result<Duration, AnyError> {
        let mut sum = Duration::ZERO;
        for thread in std::fs::read_dir(self.proc("task"))? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            sum += Duration::from_nanos(text.split(' ').next().unwrap_or_default().parse()?);
        }
        Ok(sum)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
