//! Files of other programs, good and damaged: SQLite's WALs and journals, Litestream's LTX files.

mod journal_of_sqlite;
mod ltx_of_litestream;
mod wal_of_sqlite;
