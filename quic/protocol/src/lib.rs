//! felix-protocol
