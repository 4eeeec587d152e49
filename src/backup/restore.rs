use std::fs::File;
use std::io::{BufReader, Seek};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt, stream};
use rusqlite::{Connection, OpenFlags};

use super::{Archive, BackupError, Fetched, FileAttributes, PlanFile, Point};
use crate::io::durable;
use crate::ltx::{Decoder, page_checksum};
use crate::types::{Checksum, PageCount, PageSize, Pgno, Pos, Timestamp, Txid};

/// How a database is restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestoreOptions {
    /// Which moment of it.
    pub point: Point,
    /// Files fetched at a time.
    pub parallel: usize,
    /// What SQLite is asked about the result before it is used.
    pub check: IntegrityCheck,
}

/// What SQLite is asked about a restored database.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IntegrityCheck {
    /// Nothing.
    None,
    /// `PRAGMA quick_check`.
    #[default]
    Quick,
    /// `PRAGMA integrity_check`.
    Full,
}

impl std::str::FromStr for IntegrityCheck {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "quick" => Ok(Self::Quick),
            "full" => Ok(Self::Full),
            _ => Err(format!("{text:?} is none of none, quick and full")),
        }
    }
}

/// A restored database, which vanishes unless it is put in place.
pub struct Restored {
    /// The file, under a temporary name.
    pub file: tempfile::NamedTempFile,
    /// What is in it.
    pub summary: Summary,
}

/// What was restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Summary {
    /// The last transaction, in the numbers of the files.
    pub txid: Txid,
    /// When it was committed.
    pub time: Timestamp,
    /// The cluster's position, with which the content was compared; `None` where the files do not name it.
    pub pos: Option<Pos>,
    /// Page size in bytes.
    pub page_size: PageSize,
    /// Size in pages.
    pub pages: PageCount,
    /// Files it was made of.
    pub files: usize,
    /// What they have together, in bytes.
    pub fetched_bytes: u64,
}

/// Files fetched at a time unless told otherwise.
pub const PARALLEL: usize = 8;
/// How often a plan is made anew because a file of it was removed meanwhile.
const PLANS_MAX: u32 = 4;
/// Neighbouring pages are written together, up to so many bytes.
const RUN_BYTES: usize = 1 << 20;

/// Makes a database of the files in the bucket, in `dir`, and checks it: every file's own checksum, the database's as the
/// cluster had it, and what SQLite says. `progress` hears of files done and of all there are.
///
/// # Errors
/// [`BackupError::NotFound`] where the backup does not have that point; `Corrupt` where what it has is damaged.
pub async fn restore(
    archive: &mut Archive,
    options: RestoreOptions,
    dir: &Path,
    progress: &(dyn Fn(usize, usize) + Send + Sync),
) -> Result<Restored, BackupError> {
    let mut plans = 1;
    loop {
        let plan = archive.plan(options.point).await?;
        match assemble(archive, &plan, options, dir, progress).await {
            // Removed since the listing, because another file has the same transactions.
            Err(BackupError::NotFound(what)) if plans < PLANS_MAX => {
                tracing::debug!(what, "planning anew");
                plans += 1;
                archive.reload().await?;
            }
            done => return done,
        }
    }
}

