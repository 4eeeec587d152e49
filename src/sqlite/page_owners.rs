//! Which table each page of a database belongs to, found by walking its b-trees.
//!
//! Source: SQLite file format, sections 1.5 (the freelist), 1.6 (b-tree pages), 1.7 (overflow pages), 2.1 (records) and 2.6 (the
//! schema table). What is damaged is left out: nothing here fails on the content of a page.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{PageSize, Pgno};

/// The owner of the pages of the schema.
pub const SCHEMA_TABLE: &str = "sqlite_schema";
/// What is said of pages that hold nothing.
pub const FREELIST: &str = "(free pages)";

const INTERIOR_INDEX: u8 = 0x02;
const INTERIOR_TABLE: u8 = 0x05;
const LEAF_INDEX: u8 = 0x0a;
const LEAF_TABLE: u8 = 0x0d;
/// Size of the database header, behind which the first page's b-tree begins.
const DATABASE_HEADER: usize = 100;

/// Reads a page.
pub type ReadPage<'a, E> = dyn FnMut(Pgno, &mut [u8]) -> Result<(), E> + 'a;

/// The owner of each page of a database that has one: the table for a table and its indexes. `read` reads a page.
///
/// # Errors
/// What `read` fails with.
pub fn page_owners<E>(
    page_size: PageSize,
    pages: u32,
    read: &mut ReadPage<'_, E>,
) -> Result<BTreeMap<Pgno, String>, E> {
    let mut walk = Walk {
        pages,
        page: vec![0; page_size.len()],
        usable: page_size.len(),
        owners: BTreeMap::new(),
        read,
    };
    if pages == 0 {
        return Ok(walk.owners);
    }
    (walk.read)(Pgno::FIRST, &mut walk.page)?;
    walk.usable = page_size.len().saturating_sub(usize::from(walk.page[20])).max(480);
    let trunk = word(&walk.page, 32);
    let mut roots = Vec::new();
    walk.tree(Pgno::FIRST, SCHEMA_TABLE, &mut |record| roots.extend(root_of(record)))?;
    for (table, root) in roots {
        walk.tree(root, &table, &mut |_| {})?;
    }
    walk.freelist(trunk)?;
    Ok(walk.owners)
}

struct Walk<'a, E> {
    pages: u32,
    page: Vec<u8>,
    usable: usize,
    owners: BTreeMap<Pgno, String>,
    read: &'a mut ReadPage<'a, E>,
}

impl<E> Walk<'_, E> {
    /// Reads a page that nobody owns yet, for `owner`; `false` where it is another's, or none.
    fn take(&mut self, pgno: Pgno, owner: &str) -> Result<bool, E> {
        if pgno.get() > self.pages || self.owners.contains_key(&pgno) {
            return Ok(false);
        }
        (self.read)(pgno, &mut self.page)?;
        self.owners.insert(pgno, owner.to_owned());
        Ok(true)
    }

    /// Walks a b-tree; `record` is given the local part of each record of a table's leaves.
    fn tree(&mut self, root: Pgno, owner: &str, record: &mut dyn FnMut(&[u8])) -> Result<(), E> {
        let (mut open, mut overflows) = (vec![root], BTreeSet::new());
        while let Some(pgno) = open.pop() {
            if !self.take(pgno, owner)? {
                continue;
            }
            let begin = if pgno == Pgno::FIRST { DATABASE_HEADER } else { 0 };
            let header = &self.page[begin..];
            let kind = header[0];
            let interior = matches!(kind, INTERIOR_INDEX | INTERIOR_TABLE);
            if !interior && !matches!(kind, LEAF_INDEX | LEAF_TABLE) {
                continue;
            }
            let cells = usize::from(u16::from_be_bytes([header[3], header[4]]));
            if interior {
                open.extend(Pgno::new(word(header, 8)));
            }
            let pointers = begin + if interior { 12 } else { 8 };
            for cell in 0..cells {
                let Some(pointer) = self.page.get(pointers + cell * 2..pointers + cell * 2 + 2) else {
                    break;
                };
                let at = usize::from(u16::from_be_bytes([pointer[0], pointer[1]]));
                let Some(cell) = self.page.get(at..) else { continue };
                let child = interior.then(|| Pgno::new(word(cell, 0))).flatten();
                open.extend(child);
                let Some((local, overflow)) = payload(cell, kind, self.usable) else { continue };
                overflows.extend(overflow);
                if kind == LEAF_TABLE {
                    record(local);
                }
            }
        }
        for first in overflows {
            let mut next = Some(first);
            while let Some(pgno) = next {
                next = if self.take(pgno, owner)? { Pgno::new(word(&self.page, 0)) } else { None };
            }
        }
        Ok(())
    }

    fn freelist(&mut self, trunk: u32) -> Result<(), E> {
        let mut next = Pgno::new(trunk);
        while let Some(pgno) = next {
            if !self.take(pgno, FREELIST)? {
                break;
            }
            next = Pgno::new(word(&self.page, 0));
            let count = (word(&self.page, 4) as usize).min(self.page.len() / 4 - 2);
            for leaf in (0..count).filter_map(|leaf| Pgno::new(word(&self.page, 8 + leaf * 4))) {
                if leaf.get() <= self.pages {
                    self.owners.entry(leaf).or_insert_with(|| FREELIST.to_owned());
                }
            }
        }
        Ok(())
    }
}

