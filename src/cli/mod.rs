//! The commands: one file each. `up` and `role` are the only places where the stages are put together.
//!
//! Exit codes: 0 done; 1 the input or the check says no; 2 usage; 3 something outside failed (broker, disk, port).
//! Data goes to standard output, all else to standard error.
#![allow(clippy::print_stdout, clippy::print_stderr)] // what commands are for

mod bars;
pub mod check;
pub mod config;
pub mod engine;
mod live;
mod logs;
mod print;
mod process;
mod program;
pub mod role;
mod rows;
pub mod run;
mod serve;
pub mod simulate;
pub mod tail;
pub mod up;
pub mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Count a live audience's emoji reactions by SQL and show the result to everyone, at once, exactly
#[derive(Debug, Parser)]
#[command(name = "emostream", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Args),
    Ingest(role::IngestArgs),
    Engine(engine::Args),
    Publish(role::PublishArgs),
    Cluster(role::ClusterArgs),
    Subscribe(role::SubscribeArgs),
    Query(role::QueryArgs),
    Check(check::CheckArgs),
    Run(run::Args),
    Config(config::Args),
    Simulate(simulate::SimulateArgs),
    Tail(tail::Args),
    Watch(watch::Args),
}

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What failed and what to do. May be empty when everything has been said already.
    pub message: String,
}

impl Failure {
    /// The input or the check says no: exit code 1.
    pub fn input(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// The command line or the settings are wrong: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// Something outside failed: exit code 3.
    pub fn outside(message: impl Into<String>) -> Self {
        Self { code: 3, message: message.into() }
    }
}

/// Reads the command line and does what it says. Wrong usage ends the process with exit code 2.
pub fn run() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Up(args) => up::run(args),
        Command::Engine(args) => engine::run(args),
        Command::Ingest(args) => role::ingest(args),
        Command::Publish(args) => role::publish(args),
        Command::Cluster(args) => role::cluster(args),
        Command::Subscribe(args) => role::subscribe(args),
        Command::Query(args) => role::query(args),
        Command::Check(args) => check::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Simulate(args) => process::run_alone(simulate::run(args)),
        Command::Tail(args) => tail::run(args),
        Command::Watch(args) => process::run_alone(watch::run(args)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            if !message.is_empty() {
                eprintln!("emostream: {message}");
            }
            ExitCode::from(code)
        }
    }
}
