use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::current_role::CurrentRole;
use super::replication::Replication;
use super::{NodeError, NodeIdentity};
use crate::backup::{BackupOptions, Location, StatusBoard, Uploader, Verifier, connect};
use crate::config::{BackupSettings, Settings};
use crate::store::Store;
use crate::types::Globs;

/// The URLs of the settings, taken apart.
///
/// # Errors
/// Where one is not usable.
pub(super) fn locations(settings: &BackupSettings) -> Result<Vec<Location>, NodeError> {
    let parse = |url: &String| url.parse().map_err(|error| NodeError::Backup(format!("backup.url: {error}")));
    settings.urls.iter().map(parse).collect()
}

/// Starts to back up to each URL, on nodes that can be primary; returns where the status of each can be read.
///
/// # Errors
/// Where a URL or the credentials in the environment are not usable.
pub(super) fn start_backups(
    settings: &Settings,
    identity: &NodeIdentity,
    store: &Arc<Store>,
    replication: &Replication,
    roles: &watch::Receiver<CurrentRole>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<Vec<StatusBoard>, NodeError> {
    let (Replication::Voter { raft, .. }, Some(cluster)) = (replication, &identity.cluster) else {
        return Ok(Vec::new());
    };
    let mut boards = Vec::new();
    let BackupSettings { databases, sync_interval, snapshot_interval, retention, warn_after, .. } =
        &settings.backup;
    for location in locations(&settings.backup)? {
        let options = BackupOptions {
            url: location.to_string(),
            databases: Globs::clone(databases),
            sync_interval: *sync_interval,
            snapshot_interval: *snapshot_interval,
            retention: *retention,
            warn_after: *warn_after,
            cluster: cluster.clone(),
            node: identity.name.to_string(),
            run: identity.run,
        };
        let objects = connect(&location).map_err(|error| NodeError::Backup(error.to_string()))?;
        let (term, terms) = watch::channel(None);
        tasks.spawn(follow_term(roles.clone(), term, shutdown.clone()));
        let bucket = objects.clone();
        let uploader = Uploader::new(options, objects, store.clone(), raft.log(), terms, shutdown.clone());
        let board = uploader.board();
        if !settings.backup.verify_interval.is_zero() {
            let verifier = Verifier {
                objects: bucket,
                store: store.clone(),
                board: board.clone(),
                interval: settings.backup.verify_interval,
                shutdown: shutdown.clone(),
            };
            tasks.spawn(verifier.run());
        }
        boards.push(board);
        tasks.spawn(uploader.run());
    }
    Ok(boards)
}

/// The term in which this node is primary, as it changes.
async fn follow_term(
    mut roles: watch::Receiver<CurrentRole>,
    term: watch::Sender<Option<u64>>,
    shutdown: CancellationToken,
) {
    loop {
        {
            let role = roles.borrow_and_update();
            term.send_replace(role.is_primary.then_some(role.term));
        }
        tokio::select! {
            changed = roles.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}
