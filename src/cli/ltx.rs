use std::fmt::Write;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, bail};

use super::args::LtxCommand;
use super::output::{error_line, out};
use crate::ltx::{self, Decoder, Header, page_checksum, parse_file_name};
use crate::types::Timestamp;

/// `skein ltx`.
pub(super) fn run(command: LtxCommand) -> anyhow::Result<i32> {
    match command {
        LtxCommand::Dump { file } => dump(&file).map(|()| 0),
        LtxCommand::Verify { files } => {
            let mut code = 0;
            for file in files {
                match verify(&file) {
                    Ok(line) => out(&line)?,
                    Err(error) => {
                        error_line(&format!("{error:#}"));
                        code = 1;
                    }
                }
            }
            Ok(code)
        }
    }
}

fn open(file: &Path) -> anyhow::Result<BufReader<File>> {
    let opened = File::open(file).with_context(|| file.display().to_string())?;
    if opened.metadata().with_context(|| file.display().to_string())?.is_dir() {
        bail!("{} is a directory; name an LTX file", file.display());
    }
    Ok(BufReader::with_capacity(1 << 20, opened))
}

/// Prints while it reads, so that what comes before a damage is seen.
fn dump(file: &Path) -> anyhow::Result<()> {
    let at = || file.display().to_string();
    let mut decoder = Decoder::new(open(file)?).with_context(at)?;
    out(&describe(decoder.header()))?;
    let mut page = Vec::new();
    let mut lines = String::new();
    while let Some(pgno) = decoder.next_page(&mut page).with_context(at)? {
        let _ = writeln!(lines, "page {pgno}  checksum {}", page_checksum(pgno, &page));
        if lines.len() > 1 << 16 {
            out(&lines)?;
            lines.clear();
        }
    }
    out(&lines)?;
    let trailer = decoder.finish().with_context(at)?;
    let post = trailer.post_apply.map_or_else(|| "none".to_owned(), |post| post.to_string());
    out(&format!("checksum after  {post}\nfile checksum   {:016x}\n", trailer.file_checksum))?;
    Ok(())
}

fn describe(header: &Header) -> String {
    let pre = header.pre_apply.map_or_else(|| "none".to_owned(), |pre| pre.to_string());
    let kind = if header.is_snapshot() { "snapshot" } else { "change" };
    let node = match header.node_id.get() {
        0 => "unknown".to_owned(),
        _ => header.node_id.to_string(),
    };
    format!(
        "transactions    {} to {} ({kind})\npage size       {} bytes\ndatabase size   {} pages\n\
         captured        {}\nnode            {node}\nwal             offset {} size {} salt {:08x} {:08x}\n\
         checksum before {pre}\n",
        header.range.min(),
        header.range.max(),
        header.page_size,
        header.commit,
        Timestamp::from_ms(header.timestamp_ms),
        header.wal_offset,
        header.wal_size_bytes,
        header.wal_salt.0,
        header.wal_salt.1,
    )
}

fn verify(file: &Path) -> anyhow::Result<String> {
    let at = || file.display().to_string();
    let (header, _) = ltx::verify(open(file)?).with_context(at)?;
    let named = file.file_name().and_then(|name| name.to_str()).and_then(parse_file_name);
    if let Some(named) = named.filter(|named| *named != header.range) {
        bail!(
            "{}: the name says transactions {} to {}, the file {} to {}; rename it",
            file.display(),
            named.min(),
            named.max(),
            header.range.min(),
            header.range.max()
        );
    }
    Ok(format!("{}: ok, transactions {} to {}\n", file.display(), header.range.min(), header.range.max()))
}
