//! The only door outside: labelled file calls, durable renames, fault injection.

pub mod blobs;
pub mod durable;
pub mod fault;
pub mod ofd_lock;
mod read;

pub use read::{read_or_zero, read_up_to};
