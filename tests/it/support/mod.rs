//! What several integration tests share.

pub(crate) mod binary;
pub(crate) mod dying;
pub(crate) mod kafka;
pub(crate) mod scoped;
pub(crate) mod scripted_log;
