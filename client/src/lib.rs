//! felix-client
