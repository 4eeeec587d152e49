//! Entries of the log about names and attributes: databases without content, directories, owners and permissions.

use super::namespace::{NameEntry, NameList, default_attributes};
use super::{ChangeKind, Store, StoreError};
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
                self.apply_rename_directory(index, from, to, databases)
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
            if self.lock_durable().end_of(name).is_some_and(|end| end > index) {
                return Ok(());
            }
            // What the kernel may look up has its attributes from the first moment on.
            self.names.set(&MountPath::Database(name.clone()), NameEntry { attributes, changed_ms, index });
            self.get_or_make(name)?;
            self.names.made(name);
            self.path_changed(name);
            return Ok(());
        }
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
            MountPath::Database(name) => self.get(name).is_some(),
        };
        let otherwise = default_attributes(!matches!(path, MountPath::Database(_)));
        if exists && self.names.change(path, change, otherwise, (index, changed_ms)) {
            self.attributes_changed(path);
        }
    }

    fn apply_rename_directory(
        &self,
        index: LogIndex,
        from: &DbName,
        to: &DbName,
        databases: &[DbName],
    ) -> Result<(), StoreError> {
        let mut first_error = None;
        for old in databases {
            let new = ChangeKind::name_below(from, to, old)
                .map_err(|error| StoreError::Invalid(error.to_string()))?;
            // One database's trouble must not keep the others where they are.
            if let Err(error) = self.apply_rename(index, old, &new) {
                first_error.get_or_insert(error);
            }
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
        self.names.list()
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
