//! How many files a node may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit of open files to what this process may have: the usual one is for programs that use select(2), and
/// a node has a few for each database that is in use.
pub(super) fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| match soft < hard {
        true => setrlimit(Resource::RLIMIT_NOFILE, hard, hard),
        false => Ok(()),
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
