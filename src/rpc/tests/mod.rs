//! Both ends of the stream over loopback, with databases in memory.

mod copies;
mod fake_store;
mod follow;
mod hostile;
mod nodes;
