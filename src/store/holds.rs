//! Applications that hold the primary: the write lease of `<db>-lock`.

use crate::types::DbName;

/// Makes this node primary for an application, and keeps it that.
pub trait PrimaryHolds: Send + Sync + 'static {
    /// Makes this node primary where it is not, and keeps it that for whoever writes `db`, until what is returned is
    /// dropped or its time is over. Blocking.
    ///
    /// # Errors
    /// Where this node cannot become primary, or has not in time.
    fn hold(&self, db: &DbName) -> Result<Hold, HoldError>;
}

/// Something that ends when it is dropped: the hold of an application on the primary.
pub struct Hold(Box<dyn std::any::Any + Send + Sync>);

impl Hold {
    /// A hold that ends when `guard` is dropped.
    pub fn new(guard: impl std::any::Any + Send + Sync) -> Self {
        Self(Box::new(guard))
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hold").field(&self.0.type_id()).finish()
    }
}

/// Why an application does not get the primary.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// This node never becomes primary.
    #[error("{0}")]
    Never(String),
    /// It has not become primary in time.
    #[error("{0}")]
    Late(String),
}
