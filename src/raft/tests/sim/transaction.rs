//! Real transactions: SQLite changes a copy of the database, the pages that differ are the change set.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;

use super::dice;
use crate::ltx::{Body, ChangeSet, Compression, Encoder, Header, page_checksum};
use crate::types::{Checksum, DbName, PageCount, PageSize, Pgno, Pos, TxidRange};

/// Offsets of the two bytes of the SQLite header that say WAL (2) or rollback journal (1).
const MODE_OFFSET: usize = 18;

/// A database of the simulation.
#[derive(Clone, Debug)]
pub struct Kind {
    pub db: DbName,
    pub page_size: u32,
    /// What its header says: 1 or 2.
    pub mode: u8,
}

impl Kind {
    /// The same database with what its header says by now: a rename may have brought it the content of another one.
    fn as_it_is(&self, image: &[u8]) -> Self {
        let Some(header) = image.get(..MODE_OFFSET + 1) else { return self.clone() };
        let page_size = u32::from(u16::from_be_bytes([header[16], header[17]]));
        Self { db: self.db.clone(), page_size, mode: header[MODE_OFFSET] }
    }
}

/// The databases of every simulation.
pub fn kinds() -> Vec<Kind> {
    let kind = |name: &str, page_size, mode| Kind { db: DbName::new(name).unwrap(), page_size, mode };
    vec![kind("a.db", 512, 1), kind("dir/b.db", 1024, 2), kind("c.db", 4096, 2)]
}

/// Transaction `number` on a database that stands at `pos` and has the bytes `image`.
pub fn make(kind: &Kind, pos: Pos, image: &[u8], number: u64, scratch: &Path) -> Result<ChangeSet, String> {
    let kind = &kind.as_it_is(image);
    let after = change(kind, image, number, scratch)?;
    let page_size = kind.page_size as usize;
    let pages = |image: &[u8]| -> Vec<(Pgno, Vec<u8>)> {
        let numbers = (1..).filter_map(Pgno::new);
        numbers.zip(image.chunks(page_size).map(<[u8]>::to_vec)).collect()
    };
    let (old, new) = (pages(image), pages(&after));
    let post = new.iter().fold(Checksum::EMPTY, |sum, (pgno, page)| sum ^ page_checksum(*pgno, page));
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", kind.db);
    let size = PageSize::new(kind.page_size).map_err(|error| failed(&error))?;
    let range = TxidRange::single(pos.next_txid());
    let pre = pos.txid.map(|_| pos.checksum);
    let commit = PageCount::new(new.len() as u32);
    let mut encoder = Encoder::new(Vec::new(), Header::new(size, commit, range, pre), Compression::Lz4)
        .map_err(|error| failed(&error))?;
    for (at, (pgno, page)) in new.iter().enumerate() {
        if old.get(at).is_none_or(|(_, before)| before != page) {
            encoder.page(*pgno, page).map_err(|error| failed(&error))?;
        }
    }
    let finished = encoder.finish(Some(post)).map_err(|error| failed(&error))?;
    let body = Body::Inline(Bytes::from(finished.writer));
    Ok(ChangeSet { db: kind.db.clone(), range, pre: pos.checksum, post, page_size: size, commit, body })
}

/// What SQLite makes of the database.
fn change(kind: &Kind, image: &[u8], number: u64, scratch: &Path) -> Result<Vec<u8>, String> {
    put(scratch, image).map_err(|error| error.to_string())?;
    sql(kind, image.is_empty(), number, scratch).map_err(|error| format!("{}: {error}", kind.db))?;
    let mut after = std::fs::read(scratch).map_err(|error| error.to_string())?;
    after[MODE_OFFSET..MODE_OFFSET + 2].fill(kind.mode);
    Ok(after)
}

fn put(scratch: &Path, image: &[u8]) -> io::Result<()> {
    std::fs::write(scratch, image)?;
    if !image.is_empty() {
        std::fs::File::options().write(true).open(scratch)?.write_all_at(&[1, 1], MODE_OFFSET as u64)?;
    }
    Ok(())
}

fn sql(kind: &Kind, empty: bool, number: u64, scratch: &Path) -> rusqlite::Result<()> {
    let connection = rusqlite::Connection::open(scratch)?;
    connection.execute_batch("PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF;")?;
    if empty {
        connection.execute_batch(&format!("PRAGMA page_size = {};", kind.page_size))?;
        connection.execute_batch("CREATE TABLE done (number INTEGER PRIMARY KEY, what BLOB);")?;
    }
    let length = if dice::one_in(12) { dice::below(9000) } else { dice::below(300) };
    let what: Vec<u8> = (0..length).map(|_| dice::draw() as u8).collect();
    connection.execute("INSERT INTO done VALUES (?1, ?2)", (number as i64, what))?;
    match dice::below(30) {
        0 => connection.execute_batch("VACUUM")?,
        1..=6 => {
            // Shrinks what others wrote: the database gets free pages, and fewer pages with the next VACUUM.
            let (rest, of) = (dice::below(3) as i64, 3);
            connection.execute("UPDATE done SET what = x'00' WHERE number % ?1 = ?2", (of, rest))?;
        }
        _ => {}
    }
    Ok(())
}
