//! Large change sets as files named by their digest: `blobs/<digest>-<size>`.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

/// Name of a blob: LTX file checksum and size in bytes.
pub type BlobKey = (u64, u64);

/// The blob directory.
#[derive(Debug)]
pub struct BlobStore {
    dir: PathBuf,
}

/// A blob being written; vanishes unless kept.
pub struct BlobWriter {
    file: tempfile::NamedTempFile,
}

impl BlobStore {
    /// Opens the directory, creating it where missing, and removes files of writers that died.
    pub fn open(_dir: PathBuf) -> io::Result<Self> {
        todo!()
    }

    /// Starts a blob of yet unknown name.
    pub fn create(&self) -> io::Result<BlobWriter> {
        todo!()
    }

    /// Makes the blob durable under its name.
    pub fn keep(&self, _writer: BlobWriter, _key: BlobKey) -> io::Result<()> {
        todo!()
    }

    /// Whether the blob is here.
    pub fn contains(&self, _key: BlobKey) -> bool {
        todo!()
    }

    /// Opens a blob for reading.
    pub fn open_blob(&self, _key: BlobKey) -> io::Result<File> {
        todo!()
    }

    /// Removes a blob no entry refers to any more; a missing one is no error.
    pub fn remove(&self, _key: BlobKey) -> io::Result<()> {
        todo!()
    }

    /// The blobs here.
    pub fn list(&self) -> io::Result<Vec<BlobKey>> {
        todo!()
    }
}

impl Write for BlobWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