async fn assemble(
    archive: &Archive,
    plan: &[PlanFile],
    options: RestoreOptions,
    dir: &Path,
    progress: &(dyn Fn(usize, usize) + Send + Sync),
) -> Result<Restored, BackupError> {
    let made = tempfile::Builder::new()
        .prefix(".skein-restore-")
        // As any new file: the umask takes away what it does.
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(dir);
    let file = made.map_err(BackupError::io(format!("writing into {}", dir.display())))?;
    let path = file.path().to_owned();
    let mut target = Target::new(file.as_file().try_clone().map_err(BackupError::io("restoring"))?);
    let mut attributes = None;
    progress(0, plan.len());
    let mut fetches: Vec<BoxFuture<'static, Result<(String, Fetched), BackupError>>> = Vec::new();
    for file in plan {
        let key = archive.key(file.level, file.range);
        let (objects, dir) = (archive.objects().clone(), dir.to_owned());
        fetches.push(Box::pin(async move {
            let fetched = objects.fetch(&key, &dir).await?;
            Ok((key, fetched))
        }));
    }
    let mut fetched = stream::iter(fetches).buffered(options.parallel.max(1));
    let mut done = 0;
    while let Some((key, fetched)) = fetched.try_next().await? {
        attributes = FileAttributes::decode(&fetched.attributes);
        target = blocking(move || target.apply(&key, fetched.file)).await?;
        done += 1;
        progress(done, plan.len());
    }
    drop(fetched);
    let last = plan.last().copied();
    let known = last.and_then(|last| {
        let named = |file: &&super::ArchiveFile| file.range == last.range && file.level == last.level;
        archive.files().iter().find(named)?.pos
    });
    let pos = attributes.map(|attributes| attributes.pos).or(known);
    let fetched_bytes = plan.iter().filter_map(|file| size_of(archive, file)).sum();
    let (summary, check) = (target.summary(last, pos, plan.len(), fetched_bytes)?, options.check);
    blocking(move || {
        target.verify(&summary)?;
        check_with_sqlite(&path, check)
    })
    .await?;
    Ok(Restored { file, summary })
}

fn size_of(archive: &Archive, planned: &PlanFile) -> Option<u64> {
    let is = |file: &&super::ArchiveFile| file.range == planned.range && file.level == planned.level;
    archive.files().iter().find(is).map(|file| file.size_bytes)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(BackupError::io("restoring")(std::io::Error::other(error.to_string()))),
    }
}

impl Restored {
    /// Gives the database its name, durably, where no file has it.
    ///
    /// # Errors
    /// `Invalid` where there is a file of that name, or a log or journal that would become part of it.
    pub fn place(self, output: &Path) -> Result<Summary, BackupError> {
        check_free(output)?;
        let failed = || BackupError::io(format!("writing {}", output.display()));
        self.file.as_file().sync_all().map_err(failed())?;
        self.file.persist_noclobber(output).map_err(|error| failed()(error.error))?;
        durable::sync_dir(&parent(output)).map_err(failed())?;
        Ok(self.summary)
    }
}

/// Whether a database may be put at `output`.
///
/// # Errors
/// `Invalid` where something is there.
pub fn check_free(output: &Path) -> Result<(), BackupError> {
    for suffix in ["", "-wal", "-journal", "-shm"] {
        let mut name = output.as_os_str().to_owned();
        name.push(suffix);
        let path = PathBuf::from(name);
        if path.symlink_metadata().is_ok() {
            let path = path.display();
            return Err(BackupError::Invalid(format!("{path} exists: remove it, or choose another file")));
        }
    }
    Ok(())
}

