//! The mount's life: mounting with errors that name the remedy, and unmounting.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuser::{BackgroundSession, BackingId, Config, MountOption, Session, SessionACL};

use super::filesystem::Skein;
use super::inode::Inodes;
use super::mark::MountMark;
use super::notify::Notify;
use super::record::MountRecord;
use super::state::State;
use super::tree::Tree;
use super::{below_mount, mount_table, processes, stale};
use crate::history::History;
use crate::store::Store;
use crate::types::{ForcedAttributes, Globs};

/// FUSE threads: more than one, because a request of the daemon itself must find one free while another handler
/// runs. None of them waits for anything but local files.
const THREADS: usize = 4;

/// How long the filesystem's threads have to end once it is unmounted.
const UNMOUNT_MAX: Duration = Duration::from_secs(2);

/// What to mount, and where.
pub struct MountOptions {
    /// An existing, empty directory.
    pub mount_point: PathBuf,
    /// Whether it is this node's: what is found in it then was written while nothing was mounted, and is put aside.
    pub own: bool,
    /// The databases to show.
    pub store: Arc<Store>,
    /// Let the kernel read and write files of WAL databases by itself, where it can.
    pub passthrough: bool,
    /// Owner and permissions that files have on this mount, whatever the log says.
    pub forced: ForcedAttributes,
    /// Let other users in, as far as the files' permissions do.
    pub allow_other: bool,
    /// What databases were; `None` where that is not kept.
    pub history: Option<Arc<History>>,
    /// Databases that are read-only while another node is primary.
    pub readonly_on_follower: Option<Globs>,
}

/// A mounted filesystem; unmounted when dropped.
pub struct Mount {
    session: Option<BackgroundSession>,
    notify: Arc<Notify>,
    mount_point: PathBuf,
    passthrough: bool,
    connection: u64,
    mark: MountMark,
    record: Option<fs::File>,
    device: fs::File,
}

