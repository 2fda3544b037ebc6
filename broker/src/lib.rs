//! felix-broker

#![deny(unsafe_code)]

#[allow(unsafe_code)]
pub mod io;
