//! What one message to many viewers costs a subscriber, beside a bare floor in the same run.
//!
//! ```text
//! cargo bench --bench fan_out -- [viewers=5000] [rate=2] [bytes=1024] [seconds=20] [servers=floor,ws,sse]
//! cargo bench --bench fan_out -- viewers=1000 rate=100,200,300,400,500 seconds=5      # until it is saturated
//! ```
//!
//! For each rate (messages a second) and each server three processes run: the server, pinned to the first core; the load
//! client of `emostream simulate`, with all viewers on one thread, pinned to the second; and this one, which waits. `floor`
//! is one thread with one epoll that writes the same frame, encoded once, to each socket with one call: what any
//! server of one write per message and viewer pays. `ws` and `sse` are a real subscriber with its log, its members and
//! its HTTP server; messages are appended to its cluster's topic in the same process. A window's end is the moment at which
//! its message is made, so that what viewers measure counts the log in.
//!
//! - `CPU-s/M`: CPU-seconds of the server's process, all threads, per million deliveries; `of floor`: beside the floor's.
//! - `KB/conn`: by how much its resident memory grew with all viewers there and none told anything yet, by connection.
//! - `client`: CPU-seconds of the client's viewers per million deliveries, joining included.
//!
//! Linux only: reads `/proc`, and pins by `taskset`.
//!
//! What it said on two shared cores, in one run each (messages of 1 KB; `of floor` beside the floor of the same run):
//!
//! | viewers, messages a second | server | CPU-s/M | of floor | p50 / p99 ms | KB/conn |
//! |---|---|---|---|---|---|
//! | 5,000, 2 | floor | 15.29 | 1 | 67 / 301 | |
//! | | ws | 17.58 | 1.15 | 72 / 188 | 9.9 |
//! | | sse | 23.20 | 1.52 | 78 / 210 | 12.7 |
//! | 10,000, 2 | floor | 12.67 | 1 | 66 / 202 | |
//! | | ws | 16.52 | 1.30 | 86 / 204 | 9.9 |
//! | 1,000, 300 | ws | 3.17 | | 18 / 39 | |
//! | 1,000, 600 | ws | 1.59 | | 18 / 42 | |
//!
//! Before WebSockets were the subscriber's own after the handshake (a task with the library's stream for each, as an HTTP
//! server hands them out) it was 1.63 to 2.04 times the floor.

#![allow(clippy::print_stdout)] // its result is what it prints

mod floor;
mod message;
mod real;
mod stage;
mod watch;

use std::collections::BTreeMap;

use stage::{Case, Outcome};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), AnyError> {
    let options: BTreeMap<String, String> = std::env::args()
        .filter_map(|argument| {
            argument.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
        })
        .collect();
    match options.get("role").map(String::as_str) {
        Some("floor") => return floor::run(),
        Some("real") => return real::run(),
        Some("watch") => return watch::run(&options),
        _ => {}
    }
    let text = |name: &str, default: &'static str| options.get(name).cloned().unwrap_or(default.to_owned());
    let number = |name: &str, default: &'static str| -> Result<f64, AnyError> {
        text(name, default).parse().map_err(|_| format!("{name} is no number").into())
    };
    let case = |server: &str, rate: f64| -> Result<Case, AnyError> {
        Ok(Case {
            server: server.to_owned(),
            rate,
            viewers: number("viewers", "5000")? as u64,
            bytes: number("bytes", "1024")? as usize,
            seconds: number("seconds", "20")?,
        })
    };
    for rate in text("rate", "2").split(',') {
        let rate = rate.parse().map_err(|_| "rate takes messages a second, such as 2 or 100,200,300")?;
        let shown = case("floor", rate)?;
        println!(
            "{} viewers, {} messages a second of {} bytes, {} s",
            shown.viewers, rate, shown.bytes, shown.seconds
        );
        println!(
            "{:>6} {:>12} {:>9} {:>9} {:>8} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7}",
            "server",
            "deliveries/s",
            "skipped",
            "CPU-s/M",
            "of floor",
            "p50 ms",
            "p99 ms",
            "max ms",
            "CPU %",
            "KB/conn",
            "client"
        );
        let mut floor = None;
        for server in text("servers", "floor,ws,sse").split(',') {
            let outcome = case(server, rate)?.run()?;
            if server == "floor" {
                floor = Some(outcome.cpu_s_per_million);
            }
            print_row(server, &outcome, floor);
        }
    }
    Ok(())
}

fn print_row(server: &str, outcome: &Outcome, floor: Option<f64>) {
    let Outcome { deliveries_per_s, skipped, cpu_s_per_million, cpu_share, kb_per_connection, .. } = outcome;
    let of_floor = floor.map_or("-".to_owned(), |floor| format!("{:.2}", cpu_s_per_million / floor));
    println!(
        "{server:>6} {deliveries_per_s:>12.0} {skipped:>9} {cpu_s_per_million:>9.2} {of_floor:>8} {:>9.1} {:>9.1} {:>9.1} {:>9.0} {kb_per_connection:>8.1} {:>7.2}",
        outcome.p50_ms,
        outcome.p99_ms,
        outcome.max_ms,
        100.0 * cpu_share,
        outcome.client_cpu_s_per_million,
    );
}
