//! Targets for [`crate::fuzz`]: what lies in a bucket, where anybody with its keys can write.

use bytes::Bytes;

use super::attributes::FileAttributes;
use super::layout::Scheme;
use super::manifest::Manifest;
use super::objects::{Object, Version};

/// A manifest.
pub fn manifest(data: &[u8]) {
    let object = Object { body: Bytes::copy_from_slice(data), version: Version(String::new()) };
    let Ok(manifest) = Manifest::decode("skein/manifest.json", &object) else { return };
    let _ = (manifest.pos(), manifest.page_size(), manifest.page_count(), manifest.log_index());
    for file in &manifest.files {
        let _ = (file.range(), file.time());
    }
    let object = Object { body: manifest.encode().into(), version: Version(String::new()) };
    assert!(Manifest::decode("skein/manifest.json", &object).is_ok_and(|again| again == manifest));
}

/// Valid manifests.
pub fn manifests() -> Vec<Vec<u8>> {
    let text = r#"{"format":1,"database":"app.db","cluster":"0123456789abcdef","epoch":3,
        "position":"000000000000002a/89abcdef01234567","index":99,"time_ms":1700000000000,"offset":0,"page_size":4096,
        "pages":12,"ended_ms":1700000000001,"files":[{"level":9,"min":"0000000000000001","max":"000000000000002a",
        "time_ms":1700000000000,"size_bytes":4096,"position":"000000000000002a/89abcdef01234567"}]}"#;
    vec![text.as_bytes().to_vec()]
}

/// The key of a file, and after a line feed each, names and values of its attributes.
pub fn key(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let key = lines.next().unwrap_or_default();
    for scheme in [Scheme::Hex, Scheme::Decimal] {
        if let Some((directory, level, range)) = scheme.parse(key) {
            assert_eq!(scheme.parse(&scheme.key(directory, level, range)), Some((directory, level, range)));
        }
    }
    let mut attributes = Vec::new();
    while let Some((name, value)) = lines.next().zip(lines.next()) {
        attributes.push((name.to_owned(), value.to_owned()));
    }
    let _ = FileAttributes::decode(&attributes);
}

/// Valid keys and attributes.
pub fn keys() -> Vec<Vec<u8>> {
    let name = "0000000000000001-000000000000002a.ltx";
    let attributes = FileAttributes {
        time: crate::types::Timestamp::from_ms(1_700_000_000_000),
        pos: "000000000000002a/89abcdef01234567".parse().expect("a valid position"),
        index: crate::types::LogIndex::new(99),
        cluster: "0123456789abcdef".to_owned(),
        epoch: 3,
    };
    let attributes: String =
        attributes.encode().into_iter().map(|(name, value)| format!("\n{name}\n{value}")).collect();
    [format!("app.db/0000/{name}{attributes}"), format!("app.db/ltx/9/{name}"), format!("0009/{name}")]
        .map(String::into_bytes)
        .to_vec()
}
