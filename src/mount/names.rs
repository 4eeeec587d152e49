//! What a path of the mount means, by its text alone.

use std::ffi::OsStr;

use fuser::Errno;

use super::errno::{Doing, refuse};
use crate::db::FileKind;
use crate::history::PointId;
use crate::types::DbName;

/// What a path names.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Target {
    /// A subdirectory by its path below the mount; the mount's root is empty.
    Directory(String),
    /// A file of a database.
    File(DbName, FileKind),
    /// `<db>-pos`: the database's position.
    Pos(DbName),
    /// `<db>-lock`: whoever has it open for writing has the database's write lease.
    Lock(DbName),
    /// `.primary`: who is primary.
    Primary,
    /// `.lag`: how far behind this node is.
    Lag,
    /// A directory below `.history` by its path there; `.history` itself is empty.
    History(String),
    /// A database as it was.
    Point(Box<PointId>),
    /// A super-journal (`NAME-mjXXXXXXXXX`) by its path below the mount.
    SuperJournal(String),
    /// A temporary file of SQLite (`etilqs_XXXX`) by its path below the mount: local, and neither listed nor replicated.
    Temporary(String),
}

/// Name of the control file that says who is primary.
pub(super) const PRIMARY: &str = ".primary";

/// Name of the control file that says how far behind this node is.
pub(super) const LAG: &str = ".lag";

/// Name of the directory in the mount's root with what databases were.
pub(super) const HISTORY: &str = ".history";

/// What is appended to a database's name to read its position.
pub(super) const POS_SUFFIX: &str = "-pos";

/// What is appended to a database's name to take its write lease.
pub(super) const LOCK_SUFFIX: &str = "-lock";

impl Target {
    /// The path below the mount.
    pub fn path(&self) -> String {
        match self {
            Target::Directory(path) | Target::SuperJournal(path) | Target::Temporary(path) => path.clone(),
            Target::File(db, kind) => format!("{db}{}", kind.suffix()),
            Target::Pos(db) => format!("{db}{POS_SUFFIX}"),
            Target::Lock(db) => format!("{db}{LOCK_SUFFIX}"),
            Target::Primary => PRIMARY.to_owned(),
            Target::Lag => LAG.to_owned(),
            Target::History(path) => join(HISTORY, path),
            Target::Point(point) => format!("{}/{}@{}", HISTORY, point.db, point.txid),
        }
    }

    /// What this is where a directory it is, or is in, has another path; `None` where it is elsewhere.
    pub fn in_renamed_directory(&self, from: &str, to: &str) -> Option<Target> {
        let renamed = |path: &str| {
            let rest = path.strip_prefix(from).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
            Some(format!("{to}{rest}"))
        };
        let database = |db: &DbName| DbName::new(&renamed(db.as_str())?).ok();
        match self {
            Target::Directory(path) => renamed(path).map(Target::Directory),
            Target::SuperJournal(path) => renamed(path).map(Target::SuperJournal),
            Target::Temporary(path) => renamed(path).map(Target::Temporary),
            Target::File(db, kind) => database(db).map(|db| Target::File(db, *kind)),
            Target::Pos(db) => database(db).map(Target::Pos),
            Target::Lock(db) => database(db).map(Target::Lock),
            Target::Primary | Target::Lag | Target::History(_) | Target::Point(_) => None,
        }
    }

    /// The path below `.history`, where it is a directory there.
    pub fn past_directory(&self) -> &str {
        match self {
            Target::History(path) => path,
            _ => "",
        }
    }

    /// The database, where the path belongs to one.
    pub fn db(&self) -> Option<&DbName> {
        match self {
            Target::File(db, _) | Target::Pos(db) | Target::Lock(db) => Some(db),
            _ => None,
        }
    }
}

/// The path of `name` in the directory `parent`.
pub(super) fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

/// What a path would be if it were a file; whether it exists, or is a directory, is for the tree to say.
///
/// # Errors
/// The reason why nothing can have that name.
pub(super) fn classify(path: &str) -> Result<Target, String> {
    if path == PRIMARY {
        return Ok(Target::Primary);
    }
    if path == LAG {
        return Ok(Target::Lag);
    }
    if is_super_journal(path) {
        return Ok(Target::SuperJournal(path.to_owned()));
    }
    if is_temporary(path) {
        return Ok(Target::Temporary(path.to_owned()));
    }
    let of = |suffix: &str| {
        path.strip_suffix(suffix).map(|name| DbName::new(name).map_err(|error| error.to_string()))
    };
    for kind in [FileKind::Wal, FileKind::Shm, FileKind::Journal] {
        if let Some(db) = of(kind.suffix()) {
            return Ok(Target::File(db?, kind));
        }
    }
    if let Some(db) = of(POS_SUFFIX) {
        return Ok(Target::Pos(db?));
    }
    if let Some(db) = of(LOCK_SUFFIX) {
        return Ok(Target::Lock(db?));
    }
    let db = DbName::new(path).map_err(|error| error.to_string())?;
    Ok(Target::File(db, FileKind::Database))
}