/// Why the filesystem cannot be mounted or unmounted; every text names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel's FUSE device is not there.
    #[error(
        "/dev/fuse cannot be opened: {0}; load the fuse module, run as a user who may open it (root), or start the \
         container with --device /dev/fuse --cap-add SYS_ADMIN"
    )]
    NoDevice(io::Error),
    /// Neither may this process mount, nor is there the program that may.
    #[error(
        "mounting on {path} is not permitted: {source}; run as root (in a container: --cap-add SYS_ADMIN), or install \
         the package fuse3, which has fusermount3"
    )]
    NotPermitted {
        /// The mount point.
        path: PathBuf,
        /// What the attempt came to.
        source: io::Error,
    },
    /// Other users can be let in by root only, unless the system says otherwise.
    #[error("allow_other is not permitted: {0}; put user_allow_other into /etc/fuse.conf, or run as root")]
    AllowOther(io::Error),
    /// There is no such directory.
    #[error("mount point {0} does not exist or is no directory; create it: mkdir -p {0}")]
    NoMountPoint(PathBuf),
    /// What is in the directory would be hidden.
    #[error("mount point {path} is not empty (it has {first}); choose an empty directory, or move that away")]
    NotEmpty {
        /// The mount point.
        path: PathBuf,
        /// One of the things in it.
        first: String,
    },
    /// Something is mounted there.
    #[error("mount point {path} is a mount already ({what}); unmount it first: umount {path}")]
    Busy {
        /// The mount point.
        path: PathBuf,
        /// What is mounted there.
        what: String,
    },
    /// The mount of another node whose daemon died is still in use.
    #[error("mount point {path} has a dead mount that processes {pids:?} still use; end them first")]
    Dead {
        /// The mount point.
        path: PathBuf,
        /// Who uses it.
        pids: Vec<i32>,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Mount {
    /// Mounts, and serves from threads of its own until it is unmounted.
    ///
    /// # Errors
    /// See [`MountError`].
    pub fn start(options: MountOptions) -> Result<Self, MountError> {
        let mount_point = check(&options.mount_point, options.own)?;
        let tree = Tree::new(options.store.clone());
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| MountError::Io { what, source }
        };
        fs::create_dir_all(tree.root()).map_err(failed("creating the directory of the databases"))?;
        let mark = MountMark::draw();
        let inodes = Arc::new(Inodes::new(mark.first_inode()));
        let notify = Arc::new(Notify::new(inodes.clone(), mount_point.clone()));
        let readonly = options.readonly_on_follower.clone();
        let state = State::new(
            options.store.clone(),
            tree,
            inodes,
            options.forced,
            readonly,
            options.history.clone(),
        )
        .map_err(failed("reading /proc/self/task"))?;
        let state = Arc::new(state);
        let offered = Arc::new(AtomicBool::new(false));
        let filesystem = Skein {
            state: state.clone(),
            passthrough_wanted: options.passthrough,
            passthrough_offered: offered.clone(),
        };
        let session = Session::new(filesystem, &mount_point, &config(options.allow_other))
            .map_err(|error| explain(&mount_point, options.allow_other, error))?;
        let passthrough = offered.load(Ordering::SeqCst) && try_passthrough(&session, state.tree.root());
        if options.passthrough && !passthrough {
            tracing::warn!(
                "no passthrough: it needs Linux 6.9 and CAP_SYS_ADMIN; every write goes through this process"
            );
        }
        state.set_passthrough(passthrough);
        notify.set_passthrough(passthrough);
        let device = session.as_fd().try_clone_to_owned().map_err(failed("duplicating the device"))?;
        let connection = connection_of(&mount_point)?;
        // Before anything is answered.
        let record = note_mount(&state, &mark, connection, &mount_point);
        let session = session.spawn().map_err(failed("starting the threads of the filesystem"))?;
        let mut mount = Self {
            session: Some(session),
            notify,
            mount_point,
            passthrough,
            connection,
            mark,
            record,
            device: device.into(),
        };
        mount.connect(&options.store)?;
        Ok(mount)
    }

    fn connect(&mut self, store: &Store) -> Result<(), MountError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| MountError::Io { what, source }
        };
        let session =
            self.session.as_ref().expect("it was started a moment ago, and ends only with this value");
        self.notify.connect(session.notifier()).map_err(failed("starting the notification thread"))?;
        store.set_kernel_cache(self.notify.clone());
        Ok(())
    }

    /// Whether files of WAL databases are passed through.
    pub fn passthrough(&self) -> bool {
        self.passthrough
    }

    /// Number of the FUSE connection, as in `/sys/fs/fuse/connections`; it lives until the last process has stopped
    /// using the mount, also when this program dies.
    pub fn connection(&self) -> u64 {
        self.connection
    }

    /// Tells this mount from all others that will have its connection's number.
    pub fn mark(&self) -> &MountMark {
        &self.mark
    }

    /// Directory it is mounted on.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The note of which database each of its open files is, for the process that guards the mount; `None` where it cannot
    /// be written.
    pub fn record(&self) -> Option<&fs::File> {
        self.record.as_ref()
    }

    /// The directory of a mount, as a reference to it only.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn root_at(mount_point: &Path) -> io::Result<fs::File> {
        use std::os::unix::fs::OpenOptionsExt;
        fs::File::options().read(true).custom_flags(nix::libc::O_PATH).open(mount_point)
    }

    /// The FUSE device of the mount: applications' requests wait for as long as anybody has it open.
    ///
    /// # Errors
    /// Where it cannot be duplicated.
    pub fn device(&self) -> io::Result<fs::File> {
        self.device.try_clone()
    }

    /// Leaves the mount in its place, dead once this process has ended: applications get errors instead of the empty
    /// directory below. The next start removes it.
    pub fn abandon(self) {
        self.notify.disconnect();
        std::mem::forget(self);
    }

    /// Unmounts. Where applications still have files open the mount disappears from the tree at once, and ends when
    /// they have closed them; the log names them.
    ///
    /// # Errors
    /// Where even that is refused.
    pub fn unmount(mut self) -> Result<(), MountError> {
        self.end()
    }

    /// Unmounts and waits for the threads of the filesystem, but not for long: a copy of the mount in another mount
    /// namespace (a container's) keeps the connection. It is aborted then, and the copy is dead. `None` where the threads do
    /// not end even so; they end with this process.
    fn unmount_session(&self, session: BackgroundSession) -> Result<Option<io::Result<()>>, MountError> {
        let (sender, ended) = std::sync::mpsc::channel();
        let unmounting = std::thread::Builder::new().name("skein-unmount".into()).spawn(move || {
            // Nobody waits any more where it took too long.
            let _ = sender.send(session.umount_and_join());
        });
        unmounting.map_err(|source| MountError::Io { what: "starting a thread".into(), source })?;
        if let Ok(done) = ended.recv_timeout(UNMOUNT_MAX) {
            return Ok(Some(done));
        }
        tracing::warn!(
            mount_point = %self.mount_point.display(),
            "the mount is gone here and goes on elsewhere, as in a container's mount namespace; what uses it there gets errors now"
        );
        if let Err(error) = stale::abort(self.connection) {
            tracing::debug!(%error, "the connection ends with this process");
        }
        Ok(ended.recv_timeout(UNMOUNT_MAX).ok())
    }

    fn end(&mut self) -> Result<(), MountError> {
        let Some(session) = self.session.take() else { return Ok(()) };
        self.notify.disconnect();
        let Some(Err(error)) = self.unmount_session(session)? else { return Ok(()) };
        if mount_table::at(&self.mount_point)
            .is_none_or(|mounted| mounted.device != (0, self.connection as u32))
        {
            // Somebody has unmounted it by hand.
            return Ok(());
        }
        let pids = processes::using(self.connection as u32, None);
        let path = self.mount_point.display();
        let by = if pids.is_empty() { "this program itself" } else { "the processes named" };
        tracing::warn!(mount_point = %path, ?pids, "unmounting lazily, files are still open by {by}: {error}");
        stale::detach(&self.mount_point)
            .map_err(|source| MountError::Io { what: format!("unmounting {path}"), source })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!("{error}");
        }
    }
}

