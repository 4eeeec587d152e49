use super::{DbName, MountPath};

/// Which databases are meant: any of several patterns, or all where there is no pattern.
///
/// `*` stands for any text without `/`, `**` for any text, `?` for one character but `/`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Globs(Vec<String>);

/// A list of patterns that is too long.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "database patterns: at most {} of at most {} bytes each are allowed",
    Globs::COUNT_MAX,
    Globs::BYTES_MAX
)]
pub struct InvalidGlob;

impl Globs {
    const COUNT_MAX: usize = 64;
    const BYTES_MAX: usize = 1024;

    /// All databases.
    pub fn all() -> Self {
        Self::default()
    }

    /// The databases that match any of `patterns`.
    ///
    /// # Errors
    /// Where there are too many patterns or one is too long; they come from peers too.
    pub fn new(patterns: Vec<String>) -> Result<Self, InvalidGlob> {
        if patterns.len() > Self::COUNT_MAX || patterns.iter().any(|p| p.len() > Self::BYTES_MAX) {
            return Err(InvalidGlob);
        }
        Ok(Self(patterns))
    }

    /// The patterns.
    pub fn patterns(&self) -> &[String] {
        &self.0
    }

    /// Whether the follower may want a database below this directory.
    pub fn reaches(&self, directory: &DbName) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| reaches(pattern, directory.as_str()))
    }

    /// Whether the follower wants attributes of this name.
    pub fn wants(&self, path: &MountPath) -> bool {
        match path {
            MountPath::Root => true,
            MountPath::Directory(path) => self.reaches(path),
            MountPath::Database(name) => self.matches(name),
        }
    }

    /// Whether this database is meant.
    pub fn matches(&self, db: &DbName) -> bool {
        self.0.is_empty() || self.0.iter().any(|p| glob(p.as_bytes(), db.as_str().as_bytes()))
    }
}

/// Whether a pattern names, or may name, something below a directory.
fn reaches(pattern: &str, directory: &str) -> bool {
    let (mut patterns, mut components) = (pattern.split('/'), directory.split('/'));
    loop {
        match (patterns.next(), components.next()) {
            (Some(pattern), _) if pattern.contains("**") => return true,
            (Some(_), None) => return true,
            (Some(pattern), Some(name)) if glob(pattern.as_bytes(), name.as_bytes()) => {}
            _ => return false,
        }
    }
}

/// Matches by filling one row of a table per pattern token, so time is pattern times text.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let mut reach = vec![false; text.len() + 1];
    reach[0] = true;
    let mut rest = pattern;
    while let Some((&first, tail)) = rest.split_first() {
        let (any_depth, star) = (first == b'*' && tail.first() == Some(&b'*'), first == b'*');
        rest = if any_depth { &tail[1..] } else { tail };
        if star {
            for at in 0..text.len() {
                reach[at + 1] |= reach[at] && (any_depth || text[at] != b'/');
            }
        } else {
            for at in (0..text.len()).rev() {
                reach[at + 1] = reach[at] && (text[at] == first || (first == b'?' && text[at] != b'/'));
            }
            reach[0] = false;
        }
    }
    reach[text.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_documented() {
        for (pattern, name, expected) in [
            ("*", "app.db", true),
            ("*", "a/b", false),
            ("**", "a/b", true),
            ("tenants/*/db", "tenants/7/db", true),
            ("tenants/*/db", "tenants/7/8/db", false),
            ("tenants/**", "tenants/7/8/db", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("abc", "abcd", false),
            ("*.db", "x.db", true),
            ("", "x", false),
        ] {
            let globs = Globs::new(vec![pattern.into()]).unwrap();
            assert_eq!(globs.matches(&DbName::new(name).unwrap()), expected, "{pattern} {name}");
        }
        assert!(Globs::all().matches(&DbName::new("x").unwrap()));
    }

    #[test]
    fn a_directory_is_wanted_where_a_database_below_it_may_be() {
        for (pattern, directory, expected) in [
            ("*", "a", false),
            ("a/*", "a", true),
            ("a/*", "a/b", false),
            ("a/*/x", "a/b", true),
            ("**", "a/b", true),
            ("b/**", "a", false),
            ("b/**", "b/c/d", true),
            ("a", "a", false),
        ] {
            let globs = Globs::new(vec![pattern.into()]).unwrap();
            assert_eq!(globs.reaches(&DbName::new(directory).unwrap()), expected, "{pattern} {directory}");
        }
    }

    #[test]
    fn a_pattern_made_to_be_slow_is_not() {
        let globs = Globs::new(vec!["*a".repeat(500)]).unwrap();
        assert!(
            !globs
                .matches(&DbName::new(&"a/".repeat(200).trim_end_matches('/').replace("a/", "b/")).unwrap())
        );
    }
}
