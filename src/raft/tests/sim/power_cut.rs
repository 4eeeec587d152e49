//! What a crash leaves of a node's directory.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::dice;
use crate::io::power::Unsynced;

/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// How a node dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Death {
    /// Its process is killed: everything written is there.
    Killed,
    /// The power is cut: of what was not synced any part may be there.
    PowerCut,
}

/// Copies a directory with everything in it.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let mut entries = fs::read_dir(from)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            match fs::copy(entry.path(), target) {
                // A segment being filled was renamed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                copied => drop(copied?),
            }
        }
    }
    Ok(())
}

/// How much of what was not synced is there.
#[derive(Clone, Copy)]
enum Keeps {
    All,
    Nothing,
    /// Each sector by chance.
    Some,
    /// Up to a point.
    Beginning,
}

fn keeps() -> Keeps {
    dice::pick(&[Keeps::All, Keeps::Nothing, Keeps::Some, Keeps::Beginning]).unwrap_or(Keeps::All)
}

/// Takes from the copy of a log or of blobs in `dir` what was not synced.
pub fn tear(dir: &Path, unsynced: Vec<Unsynced>) -> io::Result<()> {
    let keeps = keeps();
    let mut broken = false;
    // Backwards: a later write may have gone over an earlier one.
    let mut undo = Vec::new();
    for write in unsynced {
        let first = write.offset - write.offset % SECTOR as u64;
        let end = write.offset + write.before.len() as u64;
        for sector in (first..end).step_by(SECTOR) {
            broken |= dice::one_in(4);
            let stays = match keeps {
                Keeps::All => true,
                Keeps::Nothing => false,
                Keeps::Some => dice::one_in(2),
                Keeps::Beginning => !broken,
            };
            let (from, to) = (sector.max(write.offset), (sector + SECTOR as u64).min(end));
            if !stays {
                let part = (from - write.offset) as usize..(to - write.offset) as usize;
                undo.push((write.path.clone(), from, write.before[part].to_vec()));
            }
        }
    }
    for (path, offset, before) in undo.into_iter().rev() {
        let copy = dir.join(path.file_name().unwrap_or_default());
        fs::File::options().write(true).open(copy)?.write_all_at(&before, offset)?;
    }
    Ok(())
}

/// Makes of the copy of the databases in `dir`, and of how they were when last durable, a mixture of both.
pub fn tear_databases(dir: &Path, synced: &Path) -> io::Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (now, before) = (entry.path(), synced.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            if !before.exists() && now.join("database").exists() && dice::one_in(3) {
                // Not even its name is there.
                fs::remove_dir_all(now)?;
            } else {
                tear_databases(&now, &before)?;
            }
        } else if matches!(entry.file_name().to_str(), Some("database" | "pages")) {
            let old = match fs::read(&before) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                old => old?,
            };
            let new = fs::read(&now)?;
            fs::write(&now, mixture(&old, &new))?;
        }
    }
    Ok(())
}

fn mixture(old: &[u8], new: &[u8]) -> Vec<u8> {
    let keeps = keeps();
    let length = match keeps {
        Keeps::All => new.len(),
        Keeps::Nothing => old.len(),
        _ if dice::one_in(2) => old.len(),
        _ => new.len(),
    };
    let mut mixed = vec![0; length];
    let mut broken = false;
    for (at, sector) in mixed.chunks_mut(SECTOR).enumerate() {
        broken |= dice::one_in(8);
        let stays = match keeps {
            Keeps::All => true,
            Keeps::Nothing => false,
            Keeps::Some => dice::one_in(2),
            Keeps::Beginning => !broken,
        };
        let from = if stays { new } else { old };
        let there = from.get(at * SECTOR..from.len().min(at * SECTOR + sector.len())).unwrap_or_default();
        sector[..there.len()].copy_from_slice(there);
    }
    mixed
}
