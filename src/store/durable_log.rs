use std::collections::BTreeMap;
use std::path::PathBuf;

use super::StoreError;
use crate::io::durable;
use crate::types::{DbName, LogIndex};

/// How far the database files on disk need no redo, and which databases ended after that.
///
/// File `applied`, text: the line `skein-applied 1`, the index, then a line `INDEX NAME` for each database that
/// an entry behind it dropped or renamed away: redo must not bring it back.
#[derive(Debug)]
pub(super) struct DurableLog {
    path: PathBuf,
    index: LogIndex,
    ended: BTreeMap<DbName, LogIndex>,
}

const MAGIC: &str = "skein-applied 1";

impl DurableLog {
    /// Reads the file; a missing one stands before the first entry.
    pub fn open(path: PathBuf) -> Result<Self, StoreError> {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { path, index: LogIndex::ZERO, ended: BTreeMap::new() });
            }
            Err(source) => {
                return Err(StoreError::Io { what: format!("reading {}", path.display()), source });
            }
        };
        let damaged = || {
            let path = path.display();
            StoreError::Fatal(format!(
                "{path} is damaged or of a newer version; restore it, or empty the data directory and join again"
            ))
        };
        let mut lines = text.lines();
        if lines.next() != Some(MAGIC) {
            return Err(damaged());
        }
        let index = lines.next().and_then(|line| line.parse().ok()).map(LogIndex::new).ok_or_else(damaged)?;
        let mut ended = BTreeMap::new();
        for line in lines {
            let (at, name) = line.split_once(' ').ok_or_else(damaged)?;
            let at = at.parse().map(LogIndex::new).map_err(|_| damaged())?;
            ended.insert(DbName::new(name).map_err(|_| damaged())?, at);
        }
        Ok(Self { path, index, ended })
    }

    /// Entries at or below it need no redo.
    pub fn index(&self) -> LogIndex {
        self.index
    }

    /// Moves the index up; it never moves down.
    pub fn advance(&mut self, index: LogIndex) -> Result<(), StoreError> {
        if index <= self.index {
            return Ok(());
        }
        let ended =
            self.ended.iter().filter(|(_, at)| **at > index).map(|(name, at)| (name.clone(), *at)).collect();
        self.write(index, ended)
    }

    /// Notes that entry `at` ended what had these names; one that a later entry ended again stays so.
    pub fn ended(&mut self, names: &[&DbName], at: LogIndex) -> Result<(), StoreError> {
        let mut ended = self.ended.clone();
        for name in names {
            let last = ended.entry((*name).clone()).or_insert(at);
            *last = at.max(*last);
        }
        self.write(self.index, ended)
    }

    /// The entries that ended databases, as far as redo still needs to know.
    pub fn ends(&self) -> &BTreeMap<DbName, LogIndex> {
        &self.ended
    }

    fn write(&mut self, index: LogIndex, ended: BTreeMap<DbName, LogIndex>) -> Result<(), StoreError> {
        let mut text = format!("{MAGIC}\n{index}\n");
        ended.iter().for_each(|(name, at)| text.push_str(&format!("{at} {name}\n")));
        durable::write_atomic(&self.path, text.as_bytes())
            .map_err(|source| StoreError::Io { what: format!("writing {}", self.path.display()), source })?;
        (self.index, self.ended) = (index, ended);
        Ok(())
    }
}
