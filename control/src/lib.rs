//! felix-control
