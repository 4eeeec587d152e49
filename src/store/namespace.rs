//! Owners, groups and permissions of what the mount shows, and the directories that are there without a database.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Layout, StoreError};
use crate::io::durable;
use crate::types::{Attributes, AttributesChange, DbName, LogIndex, MountPath};

/// One name with its attributes, as the log has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NameEntry {
    /// Whose it is.
    pub attributes: Attributes,
    /// When they last changed, milliseconds since 1970 by the proposer's clock; 0 where unknown.
    pub changed_ms: i64,
    /// The log entry that changed them last; older entries that are applied again change nothing.
    pub index: LogIndex,
}

/// All names that the log has told attributes of: what a node that lacks the log's beginning is sent.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NameList {
    /// Each name once.
    pub names: Vec<(MountPath, NameEntry)>,
}

/// Attributes of a database or directory that the log has told none of: made by a version that did not replicate them,
/// or by an import over HTTP.
pub(super) fn default_attributes(directory: bool) -> Attributes {
    let mode = if directory { 0o755 } else { 0o644 };
    Attributes::new(nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw(), mode)
}

/// The attributes of the mount's directory as a data directory has them; where there is none, or no node ever ran in it,
/// those it begins with.
///
/// # Errors
/// Where the table of names cannot be read.
pub fn recorded_root(layout: Option<&Layout>) -> Result<Attributes, StoreError> {
    let names = layout.map(|layout| Namespace::open(&layout.names())).transpose()?.flatten();
    let root = names.and_then(|names| names.get(&MountPath::Root));
    Ok(root.map_or_else(|| default_attributes(true), |entry| entry.attributes))
}

/// The table of names. It is changed in memory as entries are applied, and written as a whole before the log's entries
/// count as durable here, so applying one never waits for a disk.
///
/// File `names`, text: the line `skein-names 1`, then a line `KIND UID GID MODE CHANGED INDEX PATH` for each name. KIND is
/// `r` (the mount's directory; its path is `/`), `d` (directory) or `f` (database); MODE is octal; CHANGED is in
/// milliseconds since 1970.
#[derive(Debug)]
pub(super) struct Namespace {
    path: PathBuf,
    tables: RwLock<Tables>,
}

#[derive(Default, Debug)]
struct Tables {
    root: Option<NameEntry>,
    directories: BTreeMap<DbName, NameEntry>,
    databases: BTreeMap<DbName, NameEntry>,
    /// The file lacks something.
    dirty: bool,
    /// Databases made without content whose directories may not be on disk yet.
    unsynced: BTreeSet<DbName>,
}

const MAGIC: &str = "skein-names 1";

