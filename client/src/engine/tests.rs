//! **What**: the engine against hand-fed frames: every test is a broker that says exactly what it wants to be tried.
//!
//! **See**: `kit.rs` for the words these tests are written in.

mod doubt;
mod hostile;
mod kit;
mod publishing;
mod refusals;
mod requests;
mod subscribing;
