//! `skein run` and `skein lease`: a command in the place of this one, once it may write.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::time::Instant;

use super::exit_code::{NotFound, NotPrimary, TimedOut};
use super::output;
use super::run_args::{LeaseArgs, RunArgs};
use crate::http::{Client, ClientError, HandoffDocument, HandoffRequest, StatusDocument};

/// Between two questions whether the node is primary.
const ASK_EVERY: Duration = Duration::from_millis(100);

pub(super) async fn run(args: RunArgs) -> anyhow::Result<i32> {
    let client = args.node.client()?;
    if let Some(db) = &args.with_lease {
        match with_lease(&client, db, &args.command).await? {}
    }
    if args.if_primary {
        let status: StatusDocument = client.get("/v1/status").await?;
        if !status.writable {
            let primary = status.primary.map_or_else(|| "unknown".to_owned(), |primary| primary.name);
            output::error_line(&format!("{} is not primary ({primary} is): nothing is run", status.node));
            return Ok(0);
        }
    } else {
        wait_until_primary(&client, args.promote, args.timeout).await?;
    }
    match replace_by(&args.command)? {}
}

/// `skein lease`.
pub(super) async fn lease(args: &LeaseArgs) -> anyhow::Result<i32> {
    match with_lease(&args.node.client()?, &args.db, &args.command).await? {}
}

/// The command inherits the open `DB-lock`, so the lease goes back when the last process that has it ends.
async fn with_lease(client: &Client, db: &Path, command: &[OsString]) -> anyhow::Result<Infallible> {
    let path = on_mount(client, db).await?;
    let mut name = path.clone().into_os_string();
    name.push("-lock");
    let opened = File::options().read(true).write(true).open(&name);
    let lock = opened.map_err(|error| match error.kind() {
        ErrorKind::ReadOnlyFilesystem => NotPrimary(format!(
            "{}: this node is a replica, or shows no replicated database: use a voter",
            name.display()
        ))
        .into(),
        ErrorKind::TimedOut => {
            TimedOut(format!("{}: no write lease in time; the node's log says who has it", name.display()))
                .into()
        }
        ErrorKind::NotFound => {
            anyhow::anyhow!("{} is no database on the mount of a node", path.display())
        }
        _ => anyhow::anyhow!("{}: {error}", name.display()),
    })?;
    fcntl(&lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
    replace_by(command)
}

/// The path of `db`: it is one, or else a name on the mount of the node that answers.
async fn on_mount(client: &Client, db: &Path) -> anyhow::Result<PathBuf> {
    if db.is_absolute() || db.exists() {
        return Ok(db.to_owned());
    }
    let status: StatusDocument = client.get("/v1/status").await?;
    Ok(Path::new(&status.mount).join(db))
}

/// Waits until applications of the node may write; with `promote` it is made primary.
async fn wait_until_primary(client: &Client, promote: bool, timeout: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    let mut why = format!("no node answers at {}", client.url());
    loop {
        match tokio::time::timeout_at(deadline, look(client, promote)).await {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(not_yet))) => why = not_yet,
            Ok(Err(error)) if may_change(&error) => why = error.to_string(),
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
        if Instant::now() + ASK_EVERY >= deadline {
            return Err(TimedOut(format!("not primary within {timeout:?}: {why}")).into());
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// A node that starts answers later, and a handoff that is refused now may go through then, or be over: a node that leads
/// is primary a moment later.
fn may_change(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(ClientError::Unreachable { .. } | ClientError::Strange { .. }) => true,
        Some(ClientError::Refused { status, .. }) => *status == 400 || *status >= 500,
        _ => false,
    }
}

/// Why the node is not primary yet.
async fn look(client: &Client, promote: bool) -> anyhow::Result<Option<String>> {
    let status: StatusDocument = client.get("/v1/status").await?;
    let node = status.node;
    if status.writable {
        return Ok(None);
    }
    if status.role == "replica" {
        return Err(
            NotPrimary(format!("{node} is a replica, and no replica becomes primary: use a voter")).into()
        );
    }
    let Some(primary) = status.primary else { return Ok(Some("no primary is known".into())) };
    if primary.name == node {
        return Ok(Some(format!("{node} is about to be primary")));
    }
    if promote {
        let request = HandoffRequest { to: Some(node.clone()) };
        let _moved: HandoffDocument = client.ask("/v1/handoff", &request).await?;
        return Ok(Some(format!("{node} is about to be primary")));
    }
    Ok(Some(format!("{} is primary; --promote makes {node} primary", primary.name)))
}

/// Does not return where the command can be run.
fn replace_by(words: &[OsString]) -> anyhow::Result<Infallible> {
    let (program, arguments) = words.split_first().ok_or_else(|| anyhow::anyhow!("no command is given"))?;
    let error = Command::new(program).args(arguments).exec();
    let name = program.to_string_lossy().into_owned();
    match error.kind() {
        ErrorKind::NotFound => Err(NotFound(name).into()),
        _ => Err(anyhow::anyhow!("{name} cannot be run: {error}")),
    }
}
