//! `skein sql`: SQL on any node, by its API.

mod complete;
mod format;
mod remote;
mod shell;
mod split;

use std::io::{IsTerminal, Read};

use anyhow::Context;

use self::remote::Remote;
use self::split::{Pieces, split};
use super::args::SqlShellArgs;
use super::output::out;

/// Executes what is given, or what is on standard input; a terminal gets a shell.
pub(super) async fn run(args: SqlShellArgs) -> anyhow::Result<i32> {
    let mut remote = Remote::new(args.node.client()?, &args.db);
    let text = match args.sql {
        Some(text) => text,
        None if std::io::stdin().is_terminal() => return shell::run(remote, args.format).await,
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("standard input")?;
            text
        }
    };
    let Pieces { whole, rest } = split(&text);
    let last = Some(rest).filter(|rest| !rest.trim().is_empty());
    for statement in whole.into_iter().chain(last) {
        let answer = match statement.trim().strip_prefix('.') {
            Some(command) => shell::dot_command(&mut remote, command).await?,
            None => remote.execute(statement).await?,
        };
        out(&format::render(&answer, args.format))?;
    }
    remote.close().await?;
    Ok(0)
}
