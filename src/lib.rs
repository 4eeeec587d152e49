//! Skein: a replicated filesystem for SQLite.
//!
//! The modules stand in the order a transaction meets them; each imports only those above it.

pub mod types;

pub mod io;
pub mod ltx;
pub mod sqlite;

pub mod db;

pub mod store;

pub mod history;

pub mod config;
pub mod security;
pub mod telemetry;

pub mod backup;
pub mod mount;
pub mod raft;
pub mod stream;

pub mod http;
pub mod proxy;
pub mod rpc;
pub mod sql;

pub mod cli;
pub mod node;

pub mod docs;

#[cfg(any(test, fuzzing))]
pub mod fuzz;
