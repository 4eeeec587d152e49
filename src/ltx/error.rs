use std::io;

use crate::types::Pgno;

/// What went wrong with an LTX file, and where.
#[derive(Debug, thiserror::Error)]
pub enum LtxError {
    /// The reader or writer failed.
    #[error("ltx: byte {offset}: {source}")]
    Io {
        /// Bytes read or written before.
        offset: u64,
        /// What the reader or writer said.
        source: io::Error,
    },
    /// The file ends too early: not all of it is here.
    #[error("ltx: byte {offset}: file is cut short inside the {inside}")]
    CutShort {
        /// Bytes there are.
        offset: u64,
        /// The part that is incomplete.
        inside: &'static str,
    },
    /// The file is of a version or has a feature this program does not know.
    #[error("ltx: byte {offset}: {why}")]
    Unsupported {
        /// Where the file says so.
        offset: u64,
        /// What is not known.
        why: String,
    },
    /// The file is damaged, or breaks a rule of the format.
    #[error("ltx: byte {offset}{}: {why}", at_page(.pgno))]
    Corrupt {
        /// Where the damage was seen.
        offset: u64,
        /// The page in question, if it is one.
        pgno: Option<Pgno>,
        /// The rule broken.
        why: String,
    },
    /// What was asked for cannot be written as LTX.
    #[error("ltx: cannot write{}: {why}", at_page(.pgno))]
    Invalid {
        /// The page in question, if it is one.
        pgno: Option<Pgno>,
        /// The rule that forbids it.
        why: String,
    },
    /// One of the files to compact is at fault.
    #[error("ltx: input {input} of the compaction: {source}")]
    Input {
        /// Index of the file, from 0.
        input: usize,
        /// What is wrong with it.
        source: Box<LtxError>,
    },
}

impl LtxError {
    /// Whether the bytes are at fault, not the reader of them: reading again gives the same error.
    pub fn is_damage(&self) -> bool {
        match self {
            LtxError::CutShort { .. } | LtxError::Unsupported { .. } | LtxError::Corrupt { .. } => true,
            LtxError::Io { .. } | LtxError::Invalid { .. } => false,
            LtxError::Input { source, .. } => source.is_damage(),
        }
    }

    pub(super) fn invalid(why: impl Into<String>) -> Self {
        LtxError::Invalid { pgno: None, why: why.into() }
    }

    pub(super) fn invalid_page(pgno: Pgno, why: impl Into<String>) -> Self {
        LtxError::Invalid { pgno: Some(pgno), why: why.into() }
    }

    pub(super) fn corrupt(offset: u64, why: impl Into<String>) -> Self {
        LtxError::Corrupt { offset, pgno: None, why: why.into() }
    }

    pub(super) fn corrupt_page(offset: u64, pgno: Pgno, why: impl Into<String>) -> Self {
        LtxError::Corrupt { offset, pgno: Some(pgno), why: why.into() }
    }
}

fn at_page(pgno: &Option<Pgno>) -> String {
    pgno.map_or_else(String::new, |pgno| format!(" (page {pgno})"))
}
