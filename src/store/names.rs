//! What applications do to names and attributes: databases without content, directories, owners and permissions.

use std::ops::Bound;
use std::sync::Arc;

use super::namespace::{NameEntry, default_attributes, is_below};
use super::{ChangeKind, Store, StoreError};
use crate::db::{CommitError, Database};
use crate::types::{Access, Attributes, AttributesChange, DbName, LogIndex, MountPath};

/// Hears how a change of names ended, on the log's thread: what follows must not wait there.
pub type NamesDone<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

/// Something in a directory of the mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Child {
    /// A directory, by its last component.
    Directory(String),
    /// A database.
    Database(DbName),
}

impl Store {
    /// Attributes of a name, whether the log has told any or not.
    pub fn attributes(&self, path: &MountPath) -> NameEntry {
        self.names.get(path).unwrap_or_else(|| NameEntry {
            attributes: default_attributes(!matches!(path, MountPath::Database(_))),
            changed_ms: 0,
            index: LogIndex::ZERO,
        })
    }

    /// Whether there is such a directory: the mount's own (the empty path), one that was made, or one with a database
    /// somewhere below it.
    pub fn is_directory(&self, path: &str) -> bool {
        if path.is_empty() {
            return true;
        }
        let made = DbName::new(path).is_ok_and(|path| self.names.get(&MountPath::Directory(path)).is_some());
        made || self
            .first_database_from(&format!("{path}/"))
            .is_some_and(|name| is_below(name.as_str(), path))
    }

    /// The first database whose name is `text` or behind it. Names that no database can have are allowed.
    fn first_database_from(&self, text: &str) -> Option<DbName> {
        let databases = self.databases.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let from: (Bound<&str>, Bound<&str>) = (Bound::Included(text), Bound::Unbounded);
        databases.range::<str, _>(from).next().map(|(name, _)| name.clone())
    }

    /// What is directly in a directory, by name.
    pub fn children(&self, directory: &str) -> Vec<Child> {
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let mut directories = std::collections::BTreeSet::new();
        let mut children = Vec::new();
        let mut next = prefix.clone();
        while let Some(name) = self.first_database_from(&next) {
            let Some(rest) = name.as_str().strip_prefix(&prefix) else { break };
            match rest.split_once('/') {
                // The rest of that directory is skipped: '0' is the character behind '/'.
                Some((child, _)) => {
                    next = format!("{prefix}{child}0");
                    directories.insert(child.to_owned());
                }
                None => {
                    next = format!("{name}\0");
                    children.push(Child::Database(name));
                }
            }
        }
        for path in self.names.directories_below(directory) {
            let rest = &path.as_str()[prefix.len()..];
            directories.insert(rest.split('/').next().unwrap_or(rest).to_owned());
        }
        children.extend(directories.into_iter().map(Child::Directory));
        children
    }

    /// Makes a database without content, everywhere. Blocking until it is proposed; answers when it is in the log.
    pub fn create_database(
        self: &Arc<Self>,
        name: &DbName,
        attributes: Attributes,
        done: NamesDone<Arc<Database>>,
    ) {
        if self.names.get(&MountPath::Directory(name.clone())).is_some() {
            return done(Err(StoreError::Invalid(format!("database {name}: a directory has that name"))));
        }
        // One that a crash left behind without an entry of the log gets one now.
        let existed = self.names.has_database(name)
            || self.get(name).is_some_and(|database| database.pos().txid.is_some());
        let database = match self.create(name) {
            Ok(database) if existed => return done(Ok(database)),
            Ok(database) => database,
            Err(error) => return done(Err(error)),
        };
        let kind = ChangeKind::Create { name: name.clone(), attributes };
        self.propose_names(&name.to_string(), kind, Box::new(move |made| done(made.map(|()| database))));
    }

    /// Takes back what a [`create_database`](Self::create_database) made that did not get into the log. Blocking.
    pub fn abandon_creation(&self, name: &DbName) {
        let unknown = self.get(name).is_some_and(|database| {
            database.pos().txid.is_none() && !database.in_use() && !self.names.has_database(name)
        });
        if unknown && let Err(error) = self.forget(name) {
            tracing::warn!(db = %name, %error, "cannot remove a database that did not get into the log");
        }
    }

    /// Gives a name another owner, group or mode, everywhere. Answers when that is in the log.
    pub fn set_attributes(self: &Arc<Self>, path: &MountPath, change: AttributesChange, done: NamesDone<()>) {
        let before = self.names.get(path);
        if before.is_some_and(|entry| entry.attributes.changed(change) == entry.attributes) {
            return done(Ok(()));
        }
        let kind = ChangeKind::SetAttributes { path: path.clone(), change };
        self.propose_names(&path.to_string(), kind, done);
    }

    /// Makes a directory everywhere. Answers when it is in the log.
    pub fn make_directory(self: &Arc<Self>, path: &DbName, attributes: Attributes, done: NamesDone<()>) {
        if self.get(path).is_some() || self.is_directory(path.as_str()) {
            return done(Err(StoreError::exists(path)));
        }
        let kind = ChangeKind::MakeDirectory { path: path.clone(), attributes };
        self.propose_names(&format!("directory {path}"), kind, done);
    }

    /// Removes an empty directory everywhere. Answers when that is in the log.
    pub fn remove_directory(self: &Arc<Self>, path: &DbName, done: NamesDone<()>) {
        if !self.children(path.as_str()).is_empty() {
            return done(Err(StoreError::not_empty(path)));
        }
        let kind = ChangeKind::RemoveDirectory(path.clone());
        self.propose_names(&format!("directory {path}"), kind, done);
    }

    fn propose_names(self: &Arc<Self>, subject: &str, kind: ChangeKind, done: NamesDone<()>) {
        if self.access() != Access::Write {
            return done(Err(StoreError::NotPrimary(subject.to_owned())));
        }
        let (store, subject, change) = (self.clone(), subject.to_owned(), kind.clone());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let timestamp_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        self.sink.propose(
            kind,
            Box::new(move |fate| {
                done(match fate {
                    Ok(index) => store.apply_kind(index, &change, timestamp_ms),
                    Err(CommitError::Refused(why)) => Err(StoreError::Refused { subject, why }),
                    Err(CommitError::Unknown(why)) => Err(StoreError::Unknown { subject, why }),
                });
            }),
        );
    }
}
