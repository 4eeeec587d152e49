//! The change sets that nodes dropped and kept: what of them can be found again.

use std::collections::HashSet;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use skein::ltx::Decoder;

use super::nodes::Nodes;
use crate::harness;

/// What all nodes have kept of one database.
#[derive(Debug, Default)]
pub struct Kept {
    pub files: usize,
    /// Markers of the operations in their pages.
    pub markers: HashSet<String>,
}

impl Kept {
    /// Looks into every node's `discarded/`.
    ///
    /// # Errors
    /// Where `skein ltx verify` refuses a file.
    pub fn of(nodes: &Nodes, db: &str) -> Result<Self, String> {
        let mut kept = Self::default();
        for index in 0..nodes.len() {
            let prefix = format!("{db}-");
            let is_of_db = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(&prefix);
            let files: Vec<_> = nodes.discarded(index).into_iter().filter(is_of_db).collect();
            if files.is_empty() {
                continue;
            }
            let verified = harness::skein().args(["ltx", "verify"]).args(&files).output().unwrap();
            if !verified.status.success() {
                let said = String::from_utf8_lossy(&verified.stderr).into_owned();
                return Err(format!("{} kept a damaged change set: {said}", nodes.name(index)));
            }
            kept.files += files.len();
            for file in &files {
                kept.markers.extend(markers(file)?);
            }
        }
        Ok(kept)
    }
}

/// The markers in the pages of a change set.
fn markers(file: &PathBuf) -> Result<HashSet<String>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let opened = BufReader::new(File::open(file).map_err(|error| failed(&error))?);
    let mut decoder = Decoder::new(opened).map_err(|error| failed(&error))?;
    let (mut found, mut page) = (HashSet::new(), Vec::new());
    while decoder.next_page(&mut page).map_err(|error| failed(&error))?.is_some() {
        found.extend(markers_in(&page));
    }
    Ok(found)
}

fn markers_in(page: &[u8]) -> HashSet<String> {
    let starts = page.iter().enumerate().filter(|(_, byte)| **byte == b'<').map(|(start, _)| start);
    let whole = starts.filter_map(|start| {
        let end = page[start..].iter().position(|byte| *byte == b'>')?;
        let text = std::str::from_utf8(&page[start..=start + end]).ok()?;
        text.contains('/').then(|| text.to_owned())
    });
    whole.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::content;

    #[test]
    fn markers_are_found_in_a_page_of_other_things() {
        let mut page = b"\0<\xff<>".to_vec();
        page.extend(content("n1c2w", 7).bytes());
        page.extend(b"\x01 <cut");
        assert_eq!(markers_in(&page), HashSet::from(["<n1c2w/7>".to_owned()]));
    }
}
