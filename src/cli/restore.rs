use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use super::backup_args::RestoreArgs;
use super::db::import;
use super::output;
use super::primary::primary;
use crate::backup::{
    Archive, Location, Objects, RestoreOptions, Summary, check_free, connect, databases, directory_of,
    parent, restore,
};
use crate::types::DbName;

/// `skein restore`.
pub(super) async fn run(args: RestoreArgs) -> anyhow::Result<i32> {
    let objects = connect(&args.from)?;
    let mut archive = open(&objects, &args.from, args.db.as_ref()).await?;
    let options =
        RestoreOptions { point: args.point.point(), parallel: args.parallel, check: args.integrity_check };
    let scratch = match &args.output {
        Some(output) => {
            check_free(output)?;
            parent(output)
        }
        None => std::env::temp_dir(),
    };
    let progress = progress();
    let restored = restore(&mut archive, options, &scratch, &|done, all| {
        progress.set_length(all as u64);
        progress.set_position(done as u64);
    })
    .await?;
    progress.finish_and_clear();
    let (summary, what) = match (&args.output, &args.into) {
        (Some(output), _) => (restored.place(output)?, output.display().to_string()),
        (None, Some(db)) => {
            let opened = restored.file.reopen().context("reading what was restored")?;
            import(&primary(args.node.client()?).await?, opened, restored.file.path(), db).await?;
            (restored.summary, format!("database {db}"))
        }
        (None, None) => bail!("give --output FILE or --into DB"),
    };
    output::out(&format!("restored {what}: {}\n", told(&summary)))?;
    Ok(0)
}

/// What was restored, in words.
pub(super) fn told(summary: &Summary) -> String {
    let pos = summary.pos.map_or_else(
        || "the files do not say what the cluster had".to_owned(),
        |pos| format!("equal to the cluster's at {pos}"),
    );
    format!(
        "transaction {} of {}, {}, from {} files; {pos}",
        summary.txid,
        summary.time,
        output::size(summary.pages.bytes(summary.page_size)),
        summary.files
    )
}

/// The directory of a database; without a name that of the only one, or the URL itself.
async fn open(
    objects: &Arc<dyn Objects>,
    location: &Location,
    db: Option<&DbName>,
) -> anyhow::Result<Archive> {
    if let Some(db) = db {
        return Ok(Archive::open(objects.clone(), &directory_of(db)).await?);
    }
    let all = databases(&**objects).await?;
    match all.as_slice() {
        [] => {
            let archive = Archive::open(objects.clone(), "").await?;
            if archive.files().is_empty() {
                bail!("there is no backup at {location}");
            }
            Ok(archive)
        }
        [only] => Ok(Archive::open(objects.clone(), &directory_of(only)).await?),
        several => {
            let names: Vec<_> = several.iter().take(20).map(ToString::to_string).collect();
            bail!("{location} has {} databases, name one of them: {}", several.len(), names.join(", "))
        }
    }
}

/// A bar on a terminal's stderr, nothing elsewhere.
fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{pos} of {len} files  {bar:30}  {eta} left");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Restores a database somewhere and throws it away.
pub(super) async fn try_out(
    objects: &Arc<dyn Objects>,
    db: &DbName,
    scratch: &Path,
) -> anyhow::Result<Summary> {
    use crate::backup::{IntegrityCheck, PARALLEL, Point};
    let mut archive = Archive::open(objects.clone(), &directory_of(db)).await?;
    let options = RestoreOptions { point: Point::Latest, parallel: PARALLEL, check: IntegrityCheck::Full };
    Ok(restore(&mut archive, options, scratch, &|_, _| {}).await?.summary)
}
