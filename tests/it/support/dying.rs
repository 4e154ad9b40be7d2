//! Processes of this very binary that are killed at named points or after so many steps.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use emostream::log::failpoint::CRASH_AT;

/// Where a child process of a test finds its log; a process that has it is one.
pub(crate) const CHILD_PLACE: &str = "EMOSTREAM_TEST_CHILD_PLACE";

/// Runs the test of that name again, as a process that works until it dies; what it reported, in order.
/// `kill_after`: it is killed when it reported so many steps; else it dies at `crash_at`.
pub(crate) fn die(test: &str, place: &OsStr, crash_at: &str, kill_after: Option<usize>) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(CHILD_PLACE, place).env(CRASH_AT, crash_at).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child: Child = command.spawn().unwrap();
    let mut reported = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.starts_with("append ") || line.starts_with("commit ") {
            reported.push(line);
        }
        if kill_after == Some(reported.len()) {
            child.kill().unwrap();
        }
    }
    let status = child.wait().unwrap();
    assert!(!status.success() && status.code().is_none(), "it was to die of a signal: {status}");
    reported
}
