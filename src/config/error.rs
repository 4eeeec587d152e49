use std::path::PathBuf;

/// Why the settings are not usable; each names the key or option and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("config file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it must be.
    #[error("config file {}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Which key, and what is wrong with it.
        why: String,
    },
    /// A setting that has no default is given nowhere.
    #[error("--{option} is missing: give it, or set {env}, or write {key} in the config file")]
    Missing {
        /// The option's name.
        option: &'static str,
        /// Its environment variable.
        env: &'static str,
        /// Its key in the file.
        key: &'static str,
    },
    /// A setting's value is not acceptable.
    #[error("{0}")]
    Invalid(String),
}
