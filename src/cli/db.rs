use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use super::db_args::{DbArgs, DbCommand, ExportFormat};
use super::primary::{path_of, primary};
use super::{history, output, sql_dump, status, verify};
use crate::http::{Client, DatabaseDocument, escape_name};
use crate::types::{DbName, PointInTime};

/// Bytes of a file read at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// `skein db`.
pub(super) async fn run(args: DbArgs) -> anyhow::Result<i32> {
    let client = args.node.client()?;
    match args.command {
        DbCommand::List => {
            let databases: Vec<DatabaseDocument> = client.get("/v1/databases").await?;
            match args.json {
                true => output::json(&databases)?,
                false => output::out(&status::databases(&databases))?,
            }
        }
        DbCommand::Export { all: Some(dir), format, .. } => export_all(&client, &dir, format).await?,
        DbCommand::Export { db: Some(db), file: Some(file), at, format, .. } => {
            export(&client, &db, at, format, &file).await?
        }
        // What clap does not let through.
        DbCommand::Export { .. } => bail!("name a database and a file, or --all DIR"),
        DbCommand::Rewind { db, to } => history::rewind(client, &db, to, args.yes, args.json).await?,
        DbCommand::Diff { db, from, to } => history::diff(&client, &db, (from, to), args.json).await?,
        DbCommand::Import { file, db } => {
            let opened = open_complete(&file)?;
            let client = primary(client).await?;
            if !args.yes
                && exists(&client, &db).await
                && !output::confirmed(&format!("replace {db} by {}?", file.display()))?
            {
                bail!("{db} stays as it is");
            }
            import(&client, opened, &file, &db).await?;
            report(&client, &db, &format!("imported {} as", file.display()), args.json).await?;
        }
        DbCommand::Verify { db, repair } => return verify::run(&client, db, repair, args.json).await,
        DbCommand::Drop { db } => {
            let client = primary(client).await?;
            if !args.yes
                && exists(&client, &db).await
                && !output::confirmed(&format!("drop {db} on all nodes?"))?
            {
                bail!("{db} stays as it is");
            }
            drop_told(&client, &db, args.json).await?;
        }
    }
    Ok(0)
}

/// Drops a database, and says so.
pub(super) async fn drop_told(client: &Client, db: &DbName, json: bool) -> anyhow::Result<()> {
    client.delete(&path_of(db)).await?;
    match json {
        true => output::json(&serde_json::json!({ "dropped": db.as_str() })),
        false => Ok(output::out(&format!("dropped {db}\n"))?),
    }
}

async fn exists(client: &Client, db: &DbName) -> bool {
    client.get::<DatabaseDocument>(&path_of(db)).await.is_ok()
}

/// Where the database stands after what was done.
async fn report(client: &Client, db: &DbName, done: &str, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&client.get::<DatabaseDocument>(&path_of(db)).await?);
    }
    Ok(output::out(&format!("{done} {db}\n"))?)
}

/// Each database under its own name below `dir`.
async fn export_all(client: &Client, dir: &Path, format: ExportFormat) -> anyhow::Result<()> {
    let databases: Vec<DatabaseDocument> = client.get("/v1/databases").await?;
    for DatabaseDocument { name, txid, checksum, .. } in databases {
        // A name of another node's choosing: as any name of a database it stays below the directory.
        let db: DbName = DbName::new(&name).with_context(|| format!("the node names a database {name:?}"))?;
        if txid.bytes().all(|byte| byte == b'0') {
            output::out(&format!("{db} has no content\n"))?;
            continue;
        }
        let file = match format {
            ExportFormat::Sqlite => dir.join(db.as_str()),
            ExportFormat::Sql => with_suffix(&dir.join(db.as_str()), ".sql"),
        };
        let parent = file.parent().unwrap_or(dir);
        std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        export(client, &db, None, format, &file).await?;
        output::out(&format!("{db} {txid}/{checksum}\n"))?;
    }
    Ok(())
}

