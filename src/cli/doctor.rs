use super::args::DoctorArgs;
use super::output::out;
use crate::config::{self, Partial};
use crate::node::{self, Finding, Health};

/// `skein doctor`: exit code 1 where a node would not run.
pub(super) async fn run(args: Box<DoctorArgs>) -> anyhow::Result<i32> {
    let (json, mount) = (args.json, args.mount);
    let below = match &mount.config {
        Some(path) => config::load(path)?,
        None => Partial::default(),
    };
    let findings = node::examine(&mount.into_partial().or(below)).await;
    if json {
        out(&format!("{}\n", serde_json::to_string_pretty(&findings)?))?;
    } else {
        out(&render(&findings))?;
    }
    let failed = findings.iter().any(|finding| finding.health == Health::Failure);
    Ok(i32::from(failed))
}

fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { check, health, seen, remedy } in findings {
        text.push_str(&format!("{health:<7}  {check:<14}  {seen}\n"));
        if !remedy.is_empty() {
            text.push_str(&format!("{:25}-> {remedy}\n", ""));
        }
    }
    let count = |wanted| findings.iter().filter(|finding| finding.health == wanted).count();
    let (failures, warnings) = (count(Health::Failure), count(Health::Warning));
    text.push_str(&format!("\n{} checks, {failures} failures, {warnings} warnings\n", findings.len()));
    text
}
