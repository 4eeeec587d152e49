use crate::types::{DbName, Globs};

/// What a client may do in a database by SQL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SqlRight {
    /// Read.
    Read,
    /// Read and write.
    Write,
}

/// What a token allows by SQL, database by database.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct SqlGrant {
    /// In every database.
    everywhere: Option<SqlRight>,
    /// In those that are named.
    named: Vec<(SqlRight, Globs)>,
}

impl SqlGrant {
    /// The same in every database.
    pub fn everywhere(right: SqlRight) -> Self {
        Self { everywhere: Some(right), named: Vec::new() }
    }

    /// This too, in the databases that `globs` names; none where it names none.
    pub fn with(mut self, right: SqlRight, globs: Globs) -> Self {
        // No pattern at all would mean every database.
        if !globs.patterns().is_empty() {
            self.named.push((right, globs));
        }
        self
    }

    /// What it allows in a database.
    pub fn of(&self, db: &DbName) -> Option<SqlRight> {
        let named = self.named.iter().filter(|(_, globs)| globs.matches(db)).map(|(right, _)| *right);
        named.chain(self.everywhere).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_that_any_part_allows_counts() {
        let db = |name| DbName::new(name).unwrap();
        let globs = |pattern: &str| Globs::new(vec![pattern.to_owned()]).unwrap();
        let grant =
            SqlGrant::default().with(SqlRight::Read, globs("tenants/*")).with(SqlRight::Write, globs("a.db"));
        assert_eq!(grant.of(&db("tenants/7.db")), Some(SqlRight::Read));
        assert_eq!(grant.of(&db("a.db")), Some(SqlRight::Write));
        assert_eq!(grant.of(&db("b.db")), None);
        assert_eq!(SqlGrant::default().with(SqlRight::Write, Globs::all()).of(&db("b.db")), None);
        assert_eq!(SqlGrant::everywhere(SqlRight::Read).of(&db("b.db")), Some(SqlRight::Read));
    }
}
