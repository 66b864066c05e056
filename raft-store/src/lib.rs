//! stub
#![forbid(unsafe_code)]
pub mod table;
