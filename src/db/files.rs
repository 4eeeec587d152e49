use std::path::{Path, PathBuf};

/// Which of a database's files is meant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FileKind {
    /// The database file itself.
    Database,
    /// The rollback journal.
    Journal,
    /// The write-ahead log.
    Wal,
    /// The wal-index, shared memory of all connections.
    Shm,
}

impl FileKind {
    /// Every kind.
    pub const ALL: [FileKind; 4] = [FileKind::Database, FileKind::Journal, FileKind::Wal, FileKind::Shm];

    /// What SQLite appends to the database's name.
    pub fn suffix(self) -> &'static str {
        match self {
            FileKind::Database => "",
            FileKind::Journal => "-journal",
            FileKind::Wal => "-wal",
            FileKind::Shm => "-shm",
        }
    }
}

/// Where a database's files are in the data directory: `<dir>/database`, `-wal`, `-shm`, `-journal`, `pages`.
#[derive(Clone, Debug)]
pub struct DbFiles {
    dir: PathBuf,
}

impl DbFiles {
    /// The files of the database whose directory is `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The database's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The backing file of one kind.
    pub fn path(&self, kind: FileKind) -> PathBuf {
        self.dir.join(format!("database{}", kind.suffix()))
    }

    /// Per-page checksums and the durable marker.
    pub fn pages(&self) -> PathBuf {
        self.dir.join("pages")
    }
}
