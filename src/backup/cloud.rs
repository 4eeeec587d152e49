//! Buckets in a cloud: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage.
//!
//! What `object_store` does that a caller has to know:
//! * A conditional write that is repeated after a lost answer meets itself and is told a conflict, and so is one that S3
//!   refuses with 409 because another one is under way. Who writes conditionally reads back and compares.
//! * Its timeout covers a whole request with its body, so that large bodies are sent in parts, and it is longer here.
//! * A write in parts knows no condition: only files that are the same whoever writes them are sent that way.
//! * It repeats 5xx answers such as 503 SlowDown by itself for a while, with the credentials it began with.

use std::io::{Read, Seek};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path as Key;
use object_store::{
    Attribute, AttributeValue, Attributes, ClientOptions, Error, GetOptions, GetResult, MultipartUpload,
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig, UpdateVersion,
};

use super::attributes::without_hyphens;
use super::location::Kind;
use super::objects::{Answer, Fetched, Listed, Object, Objects, Peeked, Version};
use super::{BackupError, Body, Location, Scheme};
use crate::security::use_ring;

/// Larger bodies are sent in parts of this size, in bytes; S3 takes no smaller ones than 5 MiB.
const PART_BYTES: usize = 8 << 20;
/// Parts under way at a time.
const PARTS_MAX: usize = 4;
/// How long a request may take, its body included.
const REQUEST_MAX: Duration = Duration::from_secs(120);
/// How long a server has to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long a failing request is repeated before the caller hears of it, who repeats it too.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Objects listed, put into one request to remove them.
const DELETE_BATCH: usize = 1000;

/// A path in a bucket.
pub(super) struct Cloud {
    store: Arc<dyn ObjectStore>,
    base: String,
    scheme: Scheme,
    /// Whether names of attributes have letters and digits only.
    plain_names: bool,
}

impl Cloud {
    /// The bucket of a URL, with credentials from the environment.
    pub fn open(location: &Location) -> Result<Self, BackupError> {
        use_ring();
        let invalid = |error: Error| BackupError::Invalid(format!("{location}: {error}"));
        let option = |name: &str| location.options.get(name).cloned();
        let insecure = option("endpoint").is_some_and(|endpoint| endpoint.starts_with("http://"))
            || option("allow-http").is_some_and(|value| value == "true");
        let client = ClientOptions::new()
            .with_timeout(REQUEST_MAX)
            .with_connect_timeout(CONNECT_MAX)
            .with_allow_http(insecure);
        let retry = RetryConfig { retry_timeout: RETRY_MAX, ..RetryConfig::default() };
        let store: Arc<dyn ObjectStore> = match &location.kind {
            Kind::S3(bucket) => {
                let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
                if let Some(endpoint) = option("endpoint") {
                    builder = builder.with_endpoint(endpoint);
                }
                if let Some(region) = option("region") {
                    builder = builder.with_region(region);
                }
                if let Some(hosted) = option("virtual-hosted") {
                    builder = builder.with_virtual_hosted_style_request(hosted == "true");
                }
                Arc::new(builder.with_client_options(client).with_retry(retry).build().map_err(invalid)?)
            }
            Kind::Google(bucket) => {
                let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
                if let Some(endpoint) = option("endpoint") {
                    builder = builder.with_base_url(&endpoint);
                }
                Arc::new(builder.with_client_options(client).with_retry(retry).build().map_err(invalid)?)
            }
            Kind::Azure(container) => {
                let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(container);
                if let Some(account) = option("account") {
                    builder = builder.with_account(account);
                }
                if let Some(endpoint) = option("endpoint") {
                    builder = builder.with_endpoint(endpoint);
                }
                Arc::new(builder.with_client_options(client).with_retry(retry).build().map_err(invalid)?)
            }
            Kind::File(_) => {
                return Err(BackupError::Invalid(format!("{location} is no bucket in a cloud")));
            }
        };
        let scheme = if matches!(location.kind, Kind::S3(_)) { Scheme::Hex } else { Scheme::Decimal };
        let plain_names = matches!(location.kind, Kind::Azure(_));
        Ok(Self { store, base: location.path.clone(), scheme, plain_names })
    }

    fn key(&self, key: &str) -> Result<Key, BackupError> {
        let whole = match (self.base.as_str(), key) {
            ("", key) => key.to_owned(),
            (base, "") => base.to_owned(),
            (base, key) => format!("{base}/{key}"),
        };
        Key::parse(&whole).map_err(|error| BackupError::Invalid(format!("object {whole}: {error}")))
    }

