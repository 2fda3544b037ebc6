//! felix-broker
