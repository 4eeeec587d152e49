//! The rollback journal.
