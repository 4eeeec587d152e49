//! Segments to come: filled in the background, or kept when purged.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use super::error::LogError;
use super::segment::fill;

/// Files kept for reuse at most; more are removed.
const SPARES_MAX: usize = 2;

/// Size of the first segment of a run on a full disk.
const FIRST_BYTES_MIN: u64 = 64 << 10;

/// Files that are ready to become segments.
#[derive(Debug, Clone)]
pub(super) struct Spares {
    dir: PathBuf,
    bytes: u64,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    ready: Vec<PathBuf>,
    filling: bool,
    made: u64,
    /// Why the last attempt to fill one failed.
    failed: Option<String>,
}

/// Whether a file of the log's directory is a spare one.
pub(super) fn is_spare(name: &str) -> bool {
    name.starts_with("spare-")
}

impl Spares {
    /// Forgets what an earlier run left: a file that was being filled is of unknown content and size.
    pub fn open(dir: &Path, bytes: u64) -> Result<Self, LogError> {
        for entry in fs::read_dir(dir).map_err(LogError::io("reading", dir))? {
            let entry = entry.map_err(LogError::io("reading", dir))?;
            if is_spare(&entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path()).map_err(LogError::io("removing", entry.path()))?;
            }
        }
        Ok(Self { dir: dir.into(), bytes, state: Arc::default() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn new_path(&self, state: &mut State) -> PathBuf {
        state.made += 1;
        self.dir.join(format!("spare-{}", state.made))
    }

    /// Has a file filled in the background, so that the next segment is there when it is needed.
    pub fn prepare(&self) {
        let mut state = self.lock();
        if state.filling || !state.ready.is_empty() {
            return;
        }
        state.filling = true;
        let path = self.new_path(&mut state);
        let spares = self.clone();
        let spawned = std::thread::Builder::new().name("skein-fill".into()).spawn(move || {
            let filled = fill(&path, spares.bytes);
            let mut state = spares.lock();
            state.filling = false;
            state.failed = filled.as_ref().err().map(ToString::to_string);
            match filled {
                Ok(_) => state.ready.push(path),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot prepare a log segment");
                    // The disk may be full; what was written of it helps nobody.
                    let _ = fs::remove_file(path);
                }
            }
            drop(state);
            spares.state.1.notify_all();
        });
        if spawned.is_err() {
            state.filling = false;
        }
    }

    /// Why there is no file for the next segment, where the last attempt to fill one failed; tries again.
    pub fn lacking(&self) -> Option<String> {
        let failed = {
            let state = self.lock();
            state.failed.clone().filter(|_| state.ready.is_empty())
        };
        if failed.is_some() {
            self.prepare();
        }
        failed
    }

    /// A filled file of at least `bytes` bytes; waits for the one being filled, or fills one.
    pub fn take(&self, bytes: u64) -> Result<(PathBuf, File), LogError> {
        let mut state = self.lock();
        while state.filling && bytes <= self.bytes {
            state = self.state.1.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        if bytes <= self.bytes
            && let Some(path) = state.ready.pop()
        {
            let open = OpenOptions::new().read(true).write(true).open(&path);
            return open.map(|file| (path.clone(), file)).map_err(LogError::io("opening", path));
        }
        let path = self.new_path(&mut state);
        drop(state);
        let file = fill(&path, bytes.max(self.bytes)).map_err(|error| {
            // The disk may be full; what was written of it helps nobody.
            let _ = fs::remove_file(&path);
            LogError::io("creating log segment", &path)(error)
        })?;
        Ok((path, file))
    }

    /// As [`take`](Self::take) for the first segment of a run: on a full disk a smaller one will do, because the log
    /// must be open before what fills the disk can be given up.
    pub fn take_first(&self, bytes: u64) -> Result<(PathBuf, File), LogError> {
        match self.take(bytes) {
            Err(LogError::Io { errno: nix::libc::ENOSPC, .. }) => {
                let path = self.new_path(&mut self.lock());
                let file = fill(&path, FIRST_BYTES_MIN.min(bytes)).map_err(|error| {
                    let _ = fs::remove_file(&path);
                    LogError::io("creating log segment", &path)(error)
                })?;
                Ok((path, file))
            }
            taken => taken,
        }
    }

    /// Keeps a purged segment's file for reuse, or removes it.
    pub fn give(&self, segment: &Path, size: u64) -> Result<(), LogError> {
        let mut state = self.lock();
        if state.ready.len() < SPARES_MAX && size == self.bytes {
            let path = self.new_path(&mut state);
            crate::io::fault::point("raft_segment_recycle").map_err(LogError::io("recycling", segment))?;
            fs::rename(segment, &path).map_err(LogError::io("recycling", segment))?;
            state.ready.push(path);
            return Ok(());
        }
        fs::remove_file(segment).map_err(LogError::io("removing", segment))
    }
}