/// The directory a file is in.
pub fn parent(output: &Path) -> PathBuf {
    match output.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The database being made.
struct Target {
    file: File,
    /// Page size, size and time after the files so far.
    state: Option<(PageSize, PageCount, Timestamp)>,
}

impl Target {
    fn new(file: File) -> Self {
        Self { file, state: None }
    }

    /// Applies one file of the plan. What it wrote counts only if the whole restore succeeds.
    fn apply(mut self, key: &str, mut from: File) -> Result<Self, BackupError> {
        let failed = |error| BackupError::ltx(key, error);
        from.rewind().map_err(BackupError::io(format!("object {key}")))?;
        let mut decoder = Decoder::new(BufReader::with_capacity(RUN_BYTES, from)).map_err(failed)?;
        let header = *decoder.header();
        if let Some((page_size, ..)) = self.state.filter(|(page_size, ..)| *page_size != header.page_size) {
            return Err(BackupError::Corrupt(format!(
                "object {key} has page size {}, the files before it {page_size}",
                header.page_size
            )));
        }
        let (mut page, mut run) = (Vec::new(), Run::default());
        while let Some(pgno) = decoder.next_page(&mut page).map_err(failed)? {
            run.add(&self.file, pgno.offset(header.page_size), &page)
                .map_err(BackupError::io("restoring"))?;
        }
        run.flush(&self.file).map_err(BackupError::io("restoring"))?;
        decoder.finish().map_err(failed)?;
        let size = header.commit.bytes(header.page_size);
        self.file.set_len(size).map_err(BackupError::io("restoring"))?;
        self.state = Some((header.page_size, header.commit, Timestamp::from_ms(header.timestamp_ms)));
        Ok(self)
    }

    fn summary(
        &self,
        last: Option<PlanFile>,
        pos: Option<Pos>,
        files: usize,
        fetched_bytes: u64,
    ) -> Result<Summary, BackupError> {
        let (Some((page_size, pages, time)), Some(last)) = (self.state, last) else {
            return Err(BackupError::NotFound("the backup has no files".into()));
        };
        Ok(Summary { txid: last.range.max(), time, pos, page_size, pages, files, fetched_bytes })
    }

    /// Compares what was made with what the cluster had.
    fn verify(&self, summary: &Summary) -> Result<(), BackupError> {
        let Some(pos) = summary.pos else { return Ok(()) };
        let found = checksum_of(&self.file, summary.page_size, summary.pages)
            .map_err(BackupError::io("reading what was restored"))?;
        if found != pos.checksum {
            return Err(BackupError::Corrupt(format!(
                "what was restored has checksum {found}, the cluster's database at transaction {} had {}",
                summary.txid, pos.checksum
            )));
        }
        Ok(())
    }
}

/// Neighbouring pages, written as one.
#[derive(Default)]
struct Run {
    offset: u64,
    bytes: Vec<u8>,
}

impl Run {
    fn add(&mut self, file: &File, offset: u64, page: &[u8]) -> std::io::Result<()> {
        let follows = self.offset + self.bytes.len() as u64 == offset;
        if !follows || self.bytes.len() + page.len() > RUN_BYTES {
            self.flush(file)?;
            self.offset = offset;
        }
        self.bytes.extend_from_slice(page);
        Ok(())
    }

    fn flush(&mut self, file: &File) -> std::io::Result<()> {
        file.write_all_at(&self.bytes, self.offset)?;
        self.bytes.clear();
        Ok(())
    }
}

/// The checksum of a database in a file.
fn checksum_of(file: &File, page_size: PageSize, pages: PageCount) -> std::io::Result<Checksum> {
    let per_read = (RUN_BYTES / page_size.len()).max(1);
    let (mut sum, mut buffer) = (Checksum::EMPTY, vec![0; per_read * page_size.len()]);
    let (lock, mut next) = (Pgno::lock_page(page_size), 1u32);
    while next <= pages.get() {
        let count = (pages.get() - next + 1).min(u32::try_from(per_read).unwrap_or(u32::MAX));
        let part = &mut buffer[..count as usize * page_size.len()];
        file.read_exact_at(part, u64::from(next - 1) * page_size.bytes())?;
        for (number, page) in (next..).zip(part.chunks(page_size.len())) {
            if let Some(pgno) = Pgno::new(number).filter(|pgno| *pgno != lock) {
                sum = sum ^ page_checksum(pgno, page);
            }
        }
        next += count;
    }
    Ok(sum)
}

fn check_with_sqlite(path: &Path, check: IntegrityCheck) -> Result<(), BackupError> {
    let pragma = match check {
        IntegrityCheck::None => return Ok(()),
        IntegrityCheck::Quick => "PRAGMA quick_check(1)",
        IntegrityCheck::Full => "PRAGMA integrity_check(1)",
    };
    let corrupt = |why: String| BackupError::Corrupt(format!("what was restored is damaged: {why}"));
    // A database in WAL mode is read without a log beside it.
    let uri = format!("file:{}?immutable=1", escape_uri(path));
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let answer = Connection::open_with_flags(uri, flags)
        .and_then(|connection| connection.query_row(pragma, [], |row| row.get::<_, String>(0)));
    match answer {
        Ok(answer) if answer == "ok" => Ok(()),
        Ok(answer) => Err(corrupt(answer)),
        Err(error) => Err(corrupt(error.to_string())),
    }
}

/// A path in a URI of SQLite.
fn escape_uri(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let escaped = path.as_os_str().as_bytes().iter().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => char::from(*byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    escaped.collect()
}
