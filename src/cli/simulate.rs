//! `emostream simulate`: a crowd that sends and watches, and the check that every accepted reaction is accounted for.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::Url;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::live::server_url;
use crate::shutdown::Tasks;
use crate::simulate::crowd::{Crowd, Shape};
use crate::simulate::tally::Tally;
use crate::simulate::{Failure, Plan, Report, Transport, progress, run as simulate};

/// On a terminal the display is drawn this often.
const DRAW_EVERY: Duration = Duration::from_millis(500);
/// Elsewhere a line is written this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How long the windows get to close at the end.
const SETTLE: Duration = Duration::from_secs(10);

/// Send reactions and watch the results like a crowd would, then check that nothing was lost
///
/// Open loop: latencies count from when a request should have left. Ends with exit code 1 when a reaction that was
/// answered 202 is missing from a query's figures, or a viewer received a window twice or out of order. With
/// --senders 0 it only watches, and asks --live-url for nothing but /v1/live.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// People who send, each over one connection; 0: watch only
    #[arg(long, value_name = "N", default_value_t = 100)]
    senders: u64,
    /// People who watch; with the senders 19000 at most, more take more processes
    #[arg(long, value_name = "N", default_value_t = 1000)]
    viewers: u64,
    /// Reactions a second, all senders together
    #[arg(long, value_name = "N", default_value_t = 10_000.0)]
    rate: f64,
    /// Viewers joining a second, such as 10/s [default: all within a quarter of the duration]
    #[arg(long, value_name = "N/s", value_parser = parse_ramp)]
    ramp: Option<f64>,
    /// How long to send, or to watch, such as 500ms, 60s, 5m or 1h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    duration: Duration,
    /// Rooms that senders and viewers spread over
    #[arg(long, value_name = "N", default_value_t = 1)]
    rooms: u64,
    /// steady, or match: a hum with small waves and goals of 10 to 30 times the hum; both average to --rate
    #[arg(long, value_enum, default_value = "steady")]
    shape: ShapeArg,
    /// Reactions in a request [default: a tenth of a second's worth, more when behind]
    #[arg(long, value_name = "N")]
    batch: Option<u64>,
    /// How viewers watch
    #[arg(long, value_enum, default_value = "ws")]
    transport: TransportArg,
    /// The same seed sends the same reactions at the same times [default: random, and reported]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Where to send
    #[arg(long, value_parser = server_url, default_value = "http://127.0.0.1:8080")]
    url: Url,
    /// Where to watch [default: --url]
    #[arg(long, value_name = "URL", value_parser = server_url)]
    live_url: Option<Url>,
    /// Where to read the figures [default: --url]
    #[arg(long, value_name = "URL", value_parser = server_url)]
    query_url: Option<Url>,
    /// How to print the final report
    #[arg(long, value_enum, default_value = "text")]
    format: FormatArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ShapeArg {
    Steady,
    Match,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TransportArg {
    Ws,
    Sse,
    Both,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    Text,
    Json,
}

/// Runs the crowd; Ctrl-C ends the sending early, and a second one everything. Returns the exit code.
pub async fn run(args: SimulateArgs) -> u8 {
    let format = args.format;
    let plan = args.plan();
    match run_plan(plan).await {
        Ok(report) => print(&report, format),
        Err(failure) => {
            eprintln!("emostream simulate: {failure}");
            match failure {
                Failure::Plan(_) => 2,
                Failure::Outside(_) => 3,
            }
        }
    }
}

impl SimulateArgs {
    fn plan(self) -> Plan {
        let quarter_s = (self.duration.as_secs_f64() / 4.0).max(0.1);
        Plan {
            senders: self.senders,
            viewers: self.viewers,
            rate: self.rate,
            ramp: self.ramp.unwrap_or((self.viewers as f64 / quarter_s).max(10.0)),
            duration: self.duration,
            rooms: self.rooms,
            shape: match self.shape {
                ShapeArg::Steady => Shape::Steady,
                ShapeArg::Match => Shape::Match,
            },
            batch: self.batch,
            transport: match self.transport {
                TransportArg::Ws => Transport::WebSocket,
                TransportArg::Sse => Transport::Sse,
                TransportArg::Both => Transport::Both,
            },
            settle: SETTLE,
            seed: self.seed.unwrap_or_else(rand::random),
            live_url: self.live_url.unwrap_or_else(|| self.url.clone()),
            query_url: self.query_url.unwrap_or_else(|| self.url.clone()),
            url: self.url,
        }
    }
}

async fn run_plan(plan: Plan) -> Result<Report, Failure> {
    let crowd = Crowd::new(plan.shape, plan.rate, plan.duration, plan.seed).map_err(Failure::Plan)?;
    let (crowd, tally, stop, tasks) =
        (Arc::new(crowd), Arc::new(Tally::new(plan.senders)), CancellationToken::new(), Tasks::new());
    if plan.viewers as f64 / plan.ramp > plan.duration.as_secs_f64() {
        eprintln!("at {}/s not all {} viewers join within {:?}", plan.ramp, plan.viewers, plan.duration);
    }
    tasks.spawn(stop_on_interrupt(stop.clone(), tasks.clone()));
    tasks.spawn(display(Arc::clone(&crowd), Arc::clone(&tally), plan.duration, tasks.clone()));
    let report = simulate(plan, crowd, tally, stop).await;
    tasks.stop(Duration::from_secs(1)).await;
    report
}

async fn stop_on_interrupt(stop: CancellationToken, tasks: Tasks) {
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => if interrupted.is_ok() {
            eprintln!("stopping: waiting for answers and windows; Ctrl-C again to leave at once");
            stop.cancel();
        },
        () = tasks.cancelled() => return,
    }
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => if interrupted.is_ok() {
            std::process::exit(130);
        },
        () = tasks.cancelled() => {}
    }
}

