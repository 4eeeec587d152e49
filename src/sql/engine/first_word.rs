/// What a statement does to the transaction of its connection, by its first words.
///
/// SQLite's authorizer tells `BEGIN` from `COMMIT`, but not what kind of either.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FirstWord {
    /// `BEGIN` or `BEGIN DEFERRED`: it may write, or not.
    Begin,
    /// `BEGIN IMMEDIATE` or `EXCLUSIVE`.
    BeginWrite,
    /// `BEGIN TRANSACTION READONLY`, as libSQL's clients send it: to SQLite `READONLY` is the transaction's name.
    BeginReadOnly,
    /// `SAVEPOINT`, which begins a transaction outside of one.
    Savepoint,
    /// `COMMIT`, `END` or `RELEASE`.
    Commit,
    /// Anything else.
    Other,
}

impl FirstWord {
    /// Of this text.
    pub fn of(sql: &str) -> Self {
        let mut words = Words(sql);
        let mut next = || words.next().map(str::to_ascii_uppercase);
        match next().as_deref() {
            Some("COMMIT" | "END" | "RELEASE") => Self::Commit,
            Some("SAVEPOINT") => Self::Savepoint,
            Some("BEGIN") => {
                let rest: Vec<String> = std::iter::from_fn(next).take(3).collect();
                let is = |word: &str| rest.iter().any(|found| found == word);
                if is("IMMEDIATE") || is("EXCLUSIVE") {
                    Self::BeginWrite
                } else if is("READONLY") {
                    Self::BeginReadOnly
                } else {
                    Self::Begin
                }
            }
            _ => Self::Other,
        }
    }
}

/// The words of a statement until something that is none; comments are white space.
struct Words<'a>(&'a str);

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            self.0 = self.0.trim_start();
            if let Some(comment) = self.0.strip_prefix("--") {
                self.0 = comment.split_once('\n').map_or("", |(_, rest)| rest);
            } else if let Some(comment) = self.0.strip_prefix("/*") {
                self.0 = comment.split_once("*/").map_or("", |(_, rest)| rest);
            } else {
                break;
            }
        }
        let end = self.0.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_that_clients_send_are_known() {
        for (sql, word) in [
            ("BEGIN", FirstWord::Begin),
            ("begin deferred;", FirstWord::Begin),
            ("BEGIN IMMEDIATE", FirstWord::BeginWrite),
            ("/* a */ BEGIN -- b\n EXCLUSIVE TRANSACTION", FirstWord::BeginWrite),
            ("BEGIN TRANSACTION READONLY", FirstWord::BeginReadOnly),
            ("BEGIN DEFERRED TRANSACTION readonly", FirstWord::BeginReadOnly),
            ("END", FirstWord::Commit),
            ("RELEASE x", FirstWord::Commit),
            ("SAVEPOINT x", FirstWord::Savepoint),
            ("SELECT 'BEGIN'", FirstWord::Other),
            ("-- BEGIN", FirstWord::Other),
            ("", FirstWord::Other),
        ] {
            assert_eq!(FirstWord::of(sql), word, "{sql}");
        }
    }
}