    fn attributes(&self, attributes: &[(String, String)]) -> Attributes {
        attributes
            .iter()
            .map(|(name, value)| {
                let name = if self.plain_names { without_hyphens(name) } else { name.clone() };
                (Attribute::Metadata(name.into()), AttributeValue::from(value.clone()))
            })
            .collect()
    }

    async fn put_one(&self, key: &Key, body: Bytes, options: PutOptions) -> Result<Version, BackupError> {
        let put = self.store.put_opts(key, PutPayload::from_bytes(body), options).await;
        put.map(|put| version(put.e_tag, put.version)).map_err(|error| of(key, error))
    }

    async fn put_parts(
        &self,
        key: &Key,
        file: std::fs::File,
        size: u64,
        attributes: Attributes,
    ) -> Result<(), BackupError> {
        let mut upload =
            self.store.put_multipart_opts(key, attributes.into()).await.map_err(|error| of(key, error))?;
        let sent = match send_parts(key, &mut upload, file, size).await {
            Ok(()) => upload.complete().await.map(drop).map_err(|error| of(key, error)),
            Err(error) => Err(error),
        };
        if sent.is_err() {
            // What was sent is of no use; where this fails too, the bucket's own rules remove it.
            let _ = upload.abort().await;
        }
        sent
    }
}

async fn send_parts(
    key: &Key,
    upload: &mut Box<dyn MultipartUpload>,
    mut file: std::fs::File,
    size: u64,
) -> Result<(), BackupError> {
    let mut left = size;
    let mut under_way = stream::FuturesUnordered::new();
    while left > 0 || !under_way.is_empty() {
        if left > 0 && under_way.len() < PARTS_MAX {
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(PART_BYTES);
            let (part, rest) = read_part(file, length).await?;
            (file, left) = (rest, left - length as u64);
            under_way.push(upload.put_part(PutPayload::from_bytes(part)));
            continue;
        }
        if let Some(sent) = under_way.next().await {
            sent.map_err(|error| of(key, error))?;
        }
    }
    Ok(())
}

async fn read_part(mut file: std::fs::File, length: usize) -> Result<(Bytes, std::fs::File), BackupError> {
    let read = tokio::task::spawn_blocking(move || {
        let mut part = vec![0; length];
        file.read_exact(&mut part).map(|()| (Bytes::from(part), file))
    });
    let read = read.await.map_err(|error| std::io::Error::other(error.to_string())).and_then(|read| read);
    read.map_err(BackupError::io("reading what is uploaded"))
}

fn version(e_tag: Option<String>, version: Option<String>) -> Version {
    Version(format!("{}\n{}", e_tag.unwrap_or_default(), version.unwrap_or_default()))
}

fn update_of(version: &Version) -> UpdateVersion {
    let (e_tag, number) = version.0.split_once('\n').unwrap_or((&version.0, ""));
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    UpdateVersion { e_tag: some(e_tag), version: some(number) }
}

/// An error of the library as one of ours, in one line.
fn of(key: &Key, error: Error) -> BackupError {
    let object = || format!("object {key}");
    match error {
        Error::NotFound { .. } => BackupError::NotFound(format!("{} does not exist", object())),
        Error::AlreadyExists { .. } | Error::Precondition { .. } => BackupError::Conflict(object()),
        error => BackupError::Unavailable { what: object(), why: innermost(&error) },
    }
}

/// What the bucket or the network says, without what it is wrapped in, as far as it fits a line.
fn innermost(error: &dyn std::error::Error) -> String {
    const LENGTH_MAX: usize = 400;
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let (whole, inner) = (error.to_string(), cause.to_string());
    let text = if whole.contains(&inner) { whole } else { format!("{whole}: {inner}") };
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(LENGTH_MAX).collect()
}

fn read_attributes(attributes: &Attributes) -> Vec<(String, String)> {
    let own = attributes.iter().filter_map(|(name, value)| match name {
        Attribute::Metadata(name) => Some((name.to_ascii_lowercase(), value.as_ref().to_owned())),
        _ => None,
    });
    own.collect()
}

