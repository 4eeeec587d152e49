//! How a database is open: what the daemon holds of it while applications use it, and whether it is served.

use std::fs::File;

use super::attach::WalAttachment;
use super::database::State;
use super::guarded_file::GuardedFile;
use crate::types::{JournalMode, PageCount};

/// What the daemon holds of a database because applications have it open.
///
/// Handles are counted beside it (`State::handles`): a database whose file is open is still `Cold` until something of
/// it has to be held.
#[derive(Default)]
pub(super) enum Opened {
    /// Nothing: what is applied goes straight into the file in the data directory.
    #[default]
    Cold,
    /// Files of a database that is open in a rollback-journal mode.
    Rollback(OpenRollback),
    /// The daemon takes part as one more connection of a database in WAL mode.
    Wal(Box<WalAttachment>),
    /// The last application to close has moved the WAL into the file and removed `-shm`; it may remove `-wal`.
    LastClosing,
    /// The node has ended while applications had it open: the file lacks what is in the log that is left behind.
    LeftBehind,
}

/// Who uses the write-ahead log.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum WalClients {
    /// Nobody yet.
    #[default]
    None,
    /// Connections that share the wal-index.
    Shared,
    /// One that keeps the wal-index to itself.
    Exclusive {
        /// One of its commits failed: what it takes for the database's content may be another one.
        refused: bool,
    },
}

impl WalClients {
    /// Whether one keeps the wal-index to itself.
    pub fn is_exclusive(self) -> bool {
        matches!(self, Self::Exclusive { .. })
    }
}

/// What is held of a database that is open in a rollback-journal mode.
#[derive(Default)]
pub(super) struct OpenRollback {
    /// The database file through the mount, for SQLite's locks and for applying.
    pub mounted: Option<File>,
    /// Has the kernel's cache of the file emptied when this process is gone: a transaction has written through it.
    pub cached: Option<GuardedFile>,
}

/// How a change that comes from the log gets into the files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WritePath {
    /// Appended to the WAL that applications have open.
    Wal,
    /// Into the file through the mount, under SQLite's EXCLUSIVE lock.
    OpenRollback,
    /// Into the file in the data directory.
    Cold,
}

impl Opened {
    /// The WAL as the daemon takes part in it.
    pub fn wal(&self) -> Option<&WalAttachment> {
        match self {
            Self::Wal(wal) => Some(wal),
            _ => None,
        }
    }

    /// The same to be changed.
    pub fn wal_mut(&mut self) -> Option<&mut WalAttachment> {
        match self {
            Self::Wal(wal) => Some(wal),
            _ => None,
        }
    }

    /// Whether the daemon takes part in a WAL.
    pub fn is_wal(&self) -> bool {
        matches!(self, Self::Wal(_))
    }

    /// Whether the node has ended while applications had it open.
    pub fn is_left_behind(&self) -> bool {
        matches!(self, Self::LeftBehind)
    }

    /// What is held of it in a rollback mode.
    pub fn rollback(&self) -> Option<&OpenRollback> {
        match self {
            Self::Rollback(rollback) => Some(rollback),
            _ => None,
        }
    }

    /// The same to be changed, where the database is not open in another way.
    pub fn rollback_mut(&mut self) -> Option<&mut OpenRollback> {
        if matches!(self, Self::Cold | Self::LastClosing) {
            *self = Self::Rollback(OpenRollback::default());
        }
        match self {
            Self::Rollback(rollback) => Some(rollback),
            _ => None,
        }
    }
}

/// Whether a database is served.
#[derive(Default)]
pub(super) enum Service {
    /// It is.
    #[default]
    Serving,
    /// Not until it is repaired; why.
    Failed(String),
    /// It was dropped or replaced: applications that have it open keep what they have.
    Dropped,
}

impl Service {
    /// Why it is not served.
    pub fn failure(&self) -> Option<&str> {
        match self {
            Self::Serving => None,
            Self::Failed(why) => Some(why),
            Self::Dropped => Some("it was dropped"),
        }
    }

    /// Whether it was dropped or replaced.
    pub fn is_dropped(&self) -> bool {
        matches!(self, Self::Dropped)
    }

    /// Ends serving it; the first reason stays, because later ones follow from it.
    pub fn fail(&mut self, why: String) {
        if matches!(self, Self::Serving) {
            *self = Self::Failed(why);
        }
    }

    /// Serves it again, where it was not dropped.
    pub fn repaired(&mut self) {
        if matches!(self, Self::Failed(_)) {
            *self = Self::Serving;
        }
    }
}

impl State {
    /// Whether applications have it open.
    pub fn is_open(&self) -> bool {
        self.handles > 0 || self.open.is_wal()
    }

    /// Whether applications have it open in a rollback-journal mode.
    pub fn is_open_rollback(&self) -> bool {
        // A database without content that one client has for itself has no readers.
        let being_made = self.pages == PageCount::ZERO && self.wal_clients.is_exclusive();
        self.handles > 0 && !self.open.is_wal() && self.mode != Some(JournalMode::Wal) && !being_made
    }

    /// How a change that comes from the log gets into the files.
    pub fn write_path(&self) -> WritePath {
        match self.open {
            Opened::Wal(_) => WritePath::Wal,
            _ if self.handles > 0 => WritePath::OpenRollback,
            _ => WritePath::Cold,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_not_to_serve_a_database_stays_until_it_is_repaired_and_a_drop_stays_for_good() {
        let mut service = Service::default();
        service.fail("damaged".into());
        service.fail("and so not readable".into());
        assert_eq!(service.failure(), Some("damaged"));
        service.repaired();
        assert_eq!(service.failure(), None);
        service = Service::Dropped;
        service.repaired();
        assert!(service.is_dropped() && service.failure().is_some());
    }

    #[test]
    fn files_of_the_rollback_modes_are_kept_only_while_the_daemon_takes_no_part_in_a_wal() {
        let mut open = Opened::default();
        assert!(open.rollback().is_none() && open.rollback_mut().is_some() && open.rollback().is_some());
        let mut left = Opened::LeftBehind;
        assert!(left.rollback_mut().is_none() && left.is_left_behind());
    }
}
