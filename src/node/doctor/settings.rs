//! The settings themselves: what `skein mount` refuses before it does anything.

use super::Finding;
use crate::config::{Partial, ProxySettings, Settings};
use crate::node::endpoint_security::check_names;
use crate::node::identity::identity_in;
use crate::node::run_as::check_command;
use crate::node::start_mode::StartMode;
use crate::node::{NodeIdentity, hostname};

/// What `skein mount` would say of them; where directories are not named, only of the rest.
pub(super) fn examine(partial: &Partial, running: bool) -> Vec<Finding> {
    const CHECK: &str = "settings";
    let complete = partial.mount.is_some() && partial.data.is_some();
    let filled = Partial {
        mount: partial.mount.clone().or_else(|| Some("/srv/skein".into())),
        data: partial.data.clone().or_else(|| Some("/var/lib/skein".into())),
        ..partial.clone()
    };
    let settings = match Settings::resolve(filled, &hostname()) {
        Ok(settings) => settings,
        Err(error) => return vec![Finding::failure(CHECK, error.to_string(), "change it as it says")],
    };
    let mut findings = vec![Finding::ok(CHECK, format!("node {} is a {}", settings.name, settings.role))];
    if let Err(error) = check_command(&settings.command) {
        findings.push(Finding::failure("command", error.to_string(), "name a program that can be run"));
    }
    if let Err(error) = check_names(&settings) {
        findings.push(Finding::failure(
            "certificate",
            error.to_string(),
            "issue another one with skein certs issue",
        ));
    }
    if complete {
        findings.push(start(&settings));
    }
    if !running {
        findings.extend(settings.proxy.as_ref().map(proxy_port));
    }
    findings
}

/// Whether the node can start as what the settings say, with what is in its data directory.
fn start(settings: &Settings) -> Finding {
    const CHECK: &str = "start";
    let identity = match identity_in(&settings.data) {
        Ok(Some(identity)) => Ok(identity),
        Ok(None) => NodeIdentity::draw(settings.name.clone(), settings.role),
        Err(error) => Err(error),
    };
    match identity.and_then(|identity| StartMode::of(settings, &identity)) {
        Ok(mode) => Finding::ok(CHECK, mode.to_string()),
        Err(error) => Finding::failure(CHECK, error.to_string(), "start it as it says"),
    }
}

fn proxy_port(proxy: &ProxySettings) -> Finding {
    const CHECK: &str = "proxy port";
    match std::net::TcpListener::bind((proxy.addr.host(), proxy.addr.port())) {
        Ok(_) => Finding::ok(CHECK, format!("{} is free", proxy.addr)),
        Err(error) => Finding::failure(
            CHECK,
            format!("{} cannot be listened at: {error}", proxy.addr),
            "end what uses it (ss -ltnp), or choose another --proxy-addr",
        ),
    }
}
