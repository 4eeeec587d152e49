use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Section `[traces]` as one source gives it; key `some_key` is the option `--traces-some-key`.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PartialTraces {
    /// URL of the collector.
    pub endpoint: Option<String>,
    /// Share of the commits that are traced.
    pub share: Option<f64>,
}

impl PartialTraces {
    /// These settings, and where they say nothing those of `below`.
    pub fn or(self, below: Self) -> Self {
        Self { endpoint: self.endpoint.or(below.endpoint), share: self.share.or(below.share) }
    }
}

/// Whom commits are traced for.
#[derive(Clone, PartialEq, Debug)]
pub struct TraceSettings {
    /// URL of the collector (OTLP over gRPC); empty: none.
    pub endpoint: String,
    /// Share of the commits that are traced, 0 to 1.
    pub share: f64,
}

impl TraceSettings {
    /// Fills in the defaults.
    ///
    /// # Errors
    /// Where the share is none.
    pub fn resolve(partial: PartialTraces) -> Result<Self, ConfigError> {
        let share = partial.share.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&share) {
            return Err(ConfigError::Invalid(format!("--traces-share {share} is not between 0 and 1")));
        }
        let endpoint = partial.endpoint.unwrap_or_default();
        if !endpoint.is_empty() && !endpoint.starts_with("http://") {
            return Err(ConfigError::Invalid(
                "--traces-endpoint must be a URL that starts with http://".into(),
            ));
        }
        Ok(Self { endpoint, share })
    }
}
