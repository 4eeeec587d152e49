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
    Receiving {
        upload: Upload,
        /// The thread of the last write.
        writer: u32,
    },
    /// A part was refused; the rest is too.
    Refused(Errno),
    Closed,
}

impl UploadState {
    /// Nothing has arrived yet.
    pub fn new(name: DbName) -> Self {
        Self { name, progress: Progress::Untouched }
    }

    fn write(&mut self, state: &State, by: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if matches!(self.progress, Progress::Untouched) {
            let upload = state.store.upload(&self.name).map_err(|error| self.fail(&error))?;
            self.progress = Progress::Receiving { upload, writer: by };
        }
        match &mut self.progress {
            Progress::Receiving { upload, writer } => {
                *writer = by;
                upload.write_at(offset, data).map_err(|error| self.fail(&error))
            }
            Progress::Refused(errno) => Err(*errno),
            Progress::Untouched | Progress::Closed => {
                let why = "the file was complete when it was closed; send it again as a whole";
                Err(refuse(self.name.as_str(), Doing::Upload, Errno::EINVAL, why))
            }
        }
    }

    /// What was received, where closing a descriptor ends it: one who only inherited the descriptor, such as a child on
    /// its way into another program, ends nothing that is not complete.
    fn take_closed(&mut self, by: u32) -> Option<Upload> {
        let ends = |progress: &Progress| matches!(progress, Progress::Receiving { upload, writer } if *writer == by || upload.is_complete());
        if ends(&self.progress) { self.take() } else { None }
    }

    fn take(&mut self) -> Option<Upload> {
        match std::mem::replace(&mut self.progress, Progress::Closed) {
            Progress::Receiving { upload, .. } => Some(upload),
            other => {
                self.progress = other;
                None
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
pub(super) fn write(
    state: &Arc<State>,
    handle: Arc<Handle>,
    by: u32,
    offset: u64,
    data: Vec<u8>,
    reply: ReplyWrite,
) {
    let state = state.clone();
    state.workers.clone().run(move || {
        let Kind::Upload { state: upload, .. } = &handle.kind else { return reply.error(Errno::EBADF) };
        let mut upload = upload.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match upload.write(&state, by, offset, &data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    });
}

/// The sender closes the file: checks it, makes it the content, and lets `close(2)` return what came of it.
pub(super) fn flush(state: &Arc<State>, handle: Arc<Handle>, by: u32, reply: ReplyEmpty) {
    state.workers.run(move || {
        let Kind::Upload { state: upload, .. } = &handle.kind else { return reply.error(Errno::EBADF) };
        let mut upload = upload.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let name = upload.name.clone();
        if let Progress::Refused(errno) = upload.progress {
            return reply.error(errno);
        }
        let Some(received) = upload.take_closed(by) else { return reply.ok() };
        drop(upload);
        received.finish(Box::new(move |result| match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(of_db(name.as_str(), Doing::Upload, &error)),
        }));
    });
}

/// The last descriptor is closed, by whomever: what is not complete by now is refused, with the reason in the log.
pub(super) fn released(state: &Arc<State>, handle: Arc<Handle>) {
    state.workers.run(move || {
        let Kind::Upload { state: upload, .. } = &handle.kind else { return };
        let mut upload = upload.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (name, received) = (upload.name.clone(), upload.take());
        drop(upload);
        if let Some(received) = received {
            received.finish(Box::new(move |result| {
                // Nobody waits for an answer any more.
                let _errno = result.map_err(|error| of_db(name.as_str(), Doing::Upload, &error));
            }));
        }
    });
}
