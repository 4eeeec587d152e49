//! A database file being sent whole by `cp`, `cat >` or `rsync`: it counts when the sender closes it.

use std::sync::Arc;

use fuser::{Errno, ReplyEmpty, ReplyWrite};

use super::errno::{Doing, of_db, of_store, refuse};
use super::handle::{Handle, Kind};
use super::state::State;
use crate::store::Upload;
use crate::types::DbName;

/// How far an upload is.
pub(super) struct UploadState {
    name: DbName,
    progress: Progress,
}

enum Progress {
    /// Nothing has arrived; closing now changes nothing (`touch`, or the shell before it starts `cat`).
    Untouched,
    Receiving(Upload),
    /// A part was refused; the rest is too.
    Refused(Errno),
    Closed,
}

impl UploadState {
    /// Nothing has arrived yet.
    pub fn new(name: DbName) -> Self {
        Self { name, progress: Progress::Untouched }
    }

    fn write(&mut self, state: &State, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if matches!(self.progress, Progress::Untouched) {
            let upload = state.store.upload(&self.name).map_err(|error| self.fail(&error))?;
            self.progress = Progress::Receiving(upload);
        }
        match &mut self.progress {
            Progress::Receiving(upload) => match upload.write_at(offset, data) {
                Ok(()) => Ok(()),
                Err(error) => Err(self.fail(&error)),
            },
            Progress::Refused(errno) => Err(*errno),
            Progress::Untouched | Progress::Closed => {
                let why = "the file was complete when it was closed; send it again as a whole";
                Err(refuse(self.name.as_str(), Doing::Upload, Errno::EINVAL, why))
            }
        }
    }

    fn fail(&mut self, error: &crate::store::StoreError) -> Errno {
        let errno = of_store(self.name.as_str(), Doing::Upload, error);
        self.progress = Progress::Refused(errno);
        errno
    }
}

/// Takes a part of the file.
pub(super) fn write(state: &Arc<State>, handle: Arc<Handle>, offset: u64, data: Vec<u8>, reply: ReplyWrite) {
    let state = state.clone();
    state.workers.clone().run(move || {
        let Kind::Upload { state: upload, .. } = &handle.kind else { return reply.error(Errno::EBADF) };
        let mut upload = upload.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match upload.write(&state, offset, &data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    });
}

/// The sender closes the file: checks it, makes it the content, and lets `close(2)` return what came of it.
pub(super) fn flush(state: &Arc<State>, handle: Arc<Handle>, reply: ReplyEmpty) {
    state.workers.run(move || {
        let Kind::Upload { state: upload, .. } = &handle.kind else { return reply.error(Errno::EBADF) };
        let mut upload = upload.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let name = upload.name.clone();
        match std::mem::replace(&mut upload.progress, Progress::Closed) {
            Progress::Untouched => {
                upload.progress = Progress::Untouched;
                reply.ok();
            }
            Progress::Closed => reply.ok(),
            Progress::Refused(errno) => {
                upload.progress = Progress::Refused(errno);
                reply.error(errno);
            }
            Progress::Receiving(received) => {
                drop(upload);
                received.finish(Box::new(move |result| match result {
                    Ok(()) => reply.ok(),
                    Err(error) => reply.error(of_db(name.as_str(), Doing::Upload, &error)),
                }));
            }
        }
    });
}
