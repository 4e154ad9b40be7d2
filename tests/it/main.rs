//! The integration tests: one binary, so that the engine's libraries link once.

// Clippy's exception for tests covers the test functions, not what they call.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod browser;
mod changes;
mod check;
mod cli;
mod commands;
mod connectors;
mod crash;
mod crash_saved;
mod crowd;
mod early;
mod embedded_log;
mod end_to_end;
mod examples;
mod fronts;
mod fuzz_records;
mod fuzz_sql;
mod golden;
mod hostile;
mod ingest;
mod inspection;
mod kafka;
mod kafka_conformance;
mod kafka_foreign_reader;
mod log_conformance;
mod oracle;
mod partitions;
mod pipeline;
mod publish;
mod register;
mod register_kafka;
mod run;
mod session_changes;
mod sharing;
mod simulate;
mod simulation;
mod spill;
mod sql;
mod standby;
mod statics;
mod support;
mod tables;
mod watch;
mod websocket;
