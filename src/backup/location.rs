use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::BackupError;

/// Where a backup is: the URL of a path in a bucket.
///
/// `file:///DIR`, `s3://BUCKET/PATH?endpoint=..&region=..`, `gs://BUCKET/PATH`, `az://CONTAINER/PATH?account=..`.
/// Printed without what follows the `?`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Location {
    pub(super) kind: Kind,
    /// Path in the bucket, without a slash at either end.
    pub(super) path: String,
    /// What follows the `?`.
    pub(super) options: BTreeMap<String, String>,
}

/// Kind of a bucket, and its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A directory.
    File(PathBuf),
    /// S3, or what speaks its protocol.
    S3(String),
    /// Google Cloud Storage.
    Google(String),
    /// Azure Blob Storage.
    Azure(String),
}

/// Options of an S3 URL. Credentials never stand in a URL.
const S3_OPTIONS: [&str; 4] = ["endpoint", "region", "virtual-hosted", "allow-http"];
/// Options of a Google URL.
const GOOGLE_OPTIONS: [&str; 1] = ["endpoint"];
/// Options of an Azure URL.
const AZURE_OPTIONS: [&str; 3] = ["account", "endpoint", "allow-http"];

impl FromStr for Location {
    type Err = BackupError;

    fn from_str(text: &str) -> Result<Self, BackupError> {
        let invalid =
            |why: &str| BackupError::Invalid(format!("backup url {}: {why}", without_options(text)));
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| invalid("it must begin with file:///, s3://, gs:// or az://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let options =
            options(query).ok_or_else(|| invalid("options behind the ? are name=value, joined by &"))?;
        let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_matches('/');
        if path.split('/').any(|part| matches!(part, "." | ".."))
            || (path.contains("//") || path.contains(char::is_control))
        {
            return Err(invalid("its path has an empty component, a dot or two, or a control character"));
        }
        let (kind, known): (Kind, &[&str]) = match scheme {
            "file" if !bucket.is_empty() => {
                return Err(invalid("a file URL has three slashes: file:///DIR"));
            }
            "file" if path.is_empty() => return Err(invalid("it names no directory")),
            "file" => (Kind::File(PathBuf::from(format!("/{path}"))), &[]),
            "s3" => (Kind::S3(bucket.to_owned()), &S3_OPTIONS),
            "gs" => (Kind::Google(bucket.to_owned()), &GOOGLE_OPTIONS),
            "az" | "abs" => (Kind::Azure(bucket.to_owned()), &AZURE_OPTIONS),
            _ => return Err(invalid("it must begin with file:///, s3://, gs:// or az://")),
        };
        if bucket.is_empty() && scheme != "file" {
            return Err(invalid("it names no bucket"));
        }
        if bucket.contains(['@', ':']) {
            return Err(invalid("credentials do not belong in a URL: give them in the environment"));
        }
        if let Some(unknown) = options.keys().find(|name| !known.contains(&name.as_str())) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(invalid(&format!("option {unknown:?} is not known; there are {known}")));
        }
        Ok(Self { kind, path: path.to_owned(), options })
    }
}

fn without_options(text: &str) -> &str {
    text.split('?').next().unwrap_or(text)
}

fn options(query: &str) -> Option<BTreeMap<String, String>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').map(|(name, value)| Some((name.to_owned(), decode(value)?)))?)
        .collect()
}

/// Percent-decoding, for what would end a value otherwise.
fn decode(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let hex = [rest.next()?, rest.next()?];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, bucket) = match &self.kind {
            Kind::File(path) => return write!(f, "file://{}", path.display()),
            Kind::S3(bucket) => ("s3", bucket),
            Kind::Google(bucket) => ("gs", bucket),
            Kind::Azure(container) => ("az", container),
        };
        write!(f, "{scheme}://{bucket}")?;
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_and_printed_without_options() {
        for (url, shown, path) in [
            ("file:///var/backup/", "file:///var/backup", "var/backup"),
            ("s3://b/a/c?endpoint=http%3A%2F%2Fh:1&region=eu", "s3://b/a/c", "a/c"),
            ("s3://b", "s3://b", ""),
            ("gs://b/x", "gs://b/x", "x"),
            ("az://c/x?account=me", "az://c/x", "x"),
        ] {
            let location: Location = url.parse().unwrap();
            assert_eq!((location.to_string().as_str(), location.path.as_str()), (shown, path));
        }
        let location: Location = "s3://b/a?endpoint=http%3A%2F%2Fh:1&region=eu".parse().unwrap();
        assert_eq!(location.options["endpoint"], "http://h:1");
    }

    #[test]
    fn what_is_no_url_of_a_backup_is_refused_with_the_reason() {
        for (url, part) in [
            ("/var/backup", "begin with"),
            ("http://h/x", "begin with"),
            ("file://host/x", "three slashes"),
            ("file:///", "no directory"),
            ("s3:///x", "no bucket"),
            ("s3://key:secret@b/x", "environment"),
            ("s3://b/a/../c", "a dot or two"),
            ("s3://b/a?region", "name=value"),
            ("s3://b/a?secret=x", "\"secret\""),
            ("file:///x?region=y", "there are none"),
        ] {
            let error = url.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("secret=x"), "{error}");
        }
    }
}