async fn export(
    client: &Client,
    db: &DbName,
    at: Option<PointInTime>,
    format: ExportFormat,
    file: &Path,
) -> anyhow::Result<()> {
    let at = at.map_or_else(String::new, |at| format!("?at={}", escape_name(&at.to_string())));
    let path = format!("{}/export{at}", path_of(db));
    match (format, file == Path::new("-")) {
        (ExportFormat::Sqlite, true) => {
            let mut stdout = std::io::stdout().lock();
            client.download(&path, |_| {}, |data| stdout.write_all(data)).await??;
            Ok(stdout.flush()?)
        }
        (ExportFormat::Sqlite, false) => {
            refuse_in_use(file)?;
            put_in_place(download(client, &path, directory_of(file)).await?, file)
        }
        (ExportFormat::Sql, true) => {
            let database = download(client, &path, &std::env::temp_dir()).await?;
            sql_dump::dump(database.path(), &mut BufWriter::new(std::io::stdout().lock()))
        }
        (ExportFormat::Sql, false) => {
            let database = download(client, &path, directory_of(file)).await?;
            let mut script = temporary_in(directory_of(file))?;
            sql_dump::dump(database.path(), &mut BufWriter::new(script.as_file_mut()))
                .with_context(|| format!("writing {}", file.display()))?;
            put_in_place(script, file)
        }
    }
}

/// What replaces a database that SQLite has open would be read together with the log or journal of that.
fn refuse_in_use(file: &Path) -> anyhow::Result<()> {
    for suffix in ["-wal", "-journal"] {
        let side = with_suffix(file, suffix);
        if side.exists() {
            bail!(
                "{} exists, so {} is in use by SQLite; choose another file",
                side.display(),
                file.display()
            );
        }
    }
    Ok(())
}

fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn temporary_in(dir: &Path) -> anyhow::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".skein-export-")
        // As any new file: the umask takes away what it does.
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .with_context(|| format!("writing into {}", dir.display()))
}

/// What the node answers at `path`, in a file in `dir` that goes when it is dropped.
async fn download(client: &Client, path: &str, dir: &Path) -> anyhow::Result<NamedTempFile> {
    let mut temporary = temporary_in(dir)?;
    let progress = progress();
    let written = client.download(
        path,
        |bytes: Option<u64>| progress.set_length(bytes.unwrap_or_default()),
        |data| {
            progress.inc(data.len() as u64);
            temporary.write_all(data)
        },
    );
    written.await?.with_context(|| format!("writing into {}", dir.display()))?;
    progress.finish_and_clear();
    Ok(temporary)
}

/// Makes a temporary file the durable `file`.
fn put_in_place(temporary: NamedTempFile, file: &Path) -> anyhow::Result<()> {
    temporary.as_file().sync_all().with_context(|| format!("writing {}", file.display()))?;
    temporary.persist(file).with_context(|| format!("writing {}", file.display()))?;
    Ok(())
}

/// Opens a database file that has everything in it: no other transactions in a log or journal beside it.
fn open_complete(file: &Path) -> anyhow::Result<File> {
    let opened = File::open(file).with_context(|| file.display().to_string())?;
    if !opened.metadata().with_context(|| file.display().to_string())?.is_file() {
        bail!("{} is not a regular file; name a SQLite database", file.display());
    }
    for suffix in ["-wal", "-journal"] {
        let side = with_suffix(file, suffix);
        if side.metadata().is_ok_and(|side| side.len() > 0) {
            bail!(
                "{} holds transactions that are not in {}; close the database with SQLite first, or copy it with \
                 VACUUM INTO",
                side.display(),
                file.display()
            );
        }
    }
    Ok(opened)
}

/// Makes a file the content of a database of the cluster.
pub(super) async fn import(client: &Client, opened: File, file: &Path, db: &DbName) -> anyhow::Result<()> {
    let metadata = opened.metadata().with_context(|| file.display().to_string())?;
    let progress = progress();
    progress.set_length(metadata.len());
    let (chunks, body) = mpsc::channel::<std::io::Result<Bytes>>(4);
    let bar = progress.clone();
    tokio::task::spawn_blocking(move || read_into(opened, &chunks, &bar));
    client.upload(&path_of(db), body).await?;
    progress.finish_and_clear();
    Ok(())
}

/// Sends the file until its end, or until nobody wants more. Blocking.
fn read_into(mut file: File, chunks: &mpsc::Sender<std::io::Result<Bytes>>, progress: &ProgressBar) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let chunk = match file.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => Ok(Bytes::copy_from_slice(&buffer[..length])),
            Err(error) => Err(error),
        };
        progress.inc(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
        let failed = chunk.is_err();
        if chunks.blocking_send(chunk).is_err() || failed {
            return;
        }
    }
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A bar on a terminal's stderr, nothing elsewhere.
fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{bytes} of {total_bytes}  {binary_bytes_per_sec}  {eta} left");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
