use super::args::{MembersArgs, MembersCommand};
use super::{output, status};

/// `skein members`.
pub(super) async fn run(args: MembersArgs) -> anyhow::Result<i32> {
    let client = args.node.client()?;
    match args.command {
        MembersCommand::List => output::out(&status::members(&client.status().await?.members))?,
    }
    Ok(0)
}
