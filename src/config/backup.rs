use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, OneOrMany, Time};
use crate::types::Globs;

/// Section `[backup]` as one source gives it; key `some_key` is the option `--backup-some-key`.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PartialBackup {
    /// URLs that databases are backed up to.
    pub url: Option<OneOrMany>,
    /// Patterns of the databases.
    pub databases: Option<OneOrMany>,
    /// Changes of so long go into one file.
    pub sync_interval: Option<Time>,
    /// Time between snapshots of a database that changes.
    pub snapshot_interval: Option<Time>,
    /// For how long every point is kept.
    pub retention: Option<Time>,
    /// Being so far behind is told as a warning.
    pub warn_after: Option<Time>,
    /// Each database is restored and compared once in this time.
    pub verify_interval: Option<Time>,
}

impl PartialBackup {
    /// These settings, and where they say nothing those of `below`.
    pub fn or(self, below: Self) -> Self {
        Self {
            url: self.url.or(below.url),
            databases: self.databases.or(below.databases),
            sync_interval: self.sync_interval.or(below.sync_interval),
            snapshot_interval: self.snapshot_interval.or(below.snapshot_interval),
            retention: self.retention.or(below.retention),
            warn_after: self.warn_after.or(below.warn_after),
            verify_interval: self.verify_interval.or(below.verify_interval),
        }
    }
}

/// Where databases are backed up to, and how.
#[derive(Clone, PartialEq, Debug)]
pub struct BackupSettings {
    /// The URLs; none: nothing is backed up.
    pub urls: Vec<String>,
    /// Which databases.
    pub databases: Globs,
    /// Changes of so long go into one file.
    pub sync_interval: Duration,
    /// Age of the last snapshot at which a database that has changed gets another one.
    pub snapshot_interval: Duration,
    /// For how long every point is kept.
    pub retention: Duration,
    /// Being so far behind is told as a warning.
    pub warn_after: Duration,
    /// Each database is restored and compared once in this time; zero: never.
    pub verify_interval: Duration,
}

impl BackupSettings {
    const SYNC_INTERVAL: Duration = Duration::from_secs(1);
    const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(24 * 3600);
    const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
    const VERIFY_INTERVAL: Duration = Duration::from_secs(24 * 3600);
    const WARN_AFTER: Duration = Duration::from_secs(60);
    /// A restore under way must not lose its files.
    const RETENTION_MIN: Duration = Duration::from_secs(3600);

    /// Fills in the defaults.
    ///
    /// # Errors
    /// Where a value is not acceptable; the key is named.
    pub fn resolve(partial: PartialBackup) -> Result<Self, ConfigError> {
        let invalid = |key: &str, why: &str| Err(ConfigError::Invalid(format!("backup.{key}: {why}")));
        let given = |list: Option<OneOrMany>| {
            let all = list.map(OneOrMany::into_vec).unwrap_or_default();
            all.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>()
        };
        let time = |time: Option<Time>, default| time.map_or(default, Time::get);
        let databases = match Globs::new(given(partial.databases)) {
            Ok(databases) => databases,
            Err(error) => return invalid("databases", &error.to_string()),
        };
        let settings = Self {
            urls: given(partial.url),
            databases,
            sync_interval: time(partial.sync_interval, Self::SYNC_INTERVAL),
            snapshot_interval: time(partial.snapshot_interval, Self::SNAPSHOT_INTERVAL),
            retention: time(partial.retention, Self::RETENTION),
            warn_after: time(partial.warn_after, Self::WARN_AFTER),
            verify_interval: time(partial.verify_interval, Self::VERIFY_INTERVAL),
        };
        if settings.sync_interval < Duration::from_millis(100) {
            return invalid("sync_interval", "must be at least 100ms");
        }
        if settings.retention < Self::RETENTION_MIN {
            return invalid("retention", "must be at least 1h, so that no restore under way loses its files");
        }
        if settings.snapshot_interval < Duration::from_secs(60)
            || settings.snapshot_interval > settings.retention
        {
            return invalid("snapshot_interval", "must be at least 1m and not longer than backup.retention");
        }
        if settings.warn_after < settings.sync_interval {
            return invalid("warn_after", "must not be shorter than backup.sync_interval");
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(partial: PartialBackup) -> String {
        BackupSettings::resolve(partial).unwrap_err().to_string()
    }

    #[test]
    fn without_a_url_nothing_is_backed_up() {
        let none = BackupSettings::resolve(PartialBackup::default()).unwrap();
        assert!(none.urls.is_empty());
        let empty = PartialBackup { url: Some(OneOrMany::One(String::new())), ..PartialBackup::default() };
        assert_eq!(BackupSettings::resolve(empty).unwrap(), none);
    }

    #[test]
    fn what_would_lose_files_or_make_no_sense_is_refused_by_its_key() {
        let time = |text: &str| text.parse().ok();
        let partial = PartialBackup::default;
        assert!(
            refusal(PartialBackup { retention: time("10m"), ..partial() }).starts_with("backup.retention")
        );
        assert!(refusal(PartialBackup { sync_interval: time("1ms"), ..partial() }).contains("sync_interval"));
        assert!(
            refusal(PartialBackup { snapshot_interval: time("1s"), ..partial() })
                .contains("snapshot_interval")
        );
        let longer = PartialBackup { snapshot_interval: time("5h"), retention: time("2h"), ..partial() };
        assert!(refusal(longer).contains("not longer"));
        let warn = PartialBackup { warn_after: time("1s"), sync_interval: time("2s"), ..partial() };
        assert!(refusal(warn).contains("warn_after"));
        let many = OneOrMany::Many(vec!["*".into(); 65]);
        assert!(refusal(PartialBackup { databases: Some(many), ..partial() }).contains("databases"));
    }
}
