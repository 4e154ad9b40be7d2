//! log/embedded
