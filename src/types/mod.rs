//! The words of Skein: one value type per file, no I/O.
//!
//! Owns the newtypes every other layer speaks in. Never touches a file, a clock or the network.

mod attributes;
mod checksum;
mod db_name;
mod globs;
mod journal_mode;
mod log_index;
mod node_id;
mod page_size;
mod pgno;
mod point_in_time;
mod pos;
mod role;
mod timestamp;
mod txid;

pub use attributes::{Attributes, AttributesChange, ForcedAttributes, MountPath};
pub use checksum::Checksum;
pub use db_name::{DbName, InvalidDbName};
pub use globs::{Globs, InvalidGlob};
pub use journal_mode::JournalMode;
pub use log_index::LogIndex;
pub use node_id::{InvalidNodeName, NodeId, NodeName};
pub use page_size::{InvalidPageSize, PageSize};
pub use pgno::{PageCount, Pgno};
pub use point_in_time::{InvalidPointInTime, PointInTime};
pub use pos::{InvalidPos, Pos};
pub use role::{Access, InvalidRole, Role};
pub use timestamp::{InvalidTimestamp, Timestamp};
pub use txid::{InvalidTxid, Txid, TxidRange};
