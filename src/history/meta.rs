use std::path::Path;

use super::HistoryError;
use crate::io::durable;
use crate::types::{LogIndex, PageCount, PageSize, Pos, Timestamp};

/// What the file `generation` says.
///
/// Text: the line `skein-history 1`, then `page_size BYTES`, `base POS PAGES MS` (what the file `base` has at least), `first TXID`
/// (points begin there; above the base while change sets are being put into it), `named INDEX` (the log entry that gave the database
/// its name), and once it has ended `ended MS WHY`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Meta {
    /// Page size in bytes.
    pub page_size: PageSize,
    /// What the base holds.
    pub base: Base,
    /// The number of the transaction that points begin with; 0 before the first.
    pub first: u64,
    /// The log entry that gave the database its name: drops and renames up to there are known already.
    pub named: LogIndex,
    /// Why, and when, nothing follows any more.
    pub ended: Option<End>,
}

/// The pages that a generation begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Base {
    /// Their position.
    pub pos: Pos,
    /// How many they are.
    pub pages: PageCount,
    /// When the database was like that.
    pub time: Timestamp,
}

/// The end of a generation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct End {
    /// When.
    pub time: Timestamp,
    /// Why; the database was dropped where this is empty.
    pub why: String,
}

const MAGIC: &str = "skein-history 1";
const FILE: &str = "generation";

impl Meta {
    /// Reads the file in a generation's directory.
    ///
    /// # Errors
    /// Where it is not there, or is damaged.
    pub fn read(dir: &Path) -> Result<Self, HistoryError> {
        let path = dir.join(FILE);
        let text = std::fs::read_to_string(&path).map_err(HistoryError::io("reading", &path))?;
        parse(&text).ok_or_else(|| {
            HistoryError::Corrupt(format!("{} is damaged, or of a newer version", path.display()))
        })
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// Where it cannot be written; the old one stays.
    pub fn write(&self, dir: &Path) -> Result<(), HistoryError> {
        let path = dir.join(FILE);
        durable::write_atomic(&path, self.text().as_bytes()).map_err(HistoryError::io("writing", &path))
    }

    fn text(&self) -> String {
        let Base { pos, pages, time } = self.base;
        let mut text = format!(
            "{MAGIC}\npage_size {}\nbase {pos} {pages} {}\nfirst {:016x}\nnamed {}\n",
            self.page_size.get(),
            time.ms(),
            self.first,
            self.named
        );
        if let Some(End { time, why }) = &self.ended {
            let why = why.replace('\n', " ");
            text.push_str(&format!("ended {} {why}\n", time.ms()));
        }
        text
    }
}

fn parse(text: &str) -> Option<Meta> {
    let mut lines = text.lines();
    if lines.next() != Some(MAGIC) {
        return None;
    }
    let page_size = lines.next()?.strip_prefix("page_size ")?.parse().ok()?;
    let mut base = lines.next()?.strip_prefix("base ")?.split(' ');
    let base = Base {
        pos: base.next()?.parse().ok()?,
        pages: PageCount::new(base.next()?.parse().ok()?),
        time: Timestamp::from_ms(base.next()?.parse().ok()?),
    };
    let first = u64::from_str_radix(lines.next()?.strip_prefix("first ")?, 16).ok()?;
    let named = LogIndex::new(lines.next()?.strip_prefix("named ")?.parse().ok()?);
    let ended = match lines.next() {
        None => None,
        Some(line) => {
            let (time, why) = line.strip_prefix("ended ")?.split_once(' ')?;
            Some(End { time: Timestamp::from_ms(time.parse().ok()?), why: why.to_owned() })
        }
    };
    Some(Meta { page_size: PageSize::new(page_size).ok()?, base, first, named, ended })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Checksum, Txid};

    #[test]
    fn the_file_round_trips_and_every_cut_line_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = Base {
            pos: Pos::new(Txid::new(7).unwrap(), Checksum::new(9)),
            pages: PageCount::new(3),
            time: Timestamp::from_ms(1_700_000_000_000),
        };
        for ended in [None, Some(""), Some("the disk\nwas full")] {
            let ended = ended.map(|why| End { time: Timestamp::from_ms(5), why: why.to_owned() });
            let meta = Meta { page_size: PageSize::DEFAULT, base, first: 9, named: LogIndex::new(4), ended };
            meta.write(dir.path()).unwrap();
            let read = Meta::read(dir.path()).unwrap();
            assert_eq!(read.text(), meta.text());
            assert_eq!((read.base, read.first, read.named), (base, 9, LogIndex::new(4)));
        }
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for kept in 0..5 {
            assert_eq!(parse(&lines[..kept].join("\n")), None);
        }
    }
}