impl Namespace {
    /// Reads the file; `None` where there is none, in a data directory that is new or of a version without it.
    pub fn open(path: &Path) -> Result<Option<Self>, StoreError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(StoreError::Io { what: format!("reading {}", path.display()), source });
            }
        };
        let names = parse(&text).ok_or_else(|| {
            let path = path.display();
            StoreError::Fatal(format!(
                "{path} is damaged or of a newer version; restore it, or empty the data directory and join again"
            ))
        })?;
        let namespace = Self::empty(path.to_path_buf());
        namespace.fill(names);
        namespace.write().dirty = false;
        Ok(Some(namespace))
    }

    /// A table without names.
    pub fn empty(path: PathBuf) -> Self {
        Self { path, tables: RwLock::default() }
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What the table says of a name.
    pub fn get(&self, path: &MountPath) -> Option<NameEntry> {
        let tables = self.read();
        match path {
            MountPath::Root => tables.root,
            MountPath::Directory(path) => tables.directories.get(path).copied(),
            MountPath::Database(name) => tables.databases.get(name).copied(),
        }
    }

    /// Whether a database of that name is in the log, with content or without.
    pub fn has_database(&self, name: &DbName) -> bool {
        self.read().databases.contains_key(name)
    }

    /// Sets a name's entry, unless what is there is newer. Whether it was changed.
    pub fn set(&self, path: &MountPath, entry: NameEntry) -> bool {
        self.write().set(path, entry)
    }

    /// Changes the attributes of a name; of one that the table lacks those of `otherwise`.
    pub fn change(
        &self,
        path: &MountPath,
        change: AttributesChange,
        otherwise: Attributes,
        (index, changed_ms): (LogIndex, i64),
    ) -> bool {
        let before = self.get(path).map_or(otherwise, |entry| entry.attributes);
        self.set(path, NameEntry { attributes: before.changed(change), changed_ms, index })
    }

    /// Removes a directory that is older than entry `index`. Whether it was there.
    pub fn remove_directory(&self, path: &DbName, index: LogIndex) -> bool {
        let mut tables = self.write();
        let older = tables.directories.get(path).is_some_and(|entry| entry.index < index);
        if older {
            tables.directories.remove(path);
            tables.dirty = true;
        }
        older
    }

    /// A database ended to exist.
    pub fn remove_database(&self, name: &DbName) {
        let mut tables = self.write();
        tables.unsynced.remove(name);
        if tables.databases.remove(name).is_some() {
            tables.dirty = true;
        }
    }

    /// Gives what is about to get the name `to` the attributes of `from`, a database that is older than entry `index`: it
    /// has them from the first moment on that it can be looked up.
    pub fn precede_database(&self, from: &DbName, to: &DbName, index: LogIndex) {
        let mut tables = self.write();
        let entry = tables.databases.get(from).filter(|entry| entry.index < index).copied();
        if let Some(entry) = entry {
            tables.set(&MountPath::Database(to.clone()), NameEntry { index, ..entry });
        }
    }

    /// The same for directories at `from` and below it.
    pub fn precede_directory(&self, from: &DbName, to: &DbName, index: LogIndex) {
        let mut tables = self.write();
        for (_, renamed, entry) in tables.directories_renamed(from, to, index) {
            tables.set(&MountPath::Directory(renamed), NameEntry { index, ..entry });
        }
    }

    /// A database that is older than entry `index` has another name, replacing what had it.
    pub fn rename_database(&self, from: &DbName, to: &DbName, index: LogIndex) {
        let mut tables = self.write();
        if tables.databases.get(from).is_none_or(|entry| entry.index >= index) {
            return;
        }
        if tables.unsynced.remove(from) {
            tables.unsynced.insert(to.clone());
        }
        let entry = tables.databases.remove(from).map(|entry| NameEntry { index, ..entry });
        if let Some(entry) = entry {
            tables.set(&MountPath::Database(to.clone()), entry);
        }
        tables.dirty = true;
    }

    /// Directories older than entry `index` at `from` and below it have another path.
    pub fn rename_directory(&self, from: &DbName, to: &DbName, index: LogIndex) {
        let mut tables = self.write();
        for (path, renamed, entry) in tables.directories_renamed(from, to, index) {
            tables.directories.remove(&path);
            tables.set(&MountPath::Directory(renamed), NameEntry { index, ..entry });
            tables.dirty = true;
        }
    }

    /// The directories below `directory` (all where it is empty), by their paths.
    pub fn directories_below(&self, directory: &str) -> Vec<DbName> {
        let below = |path: &DbName| directory.is_empty() || is_below(path.as_str(), directory);
        self.read().directories.keys().filter(|path| below(path)).cloned().collect()
    }

    /// Notes that a database without content was made: its directory has to reach the disk before the log forgets it.
    pub fn made(&self, name: &DbName) {
        self.write().unsynced.insert(name.clone());
    }

    /// Makes the table durable, and the directories of databases that were made.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn make_durable(&self, dbs: &Path) -> Result<(), StoreError> {
        let failed =
            |path: &Path, source| StoreError::Io { what: format!("writing {}", path.display()), source };
        let unsynced = std::mem::take(&mut self.write().unsynced);
        for name in &unsynced {
            let mut dir = dbs.join(name.as_str());
            while dir.starts_with(dbs) {
                match durable::sync_dir(&dir) {
                    // It was dropped meanwhile, or is a new one in the place of it.
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        self.write().unsynced.extend(unsynced.iter().cloned());
                        return Err(failed(&dir, error));
                    }
                    _ => {}
                }
                if !dir.pop() {
                    break;
                }
            }
        }
        let text = {
            let mut tables = self.write();
            if !std::mem::take(&mut tables.dirty) {
                return Ok(());
            }
            tables.text()
        };
        durable::write_atomic(&self.path, text.as_bytes()).map_err(|source| {
            self.write().dirty = true;
            failed(&self.path, source)
        })
    }

    /// Everything in the table.
    pub fn list(&self) -> NameList {
        NameList { names: self.read().all().map(|(path, entry)| (path, *entry)).collect() }
    }

    /// Adds names; newer ones stay.
    pub fn fill(&self, list: NameList) {
        let mut tables = self.write();
        for (path, entry) in list.names {
            tables.set(&path, entry);
        }
        tables.dirty = true;
    }

    /// Makes the table what another node has, whose databases stand at `index` at least.
    pub fn replace(&self, list: NameList, index: LogIndex) {
        let mut tables = self.write();
        let newer = |entry: &NameEntry| entry.index > index;
        let kept = std::mem::take(&mut *tables);
        tables.root = kept.root.filter(newer);
        tables.directories = kept.directories.into_iter().filter(|(_, entry)| newer(entry)).collect();
        tables.databases = kept.databases.into_iter().filter(|(_, entry)| newer(entry)).collect();
        tables.unsynced = kept.unsynced;
        for (path, entry) in list.names {
            tables.set(&path, entry);
        }
        tables.dirty = true;
    }
}

