//! felix-broker

#![deny(unsafe_code)]

pub mod dev;
pub mod http;
#[allow(unsafe_code)]
pub mod io;
pub mod metrics;
pub mod self_check;
