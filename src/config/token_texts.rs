use std::fmt;

/// Tokens as the environment gives them.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct TokenTexts {
    /// `SKEIN_JOIN_TOKEN`.
    pub join: Option<String>,
    /// `SKEIN_READ_TOKEN`.
    pub read: Option<String>,
    /// `SKEIN_ADMIN_TOKEN`.
    pub admin: Option<String>,
}

impl TokenTexts {
    /// Those of this process's environment.
    pub fn of_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        Self {
            join: variable("SKEIN_JOIN_TOKEN"),
            read: variable("SKEIN_READ_TOKEN"),
            admin: variable("SKEIN_ADMIN_TOKEN"),
        }
    }

    /// These, and where they say nothing those of `below`.
    pub fn or(self, below: Self) -> Self {
        Self {
            join: self.join.or(below.join),
            read: self.read.or(below.read),
            admin: self.admin.or(below.admin),
        }
    }
}

impl fmt::Debug for TokenTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenTexts(..)")
    }
}
