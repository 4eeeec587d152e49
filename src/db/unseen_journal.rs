//! What is known of a rollback journal whose end no request tells of.
//!
//! Where the kernel writes the journal by itself, a transaction that ends by zeroing the journal's header
//! (`journal_mode=PERSIST`, and every other mode under `locking_mode=EXCLUSIVE`) is seen at the fsync that follows. With
//! `synchronous=OFF` there is none, and an exclusive connection does not close its journal either. So the header is
//! remembered when the transaction first writes to the database: each transaction draws another nonce, so another header,
//! or none, means that it has ended.
//! Source: `pager.c`, pager_end_transaction(), zeroJournalHdr() and writeJournalHdr().

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::sqlite::journal::{JOURNAL_HEADER_SIZE, JournalHeader, RecordCount};

type RawHeader = [u8; JOURNAL_HEADER_SIZE];

/// The journal that the kernel writes by itself.
#[derive(Debug, Default)]
pub(super) struct UnseenJournal {
    /// Such a journal may be open.
    passed_through: AtomicBool,
    /// The header of the transaction that is staged, where no fsync will tell of its end.
    begun: Mutex<Option<RawHeader>>,
    /// A transaction that had ended was not committed, and the connection that made it has what it wrote in its cache.
    lost: AtomicBool,
}

impl UnseenJournal {
    /// The kernel writes the journal by itself from now on.
    pub fn set_passed_through(&self) {
        self.passed_through.store(true, Ordering::SeqCst);
    }

    /// A transaction begins to write to the database; says whether nothing will tell of its end.
    pub fn begin(&self, journal: &Path) -> bool {
        if !self.passed_through.load(Ordering::SeqCst) {
            return false;
        }
        let unsynced = |header: &RawHeader| {
            JournalHeader::parse(header).is_ok_and(|header| header.records == RecordCount::ByFileSize)
        };
        let mut begun = self.begun();
        *begun = header_of(journal).filter(unsynced);
        begun.is_some()
    }

    /// Whether that transaction has ended; `None` where a request tells of its end.
    pub fn has_ended(&self, journal: &Path) -> Option<bool> {
        let begun = (*self.begun())?;
        Some(header_of(journal) != Some(begun))
    }

    /// Says whether a connection goes on with a transaction that was not committed.
    pub fn set_lost(&self, lost: bool) {
        self.lost.store(lost, Ordering::SeqCst);
    }

    /// Whether a connection goes on with a transaction that was not committed.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// Nobody has the database open any more.
    pub fn forget(&self) {
        self.passed_through.store(false, Ordering::SeqCst);
        self.set_lost(false);
        *self.begun() = None;
    }

    fn begun(&self) -> MutexGuard<'_, Option<RawHeader>> {
        self.begun.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn header_of(journal: &Path) -> Option<RawHeader> {
    let mut header = [0; JOURNAL_HEADER_SIZE];
    let read = File::open(journal).and_then(|file| file.read_exact_at(&mut header, 0));
    read.is_ok().then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A journal header with this number of records, or as many as the file has.
    fn header(records: u32, nonce: u32) -> Vec<u8> {
        let mut header = vec![0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
        for field in [records, nonce, 10, 512, 4096] {
            header.extend_from_slice(&field.to_be_bytes());
        }
        header
    }

    #[test]
    fn a_journal_that_is_not_synced_has_ended_when_it_has_another_header_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = UnseenJournal::default();
        std::fs::write(&path, header(u32::MAX, 1)).unwrap();
        assert!(!journal.begin(&path), "its writes are seen");
        journal.set_passed_through();
        std::fs::write(&path, header(0, 1)).unwrap();
        assert!(!journal.begin(&path) && journal.has_ended(&path).is_none(), "its end is synced");
        std::fs::write(&path, header(u32::MAX, 1)).unwrap();
        assert!(journal.begin(&path));
        assert_eq!(journal.has_ended(&path), Some(false));
        for ended in [header(u32::MAX, 2), vec![0; 28], Vec::new()] {
            std::fs::write(&path, ended).unwrap();
            assert_eq!(journal.has_ended(&path), Some(true));
        }
        journal.forget();
        assert!(journal.has_ended(&path).is_none());
    }
}
