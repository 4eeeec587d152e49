//! Large change sets: files that voters hold beside the log.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use super::dice;
use super::node::layout_of;
use super::world::World;
use crate::io::blobs::BlobStore;
use crate::io::power;
use crate::ltx::{BlobRef, Body, ChangeSet, Decoder};

/// One change set in this many is taken for a large one.
const LARGE_ONE_IN: u64 = 5;

/// Now and then moves a change set's content from the entry to the node's blobs, as the capture of a large one does.
pub fn move_out(blobs: &BlobStore, set: &mut ChangeSet) -> Result<(), String> {
    let Body::Inline(bytes) = &set.body else { return Ok(()) };
    if !dice::one_in(LARGE_ONE_IN) {
        return Ok(());
    }
    let digest = bytes.last_chunk().map_or(0, |tail| u64::from_be_bytes(*tail));
    let blob = BlobRef { digest, size_bytes: bytes.len() as u64 };
    store(blobs, blob, bytes).map_err(|error| error.to_string())?;
    set.body = Body::Blob(blob);
    Ok(())
}

fn store(blobs: &BlobStore, blob: BlobRef, bytes: &[u8]) -> io::Result<()> {
    let mut writer = blobs.create()?;
    writer.write_all(bytes)?;
    blobs.keep(writer, (blob.digest, blob.size_bytes))
}

/// Copies a blob from one node to another.
pub fn copy(from: &BlobStore, to: &BlobStore, blob: BlobRef) -> io::Result<()> {
    let key = (blob.digest, blob.size_bytes);
    if to.contains(key) {
        return Ok(());
    }
    let mut writer = to.create()?;
    io::copy(&mut from.open_blob(key)?, &mut writer)?;
    to.keep(writer, key)
}

/// Brings a blob that an entry names to a node that lacks it, from whichever node has it.
pub fn fetch(world: &World, blob: BlobRef, to: &BlobStore) -> Result<(), String> {
    let holder = holders(world, blob).first().copied().ok_or_else(|| format!("nobody holds blob {blob}"))?;
    let copied = BlobStore::open(layout_of(world, holder).blobs()).and_then(|from| copy(&from, to, blob));
    copied.map_err(|error| format!("blob {blob}: {error}"))
}

/// The nodes, running or not, on whose disks the blob is and would be after a power cut.
pub fn holders(world: &World, blob: BlobRef) -> Vec<u64> {
    let path =
        |id: u64| layout_of(world, id).blobs().join(format!("{:016x}-{:016x}", blob.digest, blob.size_bytes));
    world.nodes().into_iter().filter(|id| is_whole(path(*id))).collect()
}

fn is_whole(path: PathBuf) -> bool {
    let Ok(file) = File::open(&path) else { return false };
    let Ok(mut decoder) = Decoder::new(io::BufReader::new(file)) else { return false };
    let mut page = Vec::new();
    while let Ok(Some(_)) = decoder.next_page(&mut page) {}
    decoder.finish().is_ok() && power::is_synced(&path)
}
