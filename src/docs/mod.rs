//! What applications may rely on, and the decisions worth arguing: why it is as it is, what was refused, and what was
//! measured or seen.

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("guarantees.md")]
pub mod guarantees {}

#[doc = include_str!("security.md")]
pub mod security {}

#[doc = include_str!("failover.md")]
pub mod failover {}

#[doc = include_str!("rollback_overlay.md")]
pub mod rollback_overlay {}

#[doc = include_str!("drops_and_renames.md")]
pub mod drops_and_renames {}

#[doc = include_str!("foreign_writes.md")]
pub mod foreign_writes {}

#[doc = include_str!("own_mount.md")]
pub mod own_mount {}

#[doc = include_str!("wal_connections.md")]
pub mod wal_connections {}

#[doc = include_str!("names.md")]
pub mod names {}

#[doc = include_str!("checkpoints.md")]
pub mod checkpoints {}

#[doc = include_str!("log_bounds.md")]
pub mod log_bounds {}

#[doc = include_str!("backup.md")]
pub mod backup {}

#[doc = include_str!("releases.md")]
pub mod releases {}

#[doc = include_str!("write_lease.md")]
pub mod write_lease {}

#[doc = include_str!("points_in_time.md")]
pub mod points_in_time {}

#[doc = include_str!("proxy.md")]
pub mod proxy {}

#[doc = include_str!("sql_over_http.md")]
pub mod sql_over_http {}

#[doc = include_str!("metrics.md")]
pub mod metrics {}

#[doc = include_str!("sqlite_suite.md")]
pub mod sqlite_suite {}

#[doc = include_str!("disaster.md")]
pub mod disaster {}

#[doc = include_str!("applications.md")]
pub mod applications {}

#[doc = include_str!("reference.md")]
pub mod reference {}

#[doc = include_str!("operate.md")]
pub mod operate {}

#[doc = include_str!("limits.md")]
pub mod limits {}

#[doc = include_str!("measured.md")]
pub mod measured {}