impl Tables {
    /// The directories at `from` and below it that are older than entry `index`: path, new path, entry.
    fn directories_renamed(
        &self,
        from: &DbName,
        to: &DbName,
        index: LogIndex,
    ) -> Vec<(DbName, DbName, NameEntry)> {
        let older =
            self.directories.iter().filter(|(path, entry)| is_at_or_below(path, from) && entry.index < index);
        older
            .filter_map(|(path, entry)| {
                // A name that is too long was refused before the entry was proposed.
                let renamed = DbName::new(&format!("{to}{}", &path.as_str()[from.as_str().len()..])).ok()?;
                Some((path.clone(), renamed, *entry))
            })
            .collect()
    }

    fn set(&mut self, path: &MountPath, entry: NameEntry) -> bool {
        let known = match path {
            MountPath::Root => self.root,
            MountPath::Directory(path) => self.directories.get(path).copied(),
            MountPath::Database(name) => self.databases.get(name).copied(),
        };
        if known.is_some_and(|known| known.index > entry.index) {
            return false;
        }
        match path {
            MountPath::Root => self.root = Some(entry),
            MountPath::Directory(path) => drop(self.directories.insert(path.clone(), entry)),
            MountPath::Database(name) => drop(self.databases.insert(name.clone(), entry)),
        }
        self.dirty = true;
        true
    }

    fn all(&self) -> impl Iterator<Item = (MountPath, &NameEntry)> {
        let root = self.root.iter().map(|entry| (MountPath::Root, entry));
        let directories =
            self.directories.iter().map(|(path, entry)| (MountPath::Directory(path.clone()), entry));
        let databases = self.databases.iter().map(|(name, entry)| (MountPath::Database(name.clone()), entry));
        root.chain(directories).chain(databases)
    }

    fn text(&self) -> String {
        let mut text = format!("{MAGIC}\n");
        for (path, entry) in self.all() {
            let (kind, path) = match &path {
                MountPath::Root => ('r', "/"),
                MountPath::Directory(path) => ('d', path.as_str()),
                MountPath::Database(name) => ('f', name.as_str()),
            };
            let NameEntry { attributes: Attributes { uid, gid, mode }, changed_ms, index } = entry;
            text.push_str(&format!("{kind} {uid} {gid} {mode:o} {changed_ms} {index} {path}\n"));
        }
        text
    }
}

fn parse(text: &str) -> Option<NameList> {
    let mut lines = text.lines();
    (lines.next()? == MAGIC).then_some(())?;
    let names = lines.map(parse_line).collect::<Option<Vec<_>>>()?;
    Some(NameList { names })
}

