//! Logs to standard error and metrics in Prometheus' text form.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::shutdown::Tasks;

/// Section `[telemetry]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How a log line looks.
    pub log_format: LogFormat,
    /// What is logged, as `tracing`'s filter writes it: `info`, `warn,emostream::engine=debug`.
    pub log_level: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { log_format: LogFormat::Auto, log_level: "info".to_owned() }
    }
}

impl Settings {
    /// Whether the filter is one.
    ///
    /// # Errors
    /// Says what to write.
    pub fn validate(&self) -> Result<(), String> {
        self.filter().map(drop)
    }

    /// A bare word that is no level would be taken for a module's name, and nothing else be logged.
    fn filter(&self) -> Result<EnvFilter, String> {
        let is_level = |word: &str| word.is_empty() || word.parse::<LevelFilter>().is_ok();
        let mut parts = self.log_level.split(',').map(str::trim);
        let is_filter = !self.log_level.trim().is_empty()
            && parts.all(|part| part.contains(['=', '[']) || is_level(part));
        EnvFilter::try_new(&self.log_level).ok().filter(|_| is_filter).ok_or_else(|| {
            let wrong = format!("telemetry.log_level = \"{}\" is no level", self.log_level);
            format!("{wrong}; write error, warn, info, debug, trace or off, or a filter such as info,emostream=debug")
        })
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// One line of text, coloured on a terminal.
    Text,
    /// One JSON object per line.
    Json,
}

/// Upper bounds of the histograms' buckets, in seconds: from a fast append to a window's delivery.
const BUCKETS_S: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// How often the recorder drops what it no longer needs; its memory is bounded by this.
const UPKEEP: Duration = Duration::from_secs(5);

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Starts logging, and counting metrics, for the whole process. A second call changes nothing.
///
/// # Errors
/// When the filter is none; says what to write.
pub fn start(settings: &Settings, tasks: &Tasks) -> Result<(), String> {
    let filter = settings.filter()?;
    let terminal = std::io::stderr().is_terminal();
    let json = match settings.log_format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if json {
        lines.json().flatten_event(true).with_target(true).try_init()
    } else {
        lines.with_ansi(terminal).with_target(false).try_init()
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging had been started before");
    }
    start_metrics(tasks);
    Ok(())
}

fn start_metrics(tasks: &Tasks) {
    let builder =
        PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS_S);
    let handle = match builder.map(PrometheusBuilder::install_recorder) {
        Ok(Ok(handle)) => handle,
        Ok(Err(error)) | Err(error) => {
            tracing::debug!(%error, "metrics had been started before");
            return;
        }
    };
    let upkeep = handle.clone();
    if RECORDER.set(handle).is_err() {
        return;
    }
    let stop = tasks.token();
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(UPKEEP) => upkeep.run_upkeep(),
            }
        }
    });
}

/// All metrics as Prometheus reads them; empty before [`start`].
pub fn metrics_text() -> String {
    RECORDER.get().map(PrometheusHandle::render).unwrap_or_default()
}
