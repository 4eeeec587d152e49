use std::collections::BTreeMap;
use std::sync::Arc;

use super::layout::{directory_of_manifest, manifest_key};
use super::{
    BackupError, FileAttributes, Listed, Manifest, NoPlan, Objects, PlanFile, Version, database_of, plan,
};
use crate::ltx::{Decoder, HEADER_SIZE, Header};
use crate::types::{DbName, Pos, Timestamp, Txid, TxidRange};

/// The files of one database in a bucket, as one listing and the manifest show them.
pub struct Archive {
    objects: Arc<dyn Objects>,
    directory: String,
    files: Vec<ArchiveFile>,
    manifest: Option<(Manifest, Version)>,
}

/// One file.
#[derive(Clone, PartialEq, Debug)]
pub struct ArchiveFile {
    /// Its level.
    pub level: u8,
    /// The transactions in it.
    pub range: TxidRange,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The time in its header, as far as the manifest has it.
    pub time: Option<Timestamp>,
    /// The cluster's position after it, as far as the manifest has it.
    pub pos: Option<Pos>,
}

/// The moment of a database that is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    /// The newest there is.
    Latest,
    /// After this transaction, in the numbers of the files.
    Txid(Txid),
    /// With all transactions committed at or before this time.
    Time(Timestamp),
}

/// The databases that have a manifest below a URL, by name. One listing.
///
/// # Errors
/// Where the bucket cannot be listed.
pub async fn databases(objects: &dyn Objects) -> Result<Vec<DbName>, BackupError> {
    let listed = objects.list("").await?;
    let mut names: Vec<DbName> =
        listed.iter().filter_map(|listed| database_of(directory_of_manifest(&listed.key)?)).collect();
    names.sort();
    Ok(names)
}

/// The files of a listing, by directory.
pub(super) fn by_directory(objects: &dyn Objects, listed: &[Listed]) -> BTreeMap<String, Vec<ArchiveFile>> {
    let mut found: BTreeMap<String, Vec<ArchiveFile>> = BTreeMap::new();
    for object in listed {
        if let Some((directory, level, range)) = objects.scheme().parse(&object.key) {
            let file = ArchiveFile { level, range, size_bytes: object.size_bytes, time: None, pos: None };
            found.entry(directory.to_owned()).or_default().push(file);
        }
    }
    found
}

impl Archive {
    /// Looks at the directory of a database; empty for the URL itself, as Litestream uses it.
    ///
    /// # Errors
    /// Where the bucket does not answer, or the manifest is damaged.
    pub async fn open(objects: Arc<dyn Objects>, directory: &str) -> Result<Self, BackupError> {
        let directory = directory.to_owned();
        let mut archive = Self { objects, directory, files: Vec::new(), manifest: None };
        archive.reload().await?;
        Ok(archive)
    }

    /// A directory whose objects are known.
    pub(super) fn of(
        objects: Arc<dyn Objects>,
        directory: &str,
        files: Vec<ArchiveFile>,
        manifest: Manifest,
        version: Version,
    ) -> Self {
        let directory = directory.to_owned();
        let mut archive = Self { objects, directory, files, manifest: Some((manifest, version)) };
        archive.complete();
        archive
    }

    /// Looks again: files have been merged and removed.
    ///
    /// # Errors
    /// As [`Archive::open`].
    pub async fn reload(&mut self) -> Result<(), BackupError> {
        // The manifest first: what it names and a later listing lacks was removed since.
        self.manifest = read_manifest(&*self.objects, &self.directory).await?;
        let listed = self.objects.list(&self.directory).await?;
        let files = by_directory(&*self.objects, &listed).remove(&self.directory).unwrap_or_default();
        self.files = files;
        self.complete();
        Ok(())
    }

    /// Adds to listed files what the manifest knows of them, and puts them in order.
    fn complete(&mut self) {
        if let Some((manifest, _)) = &self.manifest {
            complete(&mut self.files, manifest);
        }
        self.files.sort_by_key(|file| (file.range.max(), file.level));
    }

    /// The bucket.
    pub fn objects(&self) -> &Arc<dyn Objects> {
        &self.objects
    }

