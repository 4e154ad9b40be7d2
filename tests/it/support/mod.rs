//! What several integration tests share.

pub(crate) mod binary;
pub(crate) mod books;
pub(crate) mod browser;
pub(crate) mod by_request;
pub(crate) mod damage;
pub(crate) mod dying;
pub(crate) mod endpoint;
pub(crate) mod golden;
pub(crate) mod house;
pub(crate) mod kafka;
pub(crate) mod load;
pub(crate) mod patient;
pub(crate) mod raw_socket;
pub(crate) mod rows;
pub(crate) mod scoped;
pub(crate) mod scripted_log;
pub(crate) mod seeds;
pub(crate) mod stage;
pub(crate) mod tier;
pub(crate) mod viewer;
pub(crate) mod waiting;
pub(crate) mod watched;