/// Whether SQLite would give this name to a super-journal: `-mj`, six hex digits, `9`, two hex digits at the end.
///
/// Source: `vdbeCommit` in SQLite's vdbeaux.c, `"-mj%06X9%02X"`.
pub(super) fn is_super_journal(path: &str) -> bool {
    let Some((name, digits)) = path.rsplit_once("-mj") else { return false };
    let upper_hex = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    digits.len() == 9
        && digits.bytes().all(upper_hex)
        && digits.as_bytes()[6] == b'9'
        && DbName::new(name).is_ok()
}

/// Whether SQLite would give this name to a temporary file, which it unlinks as soon as it is open: `etilqs_` and letters
/// or digits.
///
/// Source: `unixGetTempname` in SQLite's os_unix.c.
fn is_temporary(path: &str) -> bool {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let random = name.strip_prefix("etilqs_").unwrap_or_default();
    let letters = !random.is_empty() && random.bytes().all(|byte| byte.is_ascii_alphanumeric());
    letters && (directory.is_empty() || DbName::new(directory).is_ok())
}

/// The name of a new file or directory as text.
///
/// # Errors
/// EILSEQ where it is not UTF-8: names of databases are text on all nodes and in all interfaces.
pub(super) fn text(name: &OsStr) -> Result<&str, Errno> {
    let not_text = "names of databases and directories must be UTF-8";
    let illegal = Errno::from_i32(nix::libc::EILSEQ);
    name.to_str().ok_or_else(|| refuse(&name.to_string_lossy(), Doing::Create, illegal, not_text))
}

/// Refuses the names that no directory can have here.
///
/// # Errors
/// EPERM for those that start with a dot: what tools keep beside a database in them is no database.
pub(super) fn check_new_directory(name: &OsStr) -> Result<(), Errno> {
    if !text(name)?.starts_with('.') {
        return Ok(());
    }
    let why = "only databases live here; have the tool keep its files elsewhere (for Litestream: meta-path)";
    Err(refuse(&name.to_string_lossy(), Doing::Create, Errno::EPERM, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(db: &str, kind: FileKind) -> Target {
        Target::File(DbName::new(db).unwrap(), kind)
    }

    #[test]
    fn side_files_belong_to_the_database_before_their_suffix() {
        assert_eq!(classify("a/app.db"), Ok(file("a/app.db", FileKind::Database)));
        assert_eq!(classify("a/app.db-wal"), Ok(file("a/app.db", FileKind::Wal)));
        assert_eq!(classify("app-shm"), Ok(file("app", FileKind::Shm)));
        assert_eq!(classify("app-journal"), Ok(file("app", FileKind::Journal)));
        assert_eq!(classify("app-pos"), Ok(Target::Pos(DbName::new("app").unwrap())));
        assert_eq!(classify(".primary"), Ok(Target::Primary));
    }

    #[test]
    fn names_that_no_database_can_have_are_refused_with_a_reason() {
        for path in ["-wal", "a/-journal", ".hidden/a", "a/.primary", "a/.lag", "x-wal-wal", "a//b"] {
            assert!(classify(path).is_err_and(|why| why.contains("database name")), "{path}");
        }
    }

    #[test]
    fn only_the_names_sqlite_gives_are_super_journals() {
        assert_eq!(classify("d/app.db-mj00ABCD9F0"), Ok(Target::SuperJournal("d/app.db-mj00ABCD9F0".into())));
        for path in ["app.db-mj00ABCD8F0", "app.db-mj00abcd9f0", "app.db-mj00ABCD9F", "-mj00ABCD9F0"] {
            assert!(!is_super_journal(path), "{path}");
        }
    }

    #[test]
    fn temporary_files_of_sqlite_are_no_databases() {
        assert_eq!(classify("d/etilqs_a1B2"), Ok(Target::Temporary("d/etilqs_a1B2".into())));
        for path in ["etilqs_", "etilqs_a.db", "xetilqs_a"] {
            assert_eq!(classify(path), Ok(file(path, FileKind::Database)), "{path}");
        }
        assert!(classify("../etilqs_a").is_err());
    }

    #[test]
    fn a_name_that_is_no_text_is_refused_as_such() {
        use std::os::unix::ffi::OsStrExt;
        assert_eq!(text(OsStr::from_bytes(b"a\xff.db")).unwrap_err().code(), nix::libc::EILSEQ);
        assert!(check_new_directory(OsStr::new("tenants")).is_ok());
        assert_eq!(check_new_directory(OsStr::new(".app.db-litestream")), Err(Errno::EPERM));
    }

    #[test]
    fn paths_round_trip() {
        for path in
            ["a/app.db", "app-wal", "x/y-journal", "app-pos", "app-lock", ".primary", ".lag", "a-mj0123459FF"]
        {
            assert_eq!(classify(path).unwrap().path(), path);
        }
    }
}
