//! Entries of the log about names and attributes: databases without content, directories, owners and permissions.

use super::namespace::{NameEntry, NameList, default_attributes};
use super::{ChangeKind, Store, StoreError};
use crate::db::DbError;
use crate::types::{Attributes, AttributesChange, DbName, LogIndex, MountPath};

impl Store {
    /// Applies an entry of one of these kinds; it is never refused. Others are none of its business.
    pub(super) fn apply_names(
        &self,
        index: LogIndex,
        kind: &ChangeKind,
        timestamp_ms: i64,
    ) -> Result<(), StoreError> {
        match kind {
            ChangeKind::Commit(_) | ChangeKind::Drop(_) | ChangeKind::Rename { .. } => Ok(()),
            ChangeKind::Create { name, attributes } => {
                self.apply_create(index, name, *attributes, timestamp_ms)
            }
            ChangeKind::SetAttributes { path, change } => {
                self.apply_attributes(index, path, *change, timestamp_ms);
                Ok(())
            }
            ChangeKind::MakeDirectory { path, attributes } => {
                let entry = NameEntry { attributes: *attributes, changed_ms: timestamp_ms, index };
                if self.names.set(&MountPath::Directory(path.clone()), entry) {
                    self.path_changed(path);
                }
                Ok(())
            }
            ChangeKind::RemoveDirectory(path) => {
                if self.names.remove_directory(path, index) {
                    self.path_changed(path);
                }
                Ok(())
            }
            ChangeKind::RenameDirectory { from, to, databases } => {
                self.apply_rename_directory(index, (from, to), databases, false)
            }
        }
    }

    fn apply_create(
        &self,
        index: LogIndex,
        name: &DbName,
        attributes: Attributes,
        changed_ms: i64,
    ) -> Result<(), StoreError> {
        if self.get(name).is_none() {
            // What the kernel may look up has its attributes from the first moment on.
            self.names.set(&MountPath::Database(name.clone()), NameEntry { attributes, changed_ms, index });
            if self.ended_behind(name, index) {
                // Its files were moved or removed before a crash; the entry that did it takes the attributes along.
                return Ok(());
            }
            self.get_or_make(name)?;
            self.names.made(name);
            self.path_changed(name);
            return Ok(());
        }
        // The one who proposed it has made it before.
        self.names.made(name);
        let path = MountPath::Database(name.clone());
        if self.names.set(&path, NameEntry { attributes, changed_ms, index }) {
            self.attributes_changed(&path);
        }
        Ok(())
    }

    fn apply_attributes(&self, index: LogIndex, path: &MountPath, change: AttributesChange, changed_ms: i64) {
        let exists = match path {
            MountPath::Root => true,
            MountPath::Directory(path) => self.is_directory(path.as_str()),
            MountPath::Database(name) => self.get(name).is_some() || self.names.has_database(name),
        };
        let otherwise = default_attributes(!matches!(path, MountPath::Database(_)));
        if exists && self.names.change(path, change, otherwise, (index, changed_ms)) {
            self.attributes_changed(path);
        }
    }