    /// What the cluster says of the files; `None` where another program wrote them.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref().map(|(manifest, _)| manifest)
    }

    /// The files, by last transaction.
    pub fn files(&self) -> &[ArchiveFile] {
        &self.files
    }

    /// Key of a file.
    pub fn key(&self, level: u8, range: TxidRange) -> String {
        self.objects.scheme().key(&self.directory, level, range)
    }

    /// The files that lead to a point.
    ///
    /// # Errors
    /// [`BackupError::NotFound`] where none do; it says between which points the backup has any.
    pub async fn plan(&self, point: Point) -> Result<Vec<PlanFile>, BackupError> {
        let target = match point {
            Point::Latest => None,
            Point::Txid(txid) => Some(txid),
            Point::Time(time) => Some(self.txid_at(time).await?),
        };
        let files: Vec<PlanFile> =
            self.files.iter().map(|file| PlanFile { level: file.level, range: file.range }).collect();
        match plan(&files, target) {
            Ok(plan) => Ok(plan),
            Err(NoPlan::TooEarly) if files.is_empty() => {
                Err(BackupError::NotFound(format!("{}: there is no backup", self.shown())))
            }
            Err(no_plan) => Err(BackupError::NotFound(self.outside(point, no_plan).await)),
        }
    }

    fn shown(&self) -> String {
        match self.directory.as_str() {
            "" => "backup".to_owned(),
            directory => format!("backup of {directory}"),
        }
    }

    /// Which points there are instead.
    async fn outside(&self, point: Point, why: NoPlan) -> String {
        let what = match point {
            Point::Latest => "the latest point".to_owned(),
            Point::Txid(txid) => format!("transaction {txid}"),
            Point::Time(time) => time.to_string(),
        };
        let starts = self.files.iter().filter(|file| file.range.min() == Txid::FIRST);
        let first = starts.min_by_key(|file| file.range.max());
        let (first, last) = (self.told(first).await, self.told(self.files.last()).await);
        let why = match why {
            NoPlan::TooEarly => String::new(),
            NoPlan::EndsAt(txid) => format!(", and no file ends there: the last point before it is {txid}"),
        };
        format!("{} goes from {first} to {last}; {what} is not in it{why}", self.shown())
    }

    async fn told(&self, file: Option<&ArchiveFile>) -> String {
        let Some(file) = file else { return "nothing".into() };
        match self.time_of(file).await {
            Ok(time) => format!("transaction {} ({time})", file.range.max()),
            Err(_) => format!("transaction {}", file.range.max()),
        }
    }

    /// The time in a file's header.
    ///
    /// # Errors
    /// Where the file has to be asked and cannot be read.
    pub async fn time_of(&self, file: &ArchiveFile) -> Result<Timestamp, BackupError> {
        match file.time {
            Some(time) => Ok(time),
            None => Ok(Timestamp::from_ms(self.head(file).await?.0.timestamp_ms)),
        }
    }

    /// A file's header and attributes, by one small request.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn head(&self, file: &ArchiveFile) -> Result<(Header, Option<FileAttributes>), BackupError> {
        let key = self.key(file.level, file.range);
        let part = self.objects.peek(&key, 0..HEADER_SIZE as u64).await?;
        let decoder = Decoder::new(&part.body[..]).map_err(|error| BackupError::ltx(&key, error))?;
        Ok((*decoder.header(), FileAttributes::decode(&part.attributes)))
    }

    /// The last transaction at or before a time: times only grow with transactions, so few files are asked.
    async fn txid_at(&self, time: Timestamp) -> Result<Txid, BackupError> {
        if time > Timestamp::now() {
            return Err(BackupError::Invalid(format!("{time} is in the future")));
        }
        let ended = self.manifest().and_then(|manifest| manifest.ended_ms).map(Timestamp::from_ms);
        if let Some(ended) = ended.filter(|ended| *ended <= time) {
            let last = self.told(self.files.last()).await;
            return Err(BackupError::NotFound(format!(
                "{}: the database was dropped or renamed at {ended}, before {time}; its last point is {last}",
                self.shown()
            )));
        }
        let (mut low, mut high) = (0, self.files.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.time_of(&self.files[middle]).await? <= time { low = middle + 1 } else { high = middle }
        }
        match low.checked_sub(1) {
            Some(last) => Ok(self.files[last].range.max()),
            None => Err(BackupError::NotFound(self.outside(Point::Time(time), NoPlan::TooEarly).await)),
        }
    }
}

/// The manifest of a directory, and which state of it that is.
pub(super) async fn read_manifest(
    objects: &dyn Objects,
    directory: &str,
) -> Result<Option<(Manifest, Version)>, BackupError> {
    let key = manifest_key(directory);
    match objects.get(&key).await? {
        Some(object) => Ok(Some((Manifest::decode(&key, &object)?, object.version))),
        None => Ok(None),
    }
}

/// Adds to listed files what the manifest knows of them.
fn complete(files: &mut [ArchiveFile], manifest: &Manifest) {
    let known: BTreeMap<(u8, u64, u64), _> = manifest
        .files
        .iter()
        .filter_map(|file| Some(((file.level, file.range()?.min().get(), file.range()?.max().get()), file)))
        .collect();
    for file in files {
        if let Some(found) = known.get(&(file.level, file.range.min().get(), file.range.max().get())) {
            file.time = Some(found.time());
            file.pos = found.position.as_deref().and_then(|text| text.parse().ok());
        }
    }
}
