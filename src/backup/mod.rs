//! Continuous backup to object storage, and restore from there.
//!
//! Owns what is in the bucket: Litestream's layout, the manifest beside it, the lease that says who writes, the uploader
//! that follows the committed log on the primary, and the way back to a file. Never writes to a database: what is
//! restored into a cluster goes in as an import. `object_store` is named in `cloud` only. Called by `node` and `cli`.

mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod location;
mod objects;

mod attributes;
mod layout;
mod lease;
mod manifest;
mod plan;

mod cloud;
mod connect;
mod directory;

mod archive;
mod restore;

mod chain;
mod level0;
mod status;
mod tenure;
mod upkeep;

mod jobs;
mod pass;
mod uploader;
mod verify;

pub use archive::{Archive, ArchiveFile, Point, databases};
pub use attributes::FileAttributes;
pub use connect::connect;
pub use error::BackupError;
pub use layout::{Scheme, database_of, directory_of};
pub use lease::{BucketLease, Holder};
pub use location::Location;
pub use manifest::{Manifest, ManifestFile};
pub use objects::{Answer, Body, Fetched, Listed, Object, Objects, Peeked, Version};
pub use plan::{NoPlan, PlanFile, plan};
pub use restore::{IntegrityCheck, PARALLEL, RestoreOptions, Restored, Summary, check_free, parent, restore};
pub use status::{BackupStatus, DatabaseBackup, StatusBoard};
pub use tenure::BackupOptions;
pub use uploader::Uploader;
pub use verify::Verifier;
