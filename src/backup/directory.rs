//! A backup in a directory: `file:///...`, a disk of this machine or a network file system.
//!
//! `object_store` has a store of local files, too; it cannot replace an object conditionally, and the time of a file is
//! that of its writing, where Litestream's readers expect the transaction's.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};

use super::attributes::TIMESTAMP;
use super::objects::{Answer, Fetched, Listed, Object, Objects, Peeked, Version};
use super::{BackupError, Body, Scheme};
use crate::io::durable;
use crate::types::Timestamp;

/// Ends the name of the file that has the attributes of another one, a line `name=value` each.
const ATTRIBUTES: &str = ".attributes";
/// The file whose lock makes a conditional write one step, for all programs that use the directory.
const LOCK: &str = "skein/lock";

/// A directory as a bucket.
pub(super) struct Directory {
    root: PathBuf,
}

impl Directory {
    /// The directory, which need not exist before something is stored.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, BackupError> + Send + 'static,
    ) -> Answer<'static, T> {
        let root = self.root.clone();
        Box::pin(async move {
            match tokio::task::spawn_blocking(move || work(&root)).await {
                Ok(done) => done,
                Err(error) => {
                    Err(BackupError::Unavailable { what: "reading files".into(), why: error.to_string() })
                }
            }
        })
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let what = format!("file {}", path.display());
    move |error| BackupError::Unavailable { what, why: error.to_string() }
}

/// A missing file is `None`.
fn optional<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>, BackupError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path)(error)),
    }
}

fn no_object(key: &str) -> BackupError {
    BackupError::NotFound(format!("object {key} does not exist"))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ATTRIBUTES);
    PathBuf::from(name)
}

fn attributes_of(path: &Path) -> Result<Vec<(String, String)>, BackupError> {
    let path = beside(path);
    let text = optional(fs::read_to_string(&path), &path)?.unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// Makes the directories above a file.
fn make_parent(path: &Path) -> Result<PathBuf, BackupError> {
    let parent = path.parent().unwrap_or(path).to_owned();
    fs::create_dir_all(&parent).map_err(failed(&parent))?;
    Ok(parent)
}

/// Puts a file in place as a whole, with the time it is to show.
fn write(path: &Path, body: Body, time: Option<Timestamp>) -> Result<(), BackupError> {
    let parent = make_parent(path)?;
    let written = (|| {
        let mut temporary = durable::temporary_in(&parent)?;
        match body {
            Body::Bytes(bytes) => temporary.write_all(&bytes)?,
            Body::File(mut from, size) => {
                from.rewind()?;
                let copied = io::copy(&mut Read::by_ref(&mut from).take(size), &mut temporary)?;
                if copied != size {
                    return Err(io::Error::other(format!("{copied} of {size} bytes")));
                }
            }
        }
        if let Some(ms) = time.and_then(|time| u64::try_from(time.ms()).ok()) {
            temporary.as_file().set_modified(UNIX_EPOCH + Duration::from_millis(ms))?;
        }
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|error| error.error)?;
        durable::sync_dir(&parent)
    })();
    written.map_err(failed(path))
}

fn version_of(body: &[u8]) -> Version {
    Version(format!("{:016x}-{}", crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, body), body.len()))
}

impl Objects for Directory {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Object>> {
        let key = key.to_owned();
        self.run(move |root| read(&root.join(key)))
    }

    fn peek<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Peeked> {
        let key = key.to_owned();
        self.run(move |root| {
            let path = root.join(&key);
            let file = optional(File::open(&path), &path)?.ok_or_else(|| no_object(&key))?;
            let mut body = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut body, range.start).map_err(failed(&path))?;
            Ok(Peeked { body: body.into(), attributes: attributes_of(&path)? })
        })
    }

    fn fetch<'a>(&'a self, key: &'a str, _scratch: &'a Path) -> Answer<'a, Fetched> {
        let key = key.to_owned();
        self.run(move |root| {
            let path = root.join(&key);
            let file = optional(File::open(&path), &path)?.ok_or_else(|| no_object(&key))?;
            Ok(Fetched { file, attributes: attributes_of(&path)? })
        })
    }

    fn put<'a>(&'a self, key: &'a str, body: Body, attributes: &'a [(String, String)]) -> Answer<'a, ()> {
        let (key, attributes) = (key.to_owned(), attributes.to_vec());
        self.run(move |root| {
            let path = root.join(key);
            let time = attributes.iter().find(|(name, _)| name == TIMESTAMP);
            let time = time.and_then(|(_, value)| value.parse().ok());
            if !attributes.is_empty() {
                let text: String =
                    attributes.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
                // Before the file: one that is there has its attributes.
                write(&beside(&path), Body::Bytes(text.into()), None)?;
            }
            write(&path, body, time)
        })
    }

    fn put_if<'a>(&'a self, key: &'a str, body: Bytes, expected: Option<Version>) -> Answer<'a, Version> {
        let key = key.to_owned();
        self.run(move |root| {
            let (path, lock) = (root.join(&key), root.join(LOCK));
            make_parent(&lock)?;
            let file = File::options().create(true).truncate(false).write(true).open(&lock);
            let file = file.map_err(failed(&lock))?;
            let _one_at_a_time = Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, errno)| failed(&lock)(errno.into()))?;
            if read(&path)?.map(|object| object.version) != expected {
                return Err(BackupError::Conflict(format!("object {key}")));
            }
            let version = version_of(&body);
            write(&path, Body::Bytes(body), None)?;
            Ok(version)
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Listed>> {
        let prefix = prefix.to_owned();
        self.run(move |root| {
            let mut found = Vec::new();
            let mut open = vec![prefix];
            while let Some(directory) = open.pop() {
                list_one(root, &directory, &mut open, &mut found)?;
            }
            Ok(found)
        })
    }

    fn delete(&self, keys: Vec<String>) -> Answer<'_, ()> {
        self.run(move |root| {
            for key in keys {
                let path = root.join(key);
                optional(fs::remove_file(&path), &path)?;
                let attributes = beside(&path);
                optional(fs::remove_file(&attributes), &attributes)?;
            }
            Ok(())
        })
    }

    fn scheme(&self) -> Scheme {
        Scheme::Decimal
    }
}

