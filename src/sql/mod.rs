//! SQL over HTTP: Hrana, the protocol of libSQL's clients, on any node.
//!
//! `gateway` runs in the daemon: who may ask, which database is meant, how fresh it has to be, and whether the primary
//! has to do it. `engine` is a process of its own that opens databases on the node's mount as any application does, and
//! executes. `hrana` are the documents. The daemon itself never opens a database: a process that closes any descriptor
//! of a file loses its POSIX locks on it, and the daemon opens and closes them all the time. Called by `node`.

pub mod engine;
pub mod gateway;
pub mod hrana;