/// Shows what happens until cancelled: redrawn on a terminal, a line every few seconds elsewhere.
async fn display(crowd: Arc<Crowd>, tally: Arc<Tally>, duration: Duration, tasks: Tasks) {
    let terminal = std::io::stderr().is_terminal();
    let bar = bar(duration, terminal);
    let mut ticks = tokio::time::interval(if terminal { DRAW_EVERY } else { LINE_EVERY });
    let mut last = (Instant::now(), (0, 0));
    ticks.tick().await;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = tasks.cancelled() => break,
        }
        if tally.elapsed().is_none() {
            continue;
        }
        let text = progress(&crowd, &tally, last.0.elapsed(), last.1);
        last = (Instant::now(), (tally.accepted(), tally.deliveries()));
        let text = if tally.has_ended() {
            format!("{text}\n         waiting for the windows to close")
        } else {
            text
        };
        if terminal {
            let elapsed_ms = tally.elapsed().unwrap_or_default().min(duration).as_millis();
            bar.set_position(u64::try_from(elapsed_ms).unwrap_or(u64::MAX));
            bar.set_message(text);
        } else {
            eprintln!("{}", text.replace("\n        ", ";"));
        }
    }
    bar.finish_and_clear();
}

fn bar(duration: Duration, terminal: bool) -> ProgressBar {
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let length_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let style =
        ProgressStyle::with_template("{wide_bar}\n{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(length_ms), target).with_style(style)
}

/// Prints the report to standard output; the exit code says whether it is verified.
#[allow(clippy::print_stdout)] // the report is what the command is for
fn print(report: &Report, format: FormatArg) -> u8 {
    match format {
        FormatArg::Text => print!("{report}"),
        FormatArg::Json => match serde_json::to_string_pretty(report) {
            Ok(json) => println!("{json}"),
            Err(error) => {
                eprintln!("emostream simulate: the report cannot be written: {error}");
                return 3;
            }
        },
    }
    u8::from(!report.verified)
}

fn parse_ramp(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse() {
        Ok(ramp) if ramp > 0.0 && f64::is_finite(ramp) => Ok(ramp),
        _ => Err("write joins a second, such as 10/s".to_owned()),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit_s = match &text[digits.len()..] {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => 0.0,
    };
    match digits.parse::<f64>() {
        Ok(number) if number > 0.0 && unit_s > 0.0 && number * unit_s <= 7.0 * 86_400.0 => {
            Ok(Duration::from_secs_f64(number * unit_s))
        }
        _ => Err("write a duration such as 500ms, 60s, 5m or 1h, at most a week".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_ramps_are_read_and_nonsense_is_refused() {
        assert_eq!(parse_duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for nonsense in ["", "s", "-1s", "0s", "5 days", "1e9h"] {
            assert!(parse_duration(nonsense).is_err(), "{nonsense}");
        }
        assert_eq!(parse_ramp("10/s"), Ok(10.0));
        assert_eq!(parse_ramp("0.5"), Ok(0.5));
        assert!(parse_ramp("0/s").is_err());
    }
}