fn parse_line(line: &str) -> Option<(MountPath, NameEntry)> {
    let mut fields = line.splitn(7, ' ');
    let kind = fields.next()?;
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let attributes = Attributes::new(uid, gid, u32::from_str_radix(fields.next()?, 8).ok()?);
    let changed_ms = fields.next()?.parse().ok()?;
    let index = LogIndex::new(fields.next()?.parse().ok()?);
    let path = fields.next()?;
    let path = match kind {
        "r" if path == "/" => MountPath::Root,
        "d" => MountPath::Directory(DbName::new(path).ok()?),
        "f" => MountPath::Database(DbName::new(path).ok()?),
        _ => return None,
    };
    Some((path, NameEntry { attributes, changed_ms, index }))
}

/// Whether a path lies below a directory.
pub(super) fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

fn is_at_or_below(path: &DbName, directory: &DbName) -> bool {
    path == directory || is_below(path.as_str(), directory.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DbName {
        DbName::new(text).unwrap()
    }

    fn entry(mode: u32, index: u64) -> NameEntry {
        NameEntry { attributes: Attributes::new(1000, 100, mode), changed_ms: 5, index: LogIndex::new(index) }
    }

    fn table() -> (tempfile::TempDir, Namespace) {
        let dir = tempfile::tempdir().unwrap();
        let table = Namespace::empty(dir.path().join("names"));
        table.set(&MountPath::Root, entry(0o750, 1));
        table.set(&MountPath::Directory(name("a b")), entry(0o2770, 2));
        table.set(&MountPath::Directory(name("a b/c")), entry(0o700, 3));
        table.set(&MountPath::Database(name("a b/x.db")), entry(0o600, 4));
        (dir, table)
    }

    #[test]
    fn the_file_gives_back_what_was_written() {
        let (dir, table) = table();
        table.make_durable(dir.path()).unwrap();
        let again = Namespace::open(&dir.path().join("names")).unwrap().unwrap();
        assert_eq!(again.list(), table.list());
        assert_eq!(again.list().names.len(), 4);
        assert!(Namespace::open(&dir.path().join("nothing")).unwrap().is_none());
        for text in
            ["", "skein-names 2\n", "skein-names 1\nx 1 2 644 0 1 a\n", "skein-names 1\nf 1 2 999 0 1 a\n"]
        {
            std::fs::write(dir.path().join("names"), text).unwrap();
            assert!(Namespace::open(&dir.path().join("names")).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_entry_that_is_applied_again_changes_nothing_that_is_newer() {
        let (_dir, table) = table();
        let path = MountPath::Database(name("a b/x.db"));
        let chmod = AttributesChange { mode: Some(0o644), ..AttributesChange::default() };
        let at = |index| (LogIndex::new(index), 9);
        assert!(table.change(&path, chmod, entry(0, 0).attributes, at(6)));
        assert!(!table.set(&path, entry(0o600, 4)));
        assert_eq!(table.get(&path).unwrap().attributes, Attributes::new(1000, 100, 0o644));
        assert!(!table.remove_directory(&name("a b/c"), LogIndex::new(3)));
        assert!(table.remove_directory(&name("a b/c"), LogIndex::new(7)));
    }

    #[test]
    fn a_directory_takes_along_the_directories_below_it_but_none_made_later() {
        let (_dir, table) = table();
        table.set(&MountPath::Directory(name("a b/later")), entry(0o700, 9));
        table.rename_directory(&name("a b"), &name("z"), LogIndex::new(8));
        assert_eq!(table.directories_below(""), [name("a b/later"), name("z"), name("z/c")]);
        assert_eq!(table.directories_below("z"), [name("z/c")]);
        assert_eq!(table.get(&MountPath::Directory(name("z"))).unwrap().attributes.mode, 0o2770);
    }

    #[test]
    fn what_another_node_has_replaces_all_but_what_is_newer_here() {
        let (_dir, table) = table();
        let list = NameList { names: vec![(MountPath::Directory(name("d")), entry(0o700, 2))] };
        table.replace(list, LogIndex::new(3));
        let names: Vec<String> = table.list().names.iter().map(|(path, _)| path.to_string()).collect();
        assert_eq!(names, ["directory d", "database a b/x.db"]);
    }
}
