use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::bail;

use super::args::RecoverArgs;
use super::output::out;
use crate::node::Recovery;

/// `skein recover`: makes a cluster of one voter from what a survivor has.
pub(super) fn run(args: RecoverArgs) -> anyhow::Result<i32> {
    let recovery = Recovery::look_at(&args.data)?;
    out(&report(&recovery))?;
    if !args.yes && !confirmed()? {
        bail!("nothing is changed; give --yes to go on without being asked");
    }
    if !args.no_copy {
        let copy = beside(&args.data);
        let bytes = recovery.copy_to(&copy)?;
        out(&format!("copied as it was to {} ({})\n", copy.display(), super::output::size(bytes)))?;
    }
    let name = recovery.identity().name.clone();
    let cluster = recovery.carry_out()?;
    out(&format!(
        "recovered: {name} is the only voter of cluster {cluster}. Start it as before; then let others join with empty data directories.\n"
    ))?;
    Ok(0)
}

fn report(recovery: &Recovery) -> String {
    let (found, identity) = (recovery.found(), recovery.identity());
    let mut text = format!(
        "node {} of cluster {}\n  its log ends at entry {} of term {}; up to {} it is known to be committed\n",
        identity.name,
        identity.cluster.as_deref().unwrap_or("unknown"),
        found.last,
        found.term,
        found.committed,
    );
    if !found.voted {
        text.push_str("  it was no voter: whatever voters acknowledged since it was one may be missing\n");
    }
    if found.last > found.committed {
        text.push_str(&format!(
            "  becomes history: what is behind entry {}, although only the others know whether it was committed\n",
            found.committed
        ));
    }
    text.push_str(&format!(
        "  is lost: what the others acknowledged without this node, behind entry {}\n",
        found.last
    ));
    for (db, index) in &found.incomplete {
        text.push_str(&format!(
            "  is incomplete: {db}, of whose entry {index} only the others have the pages; it stays as it was before, and takes no writes: export it, drop it and import it again\n"
        ));
    }
    let others: Vec<_> = found.others.iter().map(|(name, addr)| format!("{name} ({addr})")).collect();
    let others = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
    text.push_str(&format!(
        "  is refused from now on: {others}, and all replicas, until their data directories are emptied\n"
    ));
    text
}

/// Asks on a terminal; a script has to say `--yes`.
fn confirmed() -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    out("If any of the others can come back, start them instead. Type yes to go on without them: ")?;
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// `/var/lib/skein.before-recovery-SECONDS`, the seconds since 1970.
fn beside(data: &std::path::Path) -> PathBuf {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let clean: PathBuf = data.components().collect();
    let mut name = clean.into_os_string();
    name.push(format!(".before-recovery-{}", now.as_secs()));
    PathBuf::from(name)
}
