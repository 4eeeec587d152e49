use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use subtle::ConstantTimeEq;

use super::SecurityError;

/// A secret that lets in whoever shows it: 1 to 512 visible ASCII characters.
///
/// Never shown by `Debug`, and compared in a time that does not depend on how much of a guess is right.
#[derive(Clone)]
pub struct Token(Arc<str>);

/// A text that is no token.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a token is 1 to 512 visible ASCII characters without spaces")]
pub struct InvalidToken;

/// Characters below which a token is thought to be easy to guess.
const SHORT: usize = 16;

impl Token {
    /// A token from a text, without the white space around it.
    ///
    /// # Errors
    /// Where it is empty, too long, or has other characters.
    pub fn new(text: &str) -> Result<Self, InvalidToken> {
        let text = text.trim();
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if (1..=512).contains(&text.len()) && visible { Ok(Self(text.into())) } else { Err(InvalidToken) }
    }

    /// The token that is all of a file; says so where others may read it.
    ///
    /// # Errors
    /// Where the file cannot be read, or holds no token.
    pub fn read(path: &Path) -> Result<Self, SecurityError> {
        let failed = |source| SecurityError::Read { what: "token file", path: path.to_owned(), source };
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!("token file {} is readable by others: chmod 600", path.display());
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        Self::new(&text)
            .map_err(|why| SecurityError::Invalid(format!("token file {}: {why}", path.display())))
    }

    /// Whether it is shorter than a secret should be.
    pub fn is_short(&self) -> bool {
        self.0.len() < SHORT
    }

    /// Whether `given` is this token; how long that takes tells at most how long the token is.
    pub fn matches(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }

    /// The text, to be shown to who asks for it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.0.as_bytes())
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_compared_as_a_whole_and_never_shown() {
        let token = Token::new("  s3cret-s3cret-s3cret\n").unwrap();
        assert!(token.matches(b"s3cret-s3cret-s3cret") && !token.matches(b"s3cret-s3cret-s3creT"));
        assert!(!token.matches(b"") && !token.matches(b"s3cret"));
        assert_eq!(format!("{token:?}"), "Token(..)");
        for text in ["", "  \n", "a b", "a\0b", "ä", &"x".repeat(513)] {
            assert!(Token::new(text).is_err(), "{text:?}");
        }
    }
}
