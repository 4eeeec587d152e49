//! Renames of directories that this node proposes: every database below is claimed before, as for its own rename.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::namespace::is_below;
use super::{ChangeKind, NamesDone, Store, StoreError};
use crate::db::{Claim, DbError, Done};
use crate::types::DbName;

/// How long applications may take to close what is in the directory: the kernel tells of a close when close(2) has returned,
/// and keeps the directories locked until the rename is answered.
const PATIENCE: Duration = Duration::from_millis(250);

/// Databases that one rename of a directory may take along; the log holds their names in one entry.
const RENAMED_MAX: usize = 10_000;

/// Bytes that their names may have together.
const RENAMED_BYTES_MAX: usize = 512 << 10;

impl Store {
    /// Renames a directory everywhere, with all that is below it (primary only). Answers when it is done here.
    pub fn rename_directory(self: &Arc<Self>, from: &DbName, to: &DbName, done: NamesDone<()>) {
        let databases = match self.check_rename_directory(from, to) {
            Err(error) => return done(Err(error)),
            Ok(databases) => databases,
        };
        let (from, to) = (from.clone(), to.clone());
        let done: Done = Box::new(move |renamed| done(renamed.map_err(StoreError::from)));
        self.with_claim(from.clone(), done, move |store, done| {
            store.rename_directory_claimed((&from, &to), &databases, done);
        });
    }

    fn rename_directory_claimed(
        self: &Arc<Self>,
        (from, to): (&DbName, &DbName),
        databases: &[DbName],
        done: Done,
    ) {
        let claims = match self.claim_below((from, to), databases) {
            Ok(claims) => claims,
            Err(error) => return done(Err(error)),
        };
        let kind =
            ChangeKind::RenameDirectory { from: from.clone(), to: to.clone(), databases: databases.to_vec() };
        let told = self.commit_claimed(from, kind, done, |index| {
            self.apply_rename_directory(index, (from, to), databases, true)
        });
        // First: who hears of it may write at once.
        drop(claims);
        told.tell();
    }

    /// Claims the databases below a directory, all of them closed.
    fn claim_below(
        &self,
        (from, to): (&DbName, &DbName),
        databases: &[DbName],
    ) -> Result<Vec<Claim>, DbError> {
        let deadline = Instant::now() + PATIENCE;
        let changed = || DbError::Conflict {
            db: from.clone(),
            why: "has other databases in it than a moment ago; try again".into(),
        };
        let claim = |name| self.get(name).ok_or_else(changed)?.claim_closed(deadline);
        let claims = databases.iter().map(claim).collect::<Result<Vec<Claim>, DbError>>()?;
        match self.check_rename_directory(from, to) {
            Ok(now) if now == databases => Ok(claims),
            _ => Err(changed()),
        }
    }

    fn check_rename_directory(&self, from: &DbName, to: &DbName) -> Result<Vec<DbName>, StoreError> {
        if self.get(to).is_some() {
            return Err(StoreError::exists(to));
        }
        if !self.children(to.as_str()).is_empty() {
            return Err(StoreError::not_empty(to));
        }
        let mut names = self.names();
        names.retain(|name| is_below(name.as_str(), from.as_str()));
        let bytes: usize = names.iter().map(|name| name.as_str().len()).sum();
        if names.len() > RENAMED_MAX || bytes > RENAMED_BYTES_MAX {
            return Err(StoreError::Invalid(format!(
                "directory {from}: has {} databases, and at most {RENAMED_MAX} can be renamed at once; rename smaller directories",
                names.len()
            )));
        }
        let directories = self.names.directories_below(from.as_str());
        for name in names.iter().chain(&directories) {
            ChangeKind::name_below(from, to, name).map_err(|error| StoreError::Invalid(error.to_string()))?;
        }
        Ok(names)
    }
}
