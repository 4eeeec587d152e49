use clap::ValueEnum;

/// How results are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Format {
    /// Columns for people.
    Table,
    /// RFC 4180, with the names of the columns as the first line.
    Csv,
    /// One array of objects for each statement that gives rows.
    Json,
}
