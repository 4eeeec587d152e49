use std::fs::File;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::BackupError;

/// Outcome of a call on a bucket, later.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, BackupError>>;

/// What a bucket has to offer, whichever kind it is. Keys are relative to the URL of the backup.
///
/// Every call may be repeated: one whose answer was lost can have been done.
pub trait Objects: Send + Sync + 'static {
    /// A small object as a whole; `None` where there is none.
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Object>>;

    /// A part of an object, with its attributes. The range must lie inside.
    fn peek<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Peeked>;

    /// A large object as a file positioned at its begin; a copy of it lies in `scratch`, without a name.
    ///
    /// # Errors
    /// [`BackupError::NotFound`] where there is none.
    fn fetch<'a>(&'a self, key: &'a str, scratch: &'a Path) -> Answer<'a, Fetched>;

    /// Stores an object, whatever was there.
    fn put<'a>(&'a self, key: &'a str, body: Body, attributes: &'a [(String, String)]) -> Answer<'a, ()>;

    /// Stores a small object only if the present one is `expected`, or if there is none where that is `None`.
    ///
    /// # Errors
    /// [`BackupError::Conflict`] where it is another one.
    fn put_if<'a>(&'a self, key: &'a str, body: Bytes, expected: Option<Version>) -> Answer<'a, Version>;

    /// All objects whose keys begin with `prefix` and a slash, or all where it is empty; in no order.
    fn list<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Listed>>;

    /// Removes objects; those that are not there are no error.
    fn delete(&self, keys: Vec<String>) -> Answer<'_, ()>;

    /// How the objects of a database are called here.
    fn scheme(&self) -> super::Scheme;
}

/// What identifies a state of an object, to be compared only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version(pub(super) String);

/// A small object.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its content.
    pub body: Bytes,
    /// Which state that is.
    pub version: Version,
}

/// A part of an object.
#[derive(Clone, Debug)]
pub struct Peeked {
    /// The bytes.
    pub body: Bytes,
    /// What was stored with the object: lower-case names and their values.
    pub attributes: Vec<(String, String)>,
}

/// A large object on this machine.
#[derive(Debug)]
pub struct Fetched {
    /// Its content.
    pub file: File,
    /// What was stored with it.
    pub attributes: Vec<(String, String)>,
}

/// What is to be stored.
#[derive(Debug)]
pub enum Body {
    /// In memory.
    Bytes(Bytes),
    /// A file from its begin, of so many bytes.
    File(File, u64),
}

/// An object as a listing shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When it was stored, in milliseconds since 1970.
    pub modified_ms: i64,
}
