//! What a mount notes for the next start: which of its inodes is which database.
//!
//! A daemon that dies leaves applications with open files of a mount that serves nothing any more. The kernel tells which
//! inodes of it they have, but only the daemon knew which database an inode was. So each mount has a file in the data
//! directory, to which the daemon appends before an application's open is answered. It only has to outlive the process, not
//! the machine: it is never synced.
//!
//! | entry | meaning |
//! |---|---|
//! | `mount 1 CONNECTION PLACE BOOT PATH` | version, number of the FUSE connection, [`MountMark`], mount point |
//! | `db INODE BACKING NAME` | an inode of the mount, the inode of the file in the data directory, the database |
//! | `fenced COUNT` | written by the process that guards the mount: it holds the write locks of all `COUNT` fences |
//!
//! Each entry ends with a zero byte, so that one cut short is known, and paths need no escapes.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use super::mark::MountMark;
use crate::io::fault;
use crate::types::DbName;

/// Version of the file; others are not understood.
const VERSION: &str = "1";

/// Stands for a boot without an id.
const NO_BOOT_ID: &str = "-";

/// The file of the mount that this process serves.
#[derive(Debug)]
pub(super) struct MountRecord {
    path: PathBuf,
    file: File,
    noted: Mutex<HashMap<u64, (u64, DbName)>>,
}

/// What is read of the file of an earlier mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct EarlierMount {
    /// Number of its FUSE connection.
    pub connection: u64,
    /// Tells it from others with that number.
    pub mark: MountMark,
    /// Where it was mounted.
    pub mount_point: PathBuf,
    /// By inode of the mount: the backing file's inode and the database, once for each name it had.
    pub databases: HashMap<u64, BTreeSet<(u64, DbName)>>,
    /// How many databases are fenced, once all are that have to be.
    pub fenced: Option<u64>,
}

