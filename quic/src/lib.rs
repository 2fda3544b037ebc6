//! felix-quic