/// Number of the FUSE connection of the mount that was just made; asks nobody but the kernel, for nothing answers yet.
fn connection_of(mount_point: &Path) -> Result<u64, MountError> {
    let mounted = mount_table::at(mount_point).map(|mounted| mounted.device.1);
    mounted.or_else(|| processes::minor_of(mount_point)).map(u64::from).ok_or_else(|| MountError::Io {
        what: "finding the FUSE connection".into(),
        source: io::ErrorKind::NotFound.into(),
    })
}

/// Begins the note of what applications open. Without it everything works, but the start after a death waits for all
/// applications.
fn note_mount(state: &State, mark: &MountMark, connection: u64, mount_point: &Path) -> Option<fs::File> {
    let dir = state.store.layout().mounts();
    let noted = MountRecord::create(&dir, mark, connection, mount_point).and_then(|record| {
        let shared = record.share()?;
        state.set_record(record);
        Ok(shared)
    });
    let failed = |error: &io::Error| tracing::warn!(dir = %dir.display(), %error, "cannot note what applications open");
    noted.inspect_err(failed).ok()
}

fn config(allow_other: bool) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("skein".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    config.acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(THREADS);
    // A queue per thread: without it all threads are woken for each request.
    config.clone_fd = true;
    config
}

/// Whether the mount point will do; gives its absolute path.
fn check(path: &Path, own: bool) -> Result<PathBuf, MountError> {
    if stale::is_dead(path)
        && let Some(mounted) = mount_table::at(path)
    {
        let pids = processes::using(mounted.device.1, None);
        // Of its own the node has seen to the databases that they have open.
        if !own && !pids.is_empty() {
            return Err(MountError::Dead { path: path.to_owned(), pids });
        }
        stale::detach(path).map_err(|source| MountError::Io {
            what: format!("removing the dead mount at {}", path.display()),
            source,
        })?;
    }
    let absolute = path.canonicalize().map_err(|_| MountError::NoMountPoint(path.to_owned()))?;
    if !absolute.is_dir() {
        return Err(MountError::NoMountPoint(absolute));
    }
    if let Some(mounted) = mount_table::at(&absolute).filter(|mounted| mounted.kind.starts_with("fuse")) {
        return Err(MountError::Busy {
            path: absolute,
            what: format!("{} {}", mounted.kind, mounted.source),
        });
    }
    if own && let Err(error) = below_mount::put_aside(&absolute) {
        tracing::warn!(%error, "what is in the mount point cannot be put aside");
    }
    let mut entries = fs::read_dir(&absolute).map_err(|source| MountError::Io {
        what: format!("reading mount point {}", absolute.display()),
        source,
    })?;
    if let Some(Ok(entry)) = entries.next() {
        let first = entry.file_name().to_string_lossy().into_owned();
        return Err(MountError::NotEmpty { path: absolute, first });
    }
    Ok(absolute)
}

/// The remedy for a failed attempt to mount.
fn explain(path: &Path, allow_other: bool, source: io::Error) -> MountError {
    if let Err(device) = fs::File::options().read(true).write(true).open("/dev/fuse") {
        return MountError::NoDevice(device);
    }
    if allow_other && source.to_string().contains("user_allow_other") {
        return MountError::AllowOther(source);
    }
    let text = source.to_string();
    if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
        || text.contains("permi")
    {
        return MountError::NotPermitted { path: path.to_owned(), source };
    }
    MountError::Io { what: format!("mounting on {}", path.display()), source }
}

/// Whether the kernel really takes a backing file: that needs CAP_SYS_ADMIN and a file system it can pass through to.
fn try_passthrough(session: &Session<Skein>, directory: &Path) -> bool {
    // The reference to this nameless file stays with the connection until its end; there is no safe way to close it.
    let tried = tempfile::tempfile_in(directory).and_then(|file| BackingId::create_raw(session, file));
    if let Err(error) = &tried {
        tracing::debug!("the kernel refuses a backing file: {error}");
    }
    tried.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_must_exist_and_be_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(check(dir.path(), false).unwrap(), dir.path().canonicalize().unwrap());
        let missing = check(&dir.path().join("missing"), true).unwrap_err().to_string();
        assert!(missing.contains("mkdir -p"), "{missing}");
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        let full = check(dir.path(), false).unwrap_err().to_string();
        assert!(full.contains("notes.txt"), "{full}");
        check(dir.path(), true).unwrap();
        assert!(!dir.path().join("notes.txt").exists());
        fs::remove_dir_all(dir.path().with_extension("stray")).unwrap();
    }

    #[test]
    fn a_refused_mount_names_the_remedy() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let text = MountError::NoDevice(denied()).to_string();
        assert!(text.contains("--device /dev/fuse") && text.contains("SYS_ADMIN"), "{text}");
        let text = MountError::NotPermitted { path: "/mnt".into(), source: denied() }.to_string();
        assert!(text.contains("fuse3"), "{text}");
    }
}