impl MountRecord {
    /// Makes the file of a mount that has no application yet, in `dir`.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn create(dir: &Path, mark: &MountMark, connection: u64, mount_point: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = dir.join(mark.place.to_string());
        fault::point("mount_record")?;
        let file = File::options().create(true).truncate(true).write(true).open(&path)?;
        drop(file);
        let file = File::options().append(true).open(&path)?;
        let boot = if mark.boot_id.is_empty() { NO_BOOT_ID } else { &mark.boot_id };
        let record = Self { path, file, noted: Mutex::default() };
        let head = format!("mount {VERSION} {connection} {} {boot} ", mark.place);
        append(&record.file, &[head.as_bytes(), mount_point.as_os_str().as_bytes()].concat())?;
        Ok(record)
    }

    /// Notes that `inode` of the mount is `db`, whose file is `backing` in the data directory. Where that cannot be written
    /// the whole file is removed: the next start then treats every open file of this mount as one of any database.
    pub fn opened(&self, inode: u64, backing: u64, db: &DbName) {
        let mut noted = self.noted();
        if noted.get(&inode).is_some_and(|(known, name)| *known == backing && name == db) {
            return;
        }
        if let Err(error) = append(&self.file, format!("db {inode} {backing} {db}").as_bytes()) {
            tracing::warn!(%db, %error, "cannot note what is open; should this process die, the next one waits for all applications");
            if let Err(error) = fs::remove_file(&self.path) {
                tracing::debug!(%error, "the note is removed already");
            }
        }
        noted.insert(inode, (backing, db.clone()));
    }

    /// The file, for the process that guards the mount.
    ///
    /// # Errors
    /// Where no more files can be opened.
    pub fn share(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    fn noted(&self) -> MutexGuard<'_, HashMap<u64, (u64, DbName)>> {
        self.noted.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Notes in a mount's file that all its `fences` are up: nobody can write a database of it past the daemon's successor.
///
/// # Errors
/// Where it cannot be written.
pub fn note_fenced(record: &File, fences: usize) -> io::Result<()> {
    append(record, format!("fenced {fences}").as_bytes())
}

/// One entry with one call: what is cut short lacks its end.
fn append(mut file: &File, entry: &[u8]) -> io::Result<()> {
    file.write_all(&[entry, b"\0"].concat())
}

impl EarlierMount {
    /// Reads the file of an earlier mount; `None` where it says nothing that can be relied on.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        Ok(Self::parse(&fs::read(path)?))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        // What follows the last zero byte was cut short, with its writer: nobody was told of it.
        let (whole, _cut) = bytes.split_at(bytes.iter().rposition(|byte| *byte == 0)?);
        let mut entries = whole.split(|byte| *byte == 0);
        let mut mount = Self::parse_head(entries.next()?)?;
        for entry in entries {
            let entry = std::str::from_utf8(entry).ok()?;
            match entry.split_once(' ')? {
                ("db", rest) => {
                    let mut fields = rest.splitn(3, ' ');
                    let inode = fields.next()?.parse().ok()?;
                    let backing = fields.next()?.parse().ok()?;
                    let db = DbName::new(fields.next()?).ok()?;
                    mount.databases.entry(inode).or_default().insert((backing, db));
                }
                ("fenced", count) => mount.fenced = Some(count.parse().ok()?),
                _ => return None,
            }
        }
        Some(mount)
    }

    fn parse_head(entry: &[u8]) -> Option<Self> {
        let mut fields = entry.splitn(6, |byte| *byte == b' ');
        let mut text = || std::str::from_utf8(fields.next()?).ok();
        (text()? == "mount" && text()? == VERSION).then_some(())?;
        let (connection, place, boot) = (text()?.parse().ok()?, text()?.parse().ok()?, text()?);
        let boot_id = if boot == NO_BOOT_ID { String::new() } else { boot.to_owned() };
        Some(Self {
            connection,
            mark: MountMark { boot_id, place },
            mount_point: Path::new(OsStr::from_bytes(fields.next()?)).to_owned(),
            databases: HashMap::new(),
            fenced: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DbName {
        DbName::new(text).unwrap()
    }

    #[test]
    fn what_is_noted_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mark, dir) = (MountMark { boot_id: String::new(), place: 9 }, dir.path().join("mounts"));
        let mount_point = Path::new(OsStr::from_bytes(b"/mnt/a \n\xff"));
        let record = MountRecord::create(&dir, &mark, 51, mount_point).unwrap();
        for (inode, backing, db) in
            [(7, 70, "a b.db"), (8, 80, "d/x.db"), (7, 70, "new.db"), (7, 70, "new.db")]
        {
            record.opened(inode, backing, &name(db));
        }
        note_fenced(&record.share().unwrap(), 2).unwrap();
        let read = EarlierMount::read(&dir.join("9")).unwrap().unwrap();
        let expected = EarlierMount {
            connection: 51,
            mark,
            mount_point: mount_point.to_owned(),
            databases: HashMap::from([
                (7, BTreeSet::from([(70, name("a b.db")), (70, name("new.db"))])),
                (8, BTreeSet::from([(80, name("d/x.db"))])),
            ]),
            fenced: Some(2),
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn an_entry_cut_short_counts_for_nothing_and_a_damaged_one_for_the_whole() {
        let head = "mount 1 51 9 b-1 /mnt\0";
        let databases = |text: &str| EarlierMount::parse(text.as_bytes()).map(|mount| mount.databases.len());
        assert_eq!(databases(head), Some(0));
        assert_eq!(databases(&format!("{head}db 7 70 a.db\0db 8 80 b.d")), Some(1));
        for damaged in ["", "mount 1 51", "mount 2 51 9 b-1 /mnt\0", "mount 1 x 9 b-1 /mnt\0"] {
            assert_eq!(databases(damaged), None, "{damaged:?}");
        }
        for damaged in ["db 7 a.db\0", "db 7 70 ../a.db\0", "what 1\0", "\0"] {
            assert_eq!(databases(&format!("{head}{damaged}")), None, "{damaged:?}");
        }
    }
}