/// Copies an answer's body into a file without a name.
async fn into_file(key: &Key, got: GetResult, scratch: &Path) -> Result<std::fs::File, BackupError> {
    let failed = || BackupError::io(format!("receiving object {key} into {}", scratch.display()));
    let size = got.meta.size;
    let file = tempfile::tempfile_in(scratch).map_err(failed())?;
    let mut file = tokio::fs::File::from_std(file);
    let mut body = got.into_stream();
    while let Some(part) = body.next().await {
        let part = part.map_err(|error| of(key, error))?;
        tokio::io::AsyncWriteExt::write_all(&mut file, &part).await.map_err(failed())?;
    }
    tokio::io::AsyncWriteExt::flush(&mut file).await.map_err(failed())?;
    let mut file = file.into_std().await;
    let received = file.metadata().map_err(failed())?.len();
    if received != size {
        let why = format!("{received} of {size} bytes came");
        return Err(BackupError::Unavailable { what: format!("object {key}"), why });
    }
    file.rewind().map_err(failed())?;
    Ok(file)
}

impl Objects for Cloud {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Object>> {
        Box::pin(async move {
            let key = self.key(key)?;
            let got = match self.store.get(&key).await {
                Ok(got) => got,
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(of(&key, error)),
            };
            let version = version(got.meta.e_tag.clone(), got.meta.version.clone());
            let body = got.bytes().await.map_err(|error| of(&key, error))?;
            Ok(Some(Object { body, version }))
        })
    }

    fn peek<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Peeked> {
        Box::pin(async move {
            let key = self.key(key)?;
            let options = GetOptions { range: Some(range.into()), ..GetOptions::default() };
            let got = self.store.get_opts(&key, options).await.map_err(|error| of(&key, error))?;
            let attributes = read_attributes(&got.attributes);
            let body = got.bytes().await.map_err(|error| of(&key, error))?;
            Ok(Peeked { body, attributes })
        })
    }

    fn fetch<'a>(&'a self, key: &'a str, scratch: &'a Path) -> Answer<'a, Fetched> {
        Box::pin(async move {
            let key = self.key(key)?;
            let got = self.store.get(&key).await.map_err(|error| of(&key, error))?;
            let attributes = read_attributes(&got.attributes);
            Ok(Fetched { file: into_file(&key, got, scratch).await?, attributes })
        })
    }

    fn put<'a>(&'a self, key: &'a str, body: Body, attributes: &'a [(String, String)]) -> Answer<'a, ()> {
        Box::pin(async move {
            let (key, attributes) = (self.key(key)?, self.attributes(attributes));
            let body = match body {
                Body::Bytes(bytes) => bytes,
                Body::File(mut file, size) => {
                    file.rewind().map_err(BackupError::io(format!("reading what is uploaded as {key}")))?;
                    match usize::try_from(size) {
                        Ok(size) if size <= PART_BYTES => read_part(file, size).await?.0,
                        _ => return self.put_parts(&key, file, size, attributes).await,
                    }
                }
            };
            self.put_one(&key, body, attributes.into()).await.map(drop)
        })
    }

    fn put_if<'a>(&'a self, key: &'a str, body: Bytes, expected: Option<Version>) -> Answer<'a, Version> {
        Box::pin(async move {
            let key = self.key(key)?;
            let mode = expected.map_or(PutMode::Create, |version| PutMode::Update(update_of(&version)));
            self.put_one(&key, body, mode.into()).await
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Listed>> {
        Box::pin(async move {
            let whole = self.key(prefix)?;
            let base = self.key("")?;
            let below = |key: &Key| {
                let rest = key.as_ref().strip_prefix(base.as_ref())?;
                Some(rest.trim_start_matches('/').to_owned())
            };
            let listed = self.store.list((!whole.as_ref().is_empty()).then_some(&whole));
            let all: Vec<_> = listed.try_collect().await.map_err(|error| of(&whole, error))?;
            let all = all.into_iter().filter_map(|meta| {
                let modified_ms = meta.last_modified.timestamp_millis();
                Some(Listed { key: below(&meta.location)?, size_bytes: meta.size, modified_ms })
            });
            Ok(all.collect())
        })
    }

    fn delete(&self, keys: Vec<String>) -> Answer<'_, ()> {
        Box::pin(async move {
            for batch in keys.chunks(DELETE_BATCH) {
                let paths: Vec<_> = batch.iter().map(|key| self.key(key)).collect::<Result<_, _>>()?;
                let paths = stream::iter(paths.into_iter().map(Ok)).boxed();
                let mut removed = self.store.delete_stream(paths);
                while let Some(result) = removed.next().await {
                    match result {
                        Ok(_) | Err(Error::NotFound { .. }) => {}
                        Err(error) => return Err(of(&self.key("")?, error)),
                    }
                }
            }
            Ok(())
        })
    }

    fn scheme(&self) -> Scheme {
        self.scheme
    }
}
