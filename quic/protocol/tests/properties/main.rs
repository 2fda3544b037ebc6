//! What must hold for all inputs: round trips, filters, hostile bytes, bounded memory.

mod batches;
mod frames;
mod hostile;
mod make;
