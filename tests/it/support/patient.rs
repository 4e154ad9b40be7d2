//! The real binary, ended again and again: at named points, by signals at random moments, and started on the same log.
//!
//! `EMOSTREAM_CRASH_SEED` chooses other moments.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use emostream::log::embedded::{self, EmbeddedLog};
use emostream::log::failpoint::CRASH_AT;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tokio::sync::watch;

use super::binary::{Running, emostream};

/// How a run of the process ends.
#[derive(Debug)]
pub(crate) enum End {
    /// At a named point, the n-th time it is passed.
    At(&'static str, u32),
    /// By SIGKILL so long after it began to serve.
    Killed(Duration),
    /// By SIGTERM so long after it began to serve.
    Terminated(Duration),
}

/// Named points in a random order, each at one of its first hits, and random moments between them.
pub(crate) fn ends(points: &[(&'static str, u32)], kills: usize) -> Vec<End> {
    let mut random = seeded();
    let mut ends: Vec<End> =
        points.iter().map(|&(point, hits)| End::At(point, random.random_range(1..=hits))).collect();
    ends.extend((0..kills).map(|_| End::Killed(moment(&mut random))));
    ends.push(End::Terminated(moment(&mut random)));
    ends.shuffle(&mut random);
    ends
}

pub(crate) fn seeded() -> StdRng {
    let seed = std::env::var("EMOSTREAM_CRASH_SEED").ok().and_then(|seed| seed.parse().ok());
    StdRng::seed_from_u64(seed.unwrap_or(20))
}

pub(crate) fn moment(random: &mut StdRng) -> Duration {
    Duration::from_millis(random.random_range(0..2_500))
}

/// One process that is started again and again.
pub(crate) struct Patient {
    dir: TempDir,
    args: Vec<String>,
    settings: Vec<(&'static str, String)>,
}

impl Patient {
    /// With these files under `sql/`.
    pub(crate) fn new(args: &[&str], files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sql = dir.path().join("sql");
        std::fs::create_dir(&sql).unwrap();
        for (file, text) in files {
            std::fs::write(sql.join(file), text).unwrap();
        }
        Self { dir, args: args.iter().map(|arg| (*arg).to_owned()).collect(), settings: Vec::new() }
    }

    /// With a setting of the environment.
    pub(crate) fn with(mut self, variable: &'static str, value: impl ToString) -> Self {
        self.settings.push((variable, value.to_string()));
        self
    }

    pub(crate) fn command(&self) -> Command {
        self.role(&["up"])
    }

    /// `emostream` as that role.
    pub(crate) fn role(&self, role: &[&str]) -> Command {
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = emostream(self.dir.path());
        command.args(role).args(&self.args).args(["--listen", "127.0.0.1:0"]).stderr(log);
        command.envs(self.settings.iter().map(|(variable, value)| (variable, value)));
        command
    }

    /// Its embedded log, while it does not run.
    pub(crate) async fn embedded_log(&self) -> Arc<EmbeddedLog> {
        let dir = self.dir.path().join("data");
        let opened =
            tokio::task::spawn_blocking(move || EmbeddedLog::open(&dir, embedded::Settings::default()));
        opened.await.unwrap().unwrap()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("stderr.log")
    }

    /// Runs it once to that end; `tell` says to everybody where it is meanwhile.
    pub(crate) async fn run_to(&self, end: &End, tell: &watch::Sender<Option<String>>) {
        let mut command = self.command();
        if let End::At(point, hit) = end {
            command.env(CRASH_AT, format!("{point}:{hit}"));
        }
        let status = match Running::begin(&mut command) {
            Err(status) => Some(status),
            Ok(mut process) => {
                tell.send_replace(Some(process.url("")));
                let status = match end {
                    End::At(..) => process.ended().await,
                    End::Killed(after) => {
                        tokio::time::sleep(*after).await;
                        process.kill();
                        None
                    }
                    End::Terminated(after) => {
                        tokio::time::sleep(*after).await;
                        assert_eq!(process.terminate().await, Some(0), "{end:?}");
                        None
                    }
                };
                tell.send_replace(None);
                status
            }
        };
        if let End::At(..) = end {
            let status = status.unwrap_or_else(|| panic!("{end:?} was never reached"));
            assert_eq!(status.signal(), Some(6), "{end:?}: {status}");
        }
    }
}

impl Drop for Patient {
    /// What the process said is worth reading only when something failed.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}