/// The part of a cell's payload that is in the page, and the page where it goes on.
fn payload(cell: &[u8], kind: u8, usable: usize) -> Option<(&[u8], Option<Pgno>)> {
    let mut rest = match kind {
        INTERIOR_TABLE => return None,
        INTERIOR_INDEX => cell.get(4..)?,
        _ => cell,
    };
    let size = usize::try_from(take_varint(&mut rest)?).ok()?;
    if kind == LEAF_TABLE {
        take_varint(&mut rest)?;
    }
    let max = if kind == LEAF_TABLE { usable - 35 } else { (usable - 12) * 64 / 255 - 23 };
    if size <= max {
        return Some((rest.get(..size)?, None));
    }
    let min = (usable - 12) * 32 / 255 - 23;
    let fits = min + (size - min) % (usable - 4);
    let local = if fits <= max { fits } else { min };
    let overflow = rest.get(local..local + 4)?;
    Some((&rest[..local], Pgno::new(word(overflow, 0))))
}

/// Table and root page of a record of the schema: columns type, name, tbl_name, rootpage.
fn root_of(record: &[u8]) -> Option<(String, Pgno)> {
    let mut header = record;
    let header_size = usize::try_from(take_varint(&mut header)?).ok()?;
    let mut values = record.get(header_size..)?;
    let mut column = || -> Option<(u64, &[u8])> {
        let kind = take_varint(&mut header)?;
        let size = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind as usize,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            text_or_blob => usize::try_from((text_or_blob - 12) / 2).ok()?,
        };
        let (value, after) = values.split_at_checked(size)?;
        values = after;
        Some((kind, value))
    };
    column()?;
    column()?;
    let (_, table) = column()?;
    let (kind, root) = column()?;
    let root = match kind {
        9 => 1,
        _ => root.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte)),
    };
    Some((String::from_utf8_lossy(table).into_owned(), Pgno::new(u32::try_from(root).ok()?)?))
}

/// A big-endian number of 4 bytes; 0 where they are not there.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
}

/// Takes a varint of SQLite: 7 bits per byte, high bits first, all 8 of a ninth. Source: SQLite file format, section 1.6.
fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for nth in 0..9 {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        if nth == 8 {
            return Some(number << 8 | u64::from(*byte));
        }
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use rusqlite::Connection;

    use super::*;

    fn owners(file: &[u8], page_size: u32) -> BTreeMap<Pgno, String> {
        let size = PageSize::new(page_size).unwrap();
        let pages = file.len() / page_size as usize;
        let mut read = |pgno: Pgno, page: &mut [u8]| -> Result<(), Infallible> {
            let at = pgno.offset(size) as usize;
            page.copy_from_slice(&file[at..at + page.len()]);
            Ok(())
        };
        page_owners(size, pages as u32, &mut read).unwrap()
    }

    /// SQLite itself says which pages belong to which b-tree.
    #[test]
    fn pages_belong_to_what_sqlite_says_they_belong_to() {
        for page_size in [512, 4096] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.db");
            let connection = Connection::open(&path).unwrap();
            connection
                .execute_batch(&format!(
                    "PRAGMA page_size={page_size};
                     CREATE TABLE a(n INTEGER PRIMARY KEY, v); CREATE INDEX a_v ON a(v);
                     CREATE TABLE b(k TEXT PRIMARY KEY, v) WITHOUT ROWID;
                     CREATE TABLE gone(v);
                     WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 400)
                     INSERT INTO a SELECT n, hex(randomblob(n)) FROM c;
                     INSERT INTO b SELECT v, zeroblob(n * 9) FROM a; INSERT INTO gone SELECT v FROM a;
                     DROP TABLE gone;"
                ))
                .unwrap();
            let file = std::fs::read(&path).unwrap();
            let found = owners(&file, page_size);
            let mut statement = connection.prepare("SELECT pageno, name FROM dbstat").unwrap();
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
            let mut said = 0;
            for row in rows.unwrap() {
                let (pgno, name): (u32, String) = row.unwrap();
                let table = match name.as_str() {
                    "a_v" => "a",
                    name => name,
                };
                assert_eq!(
                    found.get(&Pgno::new(pgno).unwrap()).map(String::as_str),
                    Some(table),
                    "page {pgno}"
                );
                said += 1;
            }
            let free: u32 = connection.query_row("PRAGMA freelist_count", [], |row| row.get(0)).unwrap();
            let free = free as usize;
            assert!(free > 0 && said > 100 / (page_size as usize / 512));
            assert_eq!(found.values().filter(|owner| *owner == FREELIST).count(), free);
            assert_eq!(found.len(), said + free);
        }
    }

    #[test]
    fn damaged_pages_are_walked_to_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let connection = Connection::open(&path).unwrap();
        let rows = "PRAGMA page_size=512; CREATE TABLE a(v); CREATE INDEX i ON a(v);
             WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 99)
             INSERT INTO a SELECT hex(randomblob(n * 7)) FROM c;";
        connection.execute_batch(rows).unwrap();
        let file = std::fs::read(&path).unwrap();
        for step in [3, 7, 101, 509] {
            for fill in [0, 0xff, 0x80, 1, 2] {
                let mut damaged = file.clone();
                damaged.iter_mut().skip(step).step_by(step).for_each(|byte| *byte = fill);
                assert!(owners(&damaged, 512).len() <= file.len() / 512);
            }
        }
    }
}
