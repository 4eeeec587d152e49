use std::time::Duration;

use super::args::{CertsArgs, CertsCommand};
use super::output::out;
use crate::security::{Authority, Issued};

/// `skein certs`: makes an authority, and certificates of it.
pub(super) fn run(args: CertsArgs) -> anyhow::Result<i32> {
    let authority = Authority::at(&args.dir);
    let Issued { cert, key } = match args.command {
        CertsCommand::Init { days } => authority.init(life(days))?,
        CertsCommand::Renew { node, days } => authority.renew(&node, life(days))?,
        CertsCommand::Issue { node, address, days } => authority.issue(&node, &address, life(days))?,
    };
    out(&format!("{}\n{}\n", cert.display(), key.display()))?;
    Ok(0)
}

fn life(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 24 * 3600)
}
