//! What is looked at before a node is started, or when it does not do what it should; each finding has its remedy.

mod directories;
mod network;
mod security;
mod settings;
mod system;
mod user;

use std::fmt;

use serde::Serialize;

use crate::config::Partial;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Ok,
    /// A node runs, less well than it could.
    Warning,
    /// A node does not run.
    Failure,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Health::Ok => "ok",
            Health::Warning => "warning",
            Health::Failure => "FAILURE",
        })
    }
}

/// What was found about one thing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// The thing.
    pub check: &'static str,
    /// How it is.
    pub health: Health,
    /// What was seen.
    pub seen: String,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: String,
}

impl Finding {
    fn ok(check: &'static str, seen: impl Into<String>) -> Self {
        Self { check, health: Health::Ok, seen: seen.into(), remedy: String::new() }
    }

    fn warning(check: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, health: Health::Warning, seen: seen.into(), remedy: remedy.into() }
    }

    fn failure(check: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, health: Health::Failure, seen: seen.into(), remedy: remedy.into() }
    }
}

/// Looks at everything a node with these settings needs; what they do not name is left out. Changes nothing.
pub async fn examine(partial: &Partial) -> Vec<Finding> {
    let (keys, mut secured) = security::examine(partial);
    let (running, mut network) = network::examine(partial, &keys).await;
    let local = partial.clone();
    let mut findings = tokio::task::spawn_blocking(move || {
        let mut findings = system::examine();
        findings.extend(settings::examine(&local, running));
        findings.extend(directories::examine(&local, running));
        findings.extend(user::examine(&local));
        findings
    })
    .await
    .unwrap_or_default();
    findings.append(&mut secured);
    findings.append(&mut network);
    findings
}
