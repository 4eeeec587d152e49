use std::sync::Arc;

use super::cloud::Cloud;
use super::directory::Directory;
use super::location::Kind;
use super::{BackupError, Location, Objects};

/// Opens the bucket of a URL. Asks nobody yet.
///
/// # Errors
/// [`BackupError::Invalid`] where options or credentials of the environment are not usable.
pub fn connect(location: &Location) -> Result<Arc<dyn Objects>, BackupError> {
    match &location.kind {
        Kind::File(path) => Ok(Arc::new(Directory::new(path.clone()))),
        _ => Ok(Arc::new(Cloud::open(location)?)),
    }
}
