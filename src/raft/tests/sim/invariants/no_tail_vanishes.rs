//! What a dead primary's applications had written and nobody else has is kept in its `discarded/`.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use super::super::tails::Tail;
use crate::ltx::Decoder;

/// `discarded` is the directory of the node that left `tails`, in the end.
pub fn check<'a>(tails: impl Iterator<Item = &'a Tail>, discarded: &Path) -> Result<(), String> {
    let kept = pages_in(discarded).map_err(|error| format!("{}: {error}", discarded.display()))?;
    for tail in tails {
        let text = tail.text.as_bytes();
        if !kept.iter().any(|page| page.windows(text.len()).any(|part| part == text)) {
            return Err(format!("{} of n{} is nowhere", tail.text, tail.node));
        }
    }
    Ok(())
}

fn pages_in(discarded: &Path) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error>> {
    let mut pages = Vec::new();
    if !discarded.exists() {
        return Ok(pages);
    }
    for entry in fs::read_dir(discarded)? {
        let mut decoder = Decoder::new(BufReader::new(File::open(entry?.path())?))?;
        let mut page = Vec::new();
        while decoder.next_page(&mut page)?.is_some() {
            pages.push(page.clone());
        }
        decoder.finish()?;
    }
    Ok(pages)
}
