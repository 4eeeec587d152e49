//! The only door outside: labelled file calls, durable renames, fault injection.

pub mod blobs;
mod boot;
pub mod durable;
pub mod fault;
pub mod free_space;
pub mod log_rate_limit;
pub mod ofd_lock;
#[cfg(test)]
pub mod power;
pub mod priority;
mod read;
mod shared_deadline;
pub mod space;
pub mod watchdog;

pub use boot::boot_id;
pub use read::{read_or_zero, read_up_to};
pub use shared_deadline::SharedDeadline;
