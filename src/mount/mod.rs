//! The FUSE filesystem applications see: decodes requests, calls `db` and `store`, replies.
//!
//! Owns inode numbers, file handles and what the kernel may cache. Never waits on a FUSE thread for the log, for a
//! database's lock, or for I/O on this mount: what may wait takes the reply along, to a callback or to the
//! `workers`. Kernel-local locks are essential (`FUSE_POSIX_LOCKS` is never requested): the daemon and its
//! applications meet in the same lock table.

mod attr;
mod below_mount;
mod caller;
mod control_files;
mod database;
mod directory;
mod errno;
mod file;
mod filesystem;
mod handle;
mod held;
mod history;
mod inode;
mod journal;
mod lock;
mod mark;
mod mount_table;
mod names;
mod notify;
mod open;
mod processes;
mod record;
mod session;
mod shm;
mod stale;
mod state;
mod super_journal;
mod tree;
mod upload;
mod wal;
mod workers;

pub use held::{EarlierMounts, Held};
pub use mark::MountMark;
pub use processes::GUARD_COMMAND;
pub use record::note_fenced;
pub use session::{Mount, MountError, MountOptions};
pub use stale::{StaleMount, abort_dead_mount, is_used, stale_mount};