fn read(path: &Path) -> Result<Option<Object>, BackupError> {
    let body = optional(fs::read(path), path)?;
    Ok(body.map(|body| Object { version: version_of(&body), body: body.into() }))
}

/// Adds what is in one directory: files to `found`, directories to `open`.
fn list_one(
    root: &Path,
    directory: &str,
    open: &mut Vec<String>,
    found: &mut Vec<Listed>,
) -> Result<(), BackupError> {
    let path = root.join(directory);
    for entry in optional(fs::read_dir(&path), &path)?.into_iter().flatten() {
        let entry = entry.map_err(failed(&path))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if durable::is_temporary(&name) || name.ends_with(ATTRIBUTES) {
            continue;
        }
        let key = if directory.is_empty() { name } else { format!("{directory}/{name}") };
        // One that was removed meanwhile is not there.
        let Some(metadata) = optional(entry.metadata(), &entry.path())? else { continue };
        if metadata.is_dir() {
            open.push(key);
            continue;
        }
        let modified = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let modified_ms = modified.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
        found.push(Listed { key, size_bytes: metadata.len(), modified_ms });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.into(), value.into())
    }

    #[tokio::test]
    async fn objects_are_files_with_their_attributes_and_time() {
        let dir = tempfile::tempdir().unwrap();
        let bucket = Directory::new(dir.path().join("not/there/yet"));
        assert!(bucket.list("").await.unwrap().is_empty());
        assert!(bucket.get("a").await.unwrap().is_none());
        let attributes = [pair(TIMESTAMP, "2001-09-09T01:46:40.000Z"), pair("x", "a=b")];
        bucket.put("db/ltx/0/f", Body::Bytes("hello".into()), &attributes).await.unwrap();
        let listed = Listed { key: "db/ltx/0/f".into(), size_bytes: 5, modified_ms: 1_000_000_000_000 };
        assert_eq!(bucket.list("").await.unwrap(), std::slice::from_ref(&listed));
        assert_eq!(bucket.list("db/ltx").await.unwrap(), [listed]);
        assert!(bucket.list("db/lt").await.unwrap().is_empty(), "whole components only");
        let part = bucket.peek("db/ltx/0/f", 1..3).await.unwrap();
        assert_eq!((&part.body[..], part.attributes.as_slice()), (&b"el"[..], &attributes[..]));
        let mut text = String::new();
        bucket.fetch("db/ltx/0/f", dir.path()).await.unwrap().file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        bucket.delete(vec!["db/ltx/0/f".into(), "gone".into()]).await.unwrap();
        assert!(matches!(bucket.fetch("db/ltx/0/f", dir.path()).await, Err(BackupError::NotFound(_))));
        assert!(fs::read_dir(dir.path().join("not/there/yet/db/ltx/0")).unwrap().next().is_none());
    }

    #[tokio::test]
    async fn of_writers_at_the_same_time_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let buckets: Vec<_> = (0..8).map(|_| Directory::new(dir.path().into())).collect();
        let attempts =
            buckets.iter().enumerate().map(|(i, bucket)| bucket.put_if("l", vec![i as u8].into(), None));
        let won: Vec<_> =
            futures::future::join_all(attempts).await.into_iter().filter_map(Result::ok).collect();
        assert_eq!(won.len(), 1);
        let version = won.into_iter().next();
        let next = buckets[0].put_if("l", "next".into(), version.clone()).await.unwrap();
        let late = buckets[1].put_if("l", "late".into(), version).await;
        assert!(matches!(late, Err(BackupError::Conflict(_))), "{late:?}");
        assert_eq!(buckets[1].get("l").await.unwrap().unwrap().version, next);
    }
}
