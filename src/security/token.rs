use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use subtle::ConstantTimeEq;

use super::SecurityError;
use super::file_change::{FileChange, file_change_of};

/// A secret that lets in whoever shows it: 1 to 512 visible ASCII characters.
///
/// Never shown by `Debug`, and compared in a time that does not depend on how much of a guess is right.
/// One that is followed is read again when its file has changed.
#[derive(Clone)]
pub struct Token(Arc<Source>);

struct Source {
    /// The file that is looked at whenever the token is asked for.
    followed: Option<PathBuf>,
    current: Mutex<Current>,
}

struct Current {
    change: Option<FileChange>,
    text: Arc<str>,
}

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
        if !(1..=512).contains(&text.len()) || !visible {
            return Err(InvalidToken);
        }
        let current = Mutex::new(Current { change: None, text: text.into() });
        Ok(Self(Arc::new(Source { followed: None, current })))
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

    /// The same, read again when the file changes; where that fails the last good one stays, and the reason is told.
    ///
    /// # Errors
    /// As [`Token::read`].
    pub fn follow(path: &Path) -> Result<Self, SecurityError> {
        let change = file_change_of(path);
        let text = Self::read(path)?.text();
        let current = Mutex::new(Current { change, text });
        Ok(Self(Arc::new(Source { followed: Some(path.to_owned()), current })))
    }

    fn text(&self) -> Arc<str> {
        let mut current = self.0.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(path) = &self.0.followed else { return current.text.clone() };
        let change = file_change_of(path);
        if current.change != change {
            current.change = change;
            match Self::read(path) {
                Ok(token) => {
                    tracing::info!("token file {} is reloaded", path.display());
                    current.text = token.text();
                }
                Err(error) => tracing::warn!("a token stays as it was: {error}"),
            }
        }
        current.text.clone()
    }

    /// Whether it is shorter than a secret should be.
    pub fn is_short(&self) -> bool {
        self.text().len() < SHORT
    }

    /// Whether `given` is this token; how long that takes tells at most how long the token is.
    pub fn matches(&self, given: &[u8]) -> bool {
        self.text().as_bytes().ct_eq(given).into()
    }

    /// The text, to be shown to who asks for it.
    pub fn expose(&self) -> Arc<str> {
        self.text()
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.text().as_bytes())
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

    #[test]
    fn a_token_that_is_followed_changes_with_its_file_and_only_for_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let write = |text: &str| {
            let new = dir.path().join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, &path).unwrap();
        };
        write("first-first-first");
        let (followed, once) = (Token::follow(&path).unwrap(), Token::read(&path).unwrap());
        write("second-second-second");
        assert!(followed.matches(b"second-second-second") && !followed.matches(b"first-first-first"));
        assert!(once.matches(b"first-first-first"));
        write("not one");
        assert!(followed.matches(b"second-second-second"));
        fs::remove_file(&path).unwrap();
        assert!(followed.matches(b"second-second-second"));
        write("third-third-third");
        assert!(followed.matches(b"third-third-third") && !followed.matches(b"second-second-second"));
    }
}