    /// Renames a directory; `claimed` where all databases below it are claimed by the caller already.
    pub(super) fn apply_rename_directory(
        &self,
        index: LogIndex,
        (from, to): (&DbName, &DbName),
        databases: &[DbName],
        claimed: bool,
    ) -> Result<(), StoreError> {
        let (mut first_error, mut conflict) = (None, None);
        self.names.precede_directory(from, to, index);
        for old in databases {
            let new = ChangeKind::name_below(from, to, old)
                .map_err(|error| StoreError::Invalid(error.to_string()))?;
            // One database's trouble must not keep the others where they are.
            match self.rename_entry(index, old, &new, claimed) {
                Ok(()) => {}
                Err(error @ StoreError::Db(DbError::Conflict { .. })) => conflict = Some(error),
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        if let Some(conflict) = conflict {
            // All of it is tried again; what is still there stays as private as it is.
            return Err(conflict);
        }
        self.names.rename_directory(from, to, index);
        self.path_changed(from);
        self.path_changed(to);
        first_error.map_or(Ok(()), Err)
    }

    /// Makes names and attributes what another node has, whose databases stand at `index`: those that have no content
    /// there are made here. Blocking.
    ///
    /// # Errors
    /// Where files cannot be made or removed.
    pub fn install_names(&self, list: NameList, index: LogIndex) -> Result<(), StoreError> {
        let before = self.names.list();
        self.names.replace(list, index);
        for (path, _) in self.names.list().names {
            if let MountPath::Database(name) = &path
                && self.get(name).is_none()
            {
                self.get_or_make(name)?;
                self.names.made(name);
                self.path_changed(name);
            }
            self.attributes_changed(&path);
        }
        for (path, _) in before.names {
            match path {
                MountPath::Directory(path) if !self.is_directory(path.as_str()) => self.path_changed(&path),
                MountPath::Database(name) if !self.names.has_database(&name) => {
                    let empty = self.get(&name).is_some_and(|database| database.pos().txid.is_none());
                    if empty {
                        self.forget(&name)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All names whose attributes the log has told.
    pub fn name_list(&self) -> NameList {
        let mut list = self.names.list();
        list.names.retain(|(path, _)| !self.is_missing(path));
        list
    }

    /// Whether the table has a database that is not here: a crash took it, and the log brings it again.
    fn is_missing(&self, path: &MountPath) -> bool {
        matches!(path, MountPath::Database(name) if self.get(name).is_none())
    }

    /// The log was applied again after a start. Databases that an application had made, and whose creation never got into
    /// the log because this node died in between, are removed; one with a WAL left behind by the crash stays, because what
    /// is in it is settled later. What the table has and the log did not bring is no database any more.
    pub(super) fn settle_names(&self) {
        for name in std::mem::take(&mut *self.lock_unlogged()) {
            let Some(database) = self.get(&name) else { continue };
            let unlogged = database.pos().txid.is_none() && !self.names.has_database(&name);
            if unlogged
                && !database.attached()
                && !database.has_tail()
                && let Err(error) = self.forget(&name)
            {
                tracing::warn!(db = %name, %error, "cannot remove a database that is not in the log");
            }
        }
        for (path, _) in self.names.list().names {
            if let MountPath::Database(name) = &path
                && self.is_missing(&path)
            {
                self.names.remove_database(name);
            }
        }
    }

    /// Tells the kernel that there is something else under a name.
    fn path_changed(&self, path: &DbName) {
        if let Some(cache) = self.shared.cache() {
            cache.path_changed(path.as_str());
        }
    }

    /// Tells the kernel that a name has other attributes.
    pub(super) fn attributes_changed(&self, path: &MountPath) {
        if let Some(cache) = self.shared.cache() {
            cache.attributes_changed(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::copies::tests::open;
    use crate::store::{Change, Child, Layout, Origin};
    use crate::types::NodeId;

    /// Ends as a crash does, but for the thread that watches WALs: the kernel has few places for such threads.
    fn crash(store: Arc<Store>) {
        if let Some(watcher) = store.shared.watcher() {
            watcher.stop();
        }
    }

    fn name(text: &str) -> DbName {
        DbName::new(text).unwrap()
    }

    fn apply(store: &Store, index: usize, kind: &ChangeKind) {
        let origin = Origin { node: NodeId::new(2), run: 1, seq: index as u64 };
        let index = LogIndex::new(index as u64);
        store.apply(index, &Change { origin, timestamp_ms: 7, kind: kind.clone() }).unwrap();
        store.applied(index);
    }

    /// A log in which every kind of entry about names concerns one that others concern, too.
    fn log() -> Vec<ChangeKind> {
        let attributes = |mode| Attributes::new(1000, 100, mode);
        let chmod = |mode| AttributesChange { mode: Some(mode), ..AttributesChange::default() };
        let make = |path, mode| ChangeKind::MakeDirectory { path: name(path), attributes: attributes(mode) };
        let create = |path, mode| ChangeKind::Create { name: name(path), attributes: attributes(mode) };
        let set = |path, mode| ChangeKind::SetAttributes { path, change: chmod(mode) };
        vec![
            make("d", 0o700),
            create("d/a", 0o600),
            set(MountPath::Database(name("d/a")), 0o640),
            ChangeKind::Drop(name("d/a")),
            create("d/a", 0o644),
            make("d/sub", 0o755),
            ChangeKind::RenameDirectory { from: name("d"), to: name("e"), databases: vec![name("d/a")] },
            make("d", 0o711),
            create("x", 0o600),
            ChangeKind::Rename { from: name("x"), to: name("d/y") },
            set(MountPath::Directory(name("e")), 0o750),
            make("gone", 0o755),
            ChangeKind::RemoveDirectory(name("gone")),
            set(MountPath::Root, 0o770),
        ]
    }

    fn seen(store: &Store) -> Vec<String> {
        let shown = |path: MountPath| format!("{path} {:o}", store.attributes(&path).attributes.mode);
        let mut all = vec![shown(MountPath::Root)];
        let mut unseen = vec![String::new()];
        while let Some(directory) = unseen.pop() {
            for child in store.children(&directory) {
                match child {
                    Child::Database(db) => all.push(shown(MountPath::Database(db))),
                    Child::Directory(child) => {
                        let path = if directory.is_empty() { child } else { format!("{directory}/{child}") };
                        all.push(shown(MountPath::Directory(name(&path))));
                        unseen.push(path);
                    }
                }
            }
        }
        all.sort();
        all
    }

    const EXPECTED: [&str; 6] = [
        "database d/y 600",
        "database e/a 644",
        "directory d 711",
        "directory e 750",
        "directory e/sub 755",
        "the mount's directory 770",
    ];

    #[test]
    fn a_log_that_is_applied_again_from_anywhere_after_a_crash_gives_the_same_names() {
        let log = log();
        for died in 0..=log.len() {
            for durable in [0, died / 2, died] {
                let dir = tempfile::tempdir().unwrap();
                let store = open(dir.path());
                for (at, kind) in log[..died].iter().enumerate() {
                    apply(&store, at + 1, kind);
                    if at + 1 == durable {
                        store.checkpoint().unwrap();
                    }
                }
                crash(store);
                let store = open(dir.path());
                store.begin_replay();
                assert_eq!(store.durable_index(), LogIndex::new(durable as u64));
                for (at, kind) in log.iter().enumerate().skip(durable) {
                    apply(&store, at + 1, kind);
                }
                store.end_replay();
                assert_eq!(seen(&store), EXPECTED, "crash at {died}, durable up to {durable}");
                crash(store);
            }
        }
    }

    #[test]
    fn a_table_that_reached_the_disk_before_the_logs_mark_did_does_no_harm() {
        let (dir, log) = (tempfile::tempdir().unwrap(), log());
        let store = open(dir.path());
        log.iter().enumerate().for_each(|(at, kind)| apply(&store, at + 1, kind));
        store.names.make_durable(&store.layout().dbs()).unwrap();
        crash(store);
        let store = open(dir.path());
        store.begin_replay();
        log.iter().enumerate().for_each(|(at, kind)| apply(&store, at + 1, kind));
        store.end_replay();
        assert_eq!(seen(&store), EXPECTED);
    }

    #[test]
    fn a_database_whose_creation_never_got_into_the_log_is_gone_after_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        apply(
            &store,
            1,
            &ChangeKind::Create { name: name("kept"), attributes: Attributes::new(0, 0, 0o600) },
        );
        store.checkpoint().unwrap();
        store.get_or_make(&name("lost")).unwrap();
        crash(store);
        let store = open(dir.path());
        store.begin_replay();
        store.end_replay();
        assert_eq!(store.children(""), [Child::Database(name("kept"))]);
        assert!(!store.layout().database(&name("lost")).dir().exists());
    }

    #[test]
    fn names_of_another_node_replace_those_here() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (source, target) = (open(from.path()), open(to.path()));
        log().iter().enumerate().for_each(|(at, kind)| apply(&source, at + 1, kind));
        let stray = Attributes::new(5, 5, 0o777);
        apply(&target, 1, &ChangeKind::Create { name: name("stray"), attributes: stray });
        apply(&target, 2, &ChangeKind::MakeDirectory { path: name("old"), attributes: stray });
        target.install_names(source.name_list(), LogIndex::new(14)).unwrap();
        assert_eq!(seen(&target), EXPECTED);
        crash(target);
        // What is not written yet is fetched again.
        let target = open(to.path());
        target.install_names(source.name_list(), LogIndex::new(14)).unwrap();
        target.checkpoint().unwrap();
        crash(target);
        assert_eq!(seen(&open(to.path())), EXPECTED);
    }

    #[test]
    fn a_data_directory_of_a_version_without_the_table_keeps_its_directories_and_owners() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let dbs = Layout::new(dir.path().to_path_buf()).dbs();
        std::fs::create_dir_all(dbs.join("d/a")).unwrap();
        std::fs::create_dir_all(dbs.join("empty/deep")).unwrap();
        std::fs::write(dbs.join("d/a/database"), "").unwrap();
        let private = std::fs::Permissions::from_mode(0o640);
        std::fs::set_permissions(dbs.join("d/a/database"), private).unwrap();
        let store = open(dir.path());
        store.begin_replay();
        store.end_replay();
        let names: Vec<String> =
            seen(&store).into_iter().filter(|name| !name.starts_with("the mount")).collect();
        assert_eq!(
            names,
            ["database d/a 640", "directory d 755", "directory empty 755", "directory empty/deep 755"]
        );
    }
}
