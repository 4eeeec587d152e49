//! `--restore-from`: a cluster that is founded with the databases of a backup.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::start_mode::StartMode;
use super::{NodeError, blocking};
use crate::backup::{
    Archive, IntegrityCheck, Location, Objects, PARALLEL, Point, RestoreOptions, connect, databases,
    directory_of, restore,
};
use crate::config::Settings;
use crate::io::durable;
use crate::store::{Layout, Store, StoreError};
use crate::types::DbName;

/// What is to be restored before the node is ready.
pub(super) struct RestoreFrom {
    location: Location,
    objects: Arc<dyn Objects>,
    /// There from the founding until all databases are.
    marker: PathBuf,
}

/// File in the data directory that says that not all databases are restored yet.
const MARKER: &str = "restoring";
/// Bytes of a restored file read at a time.
const CHUNK_BYTES: usize = 1 << 20;

impl RestoreFrom {
    /// What a start has to restore: everything where it founds a cluster, the rest where an earlier start did not finish.
    ///
    /// # Errors
    /// Where the URL is not usable, or an earlier start did not finish and none is given.
    pub(super) fn of(
        settings: &Settings,
        layout: &Layout,
        mode: StartMode,
    ) -> Result<Option<Self>, NodeError> {
        let marker = layout.root().join(MARKER);
        let unfinished = marker.exists();
        let Some(url) = &settings.restore_from else {
            if unfinished {
                return Err(NodeError::Backup(format!(
                    "{} says that the databases of this cluster are not all restored yet: give --restore-from once more",
                    marker.display()
                )));
            }
            return Ok(None);
        };
        match mode {
            StartMode::Found => {}
            _ if unfinished => {}
            StartMode::Resume => return Ok(None),
            StartMode::Meet | StartMode::Join | StartMode::Follow => {
                return Err(NodeError::Backup(
                    "--restore-from founds a cluster with the databases of a backup: give --bootstrap, too"
                        .into(),
                ));
            }
        }
        let location: Location =
            url.parse().map_err(|error| NodeError::Backup(format!("--restore-from: {error}")))?;
        let objects = connect(&location).map_err(failed)?;
        durable::write_atomic(&marker, b"")
            .map_err(|error| NodeError::System(format!("writing {}: {error}", marker.display())))?;
        Ok(Some(Self { location, objects, marker }))
    }

    /// Restores every database that is not there yet, the newest point of each, and leaves out those that were dropped.
    ///
    /// # Errors
    /// Where the backup has none, or one cannot be restored; the next start goes on.
    pub(super) async fn run(self, store: &Arc<Store>) -> Result<(), NodeError> {
        let all = databases(&*self.objects).await.map_err(failed)?;
        if all.is_empty() {
            return Err(NodeError::Backup(format!(
                "--restore-from: there is no backup at {}",
                self.location
            )));
        }
        tracing::info!(from = %self.location, databases = all.len(), "restoring before this node is ready");
        for db in all {
            if store.get(&db).is_some_and(|database| database.pos().txid.is_some()) {
                continue;
            }
            self.restore_one(store, &db).await?;
        }
        let marker = self.marker;
        let removed = blocking(move || {
            std::fs::remove_file(&marker)?;
            durable::sync_dir(marker.parent().unwrap_or(Path::new("/")))
        });
        removed.await?.map_err(|error| NodeError::System(format!("ending the restore: {error}")))
    }

    async fn restore_one(&self, store: &Arc<Store>, db: &DbName) -> Result<(), NodeError> {
        let scratch = store.layout().tmp();
        let mut archive = Archive::open(self.objects.clone(), &directory_of(db)).await.map_err(failed)?;
        if archive.files().is_empty()
            || archive.manifest().is_some_and(|manifest| manifest.ended_ms.is_some())
        {
            return Ok(());
        }
        let options =
            RestoreOptions { point: Point::Latest, parallel: PARALLEL, check: IntegrityCheck::Quick };
        let restored = restore(&mut archive, options, &scratch, &|_, _| {}).await.map_err(failed)?;
        let summary = restored.summary;
        let (store, name, path) = (store.clone(), db.clone(), restored.file.path().to_owned());
        let (answer, answered) = oneshot::channel();
        let written = blocking(move || -> Result<(), StoreError> {
            let mut upload = store.upload(&name)?;
            copy(&path, |offset, part| upload.write_at(offset, part))?;
            upload.finish(Box::new(move |imported| drop(answer.send(imported))));
            Ok(())
        });
        written.await??;
        match answered.await {
            Ok(imported) => imported.map_err(StoreError::from)?,
            Err(_) => {
                return Err(NodeError::Backup(format!("database {db} was not restored: the node ends")));
            }
        }
        tracing::info!(%db, txid = %summary.txid, time = %summary.time, "restored");
        Ok(())
    }
}

fn failed(error: crate::backup::BackupError) -> NodeError {
    NodeError::Backup(format!("--restore-from: {error}"))
}

/// Gives a file to `write` piece by piece.
fn copy(path: &Path, mut write: impl FnMut(u64, &[u8]) -> Result<(), StoreError>) -> Result<(), StoreError> {
    use std::io::Read;
    let failed = |source| StoreError::Io { what: format!("reading {}", path.display()), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let (mut buffer, mut offset) = (vec![0; CHUNK_BYTES], 0);
    loop {
        let length = file.read(&mut buffer).map_err(failed)?;
        if length == 0 {
            return Ok(());
        }
        write(offset, &buffer[..length])?;
        offset += length as u64;
    }
}
