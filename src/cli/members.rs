use super::args::{HandoffArgs, MembersArgs, MembersCommand};
use super::{output, status};
use crate::http::{AddRequest, HandoffDocument, HandoffRequest, MemberDocument};

/// `skein members`.
pub(super) async fn run(args: MembersArgs) -> anyhow::Result<i32> {
    let client = args.node.client()?;
    match args.command {
        MembersCommand::List => {
            let members: Vec<MemberDocument> = client.get("/v1/members").await?;
            match args.json {
                true => output::json(&members)?,
                false => output::out(&status::members(&members))?,
            }
        }
        MembersCommand::Add { addr } => {
            client.post("/v1/members", &AddRequest { addr: addr.to_string() }).await?;
            say(
                args.json,
                &addr.to_string(),
                &format!("{addr} is a member; it votes when it is close behind\n"),
            )?;
        }
        MembersCommand::Remove { node } => {
            client.delete(&format!("/v1/members/{node}")).await?;
            say(args.json, node.as_str(), &format!("{node} is no member any more\n"))?;
        }
        MembersCommand::Promote { node } => {
            client.post(&format!("/v1/members/{node}/promote"), &()).await?;
            say(args.json, node.as_str(), &format!("{node} votes\n"))?;
        }
        MembersCommand::Demote { node } => {
            client.post(&format!("/v1/members/{node}/demote"), &()).await?;
            say(args.json, node.as_str(), &format!("{node} receives the log and does not vote\n"))?;
        }
    }
    Ok(0)
}

/// What was done, to whom.
fn say(json: bool, member: &str, done: &str) -> anyhow::Result<()> {
    if json {
        return output::json(&serde_json::json!({ "member": member, "done": done.trim_end() }));
    }
    Ok(output::out(done)?)
}

/// `skein handoff`.
pub(super) async fn hand_off(args: HandoffArgs) -> anyhow::Result<i32> {
    let client = args.node.client()?;
    let request = HandoffRequest { to: args.to.map(|to| to.to_string()) };
    let done: HandoffDocument = client.ask("/v1/handoff", &request).await?;
    match args.json {
        true => output::json(&done)?,
        false => output::out(&format!("{} is primary\n", done.primary))?,
    }
    Ok(0)
}
