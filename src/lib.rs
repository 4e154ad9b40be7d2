//! emostream counts a live audience's emoji reactions by SQL and shows the result to everyone, at once, exactly.
//!
//! The way of one reaction:
//!
//! ```text
//!  viewers ──POST──▶ ingest ──Arrow record batches──▶ log: reactions ──▶ engine (sql/*.sql) ──▶ log: results
//!                                                                                                    │
//!  viewers ◀─WS/SSE─ subscribers ◀── clusters ◀── publisher ◀────────────────────────────────────────┤
//!  operators ◀─HTTP─ query (closed windows) ◀─────────────────────────────────────────────────────────┘
//! ```
//!
//! Modules in reading order: the domain, the log between the stages, the SQL that says what to count, the stages
//! in the order a reaction passes them, then what surrounds them.

pub mod reaction;

pub mod log;

pub mod sql;

pub mod ingest;

pub mod engine;

pub mod publish;

pub mod query;

pub mod simulate;

pub mod cli;
pub mod clock;
pub mod config;
pub mod http;
pub mod shutdown;
pub mod telemetry;

mod sync;
