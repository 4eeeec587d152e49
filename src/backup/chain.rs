use std::sync::Arc;

use super::archive::{Archive, read_manifest};
use super::attributes::FileAttributes;
use super::layout::{SNAPSHOT, directory_of, manifest_key};
use super::{ArchiveFile, BackupError, Manifest, ManifestFile, Objects, PlanFile, Version, plan};
use crate::types::{DbName, LogIndex, PageCount, PageSize, Pos, Timestamp, Txid, TxidRange};

/// What a database's files in the bucket can be followed from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Base {
    /// Nothing: a snapshot has to be made of the database as it is.
    Needed,
    /// A snapshot that is being made.
    UnderWay,
    /// Something that is in the bucket.
    There,
}

/// The files of one database in the bucket, as the uploader knows them.
#[derive(Debug)]
pub(super) struct Chain {
    /// Directory of its objects.
    pub directory: String,
    /// What is added to a transaction number of the cluster to get that of the files.
    pub offset: u64,
    /// The cluster's position that the files reach, once the base is there.
    pub pos: Pos,
    /// The log entry of that position: entries up to it are in the files.
    pub index: LogIndex,
    /// When it was committed; grows with each file, whatever the primaries' clocks do.
    pub time: Timestamp,
    /// Page size at the position.
    pub page_size: PageSize,
    /// Size at the position.
    pub pages: PageCount,
    /// The files.
    pub files: Vec<ArchiveFile>,
    /// What they begin with.
    pub base: Base,
    /// When the database was dropped or renamed away.
    pub ended: Option<Timestamp>,
    /// The stored manifest.
    pub manifest: Option<Version>,
    /// Distinguishes one incarnation of the database, and one attempt at a base, from the next.
    pub generation: u64,
    /// Whether files are being merged, or a snapshot is being made that is no base.
    pub busy: bool,
}

impl Chain {
    /// Of a database that has no files yet.
    fn new(directory: String) -> Self {
        Self {
            directory,
            offset: 0,
            pos: Pos::ZERO,
            index: LogIndex::ZERO,
            time: Timestamp::from_ms(0),
            page_size: PageSize::DEFAULT,
            pages: PageCount::ZERO,
            files: Vec::new(),
            base: Base::Needed,
            ended: None,
            manifest: None,
            generation: 0,
            busy: false,
        }
    }

    /// Finds out where the files of a database stand, those listed in its directory. One request for a database that
    /// nobody has changed since its manifest was written, two for others.
    ///
    /// # Errors
    /// [`BackupError::Foreign`] where another program or cluster wrote the files.
    pub async fn load(
        objects: &Arc<dyn Objects>,
        db: &DbName,
        cluster: &str,
        listed: Vec<ArchiveFile>,
    ) -> Result<Self, BackupError> {
        let directory = directory_of(db);
        let mut chain = Self::new(directory.clone());
        let Some((manifest, version)) = read_manifest(&**objects, &directory).await? else {
            if !listed.is_empty() {
                return Err(BackupError::Foreign(format!(
                    "{directory} has files of another program: back up to another path"
                )));
            }
            return Ok(chain);
        };
        if manifest.cluster != cluster {
            return Err(BackupError::Foreign(format!(
                "{directory} has the backup of cluster {}: back up to another path",
                manifest.cluster
            )));
        }
        let archive = Archive::of(objects.clone(), &directory, listed, manifest.clone(), version.clone());
        chain.manifest = Some(version);
        chain.offset = manifest.offset;
        chain.ended = manifest.ended_ms.map(Timestamp::from_ms);
        chain.files = archive.files().to_vec();
        let Some(end) = chain.end() else { return Ok(chain) };
        chain.stand_at_manifest(&manifest);
        let reached = chain.pos.txid.map(|txid| txid.get() + chain.offset);
        if reached != Some(end.get()) {
            chain.stand_at_last_file(&archive, cluster).await?;
        }
        let files: Vec<PlanFile> =
            chain.files.iter().map(|file| PlanFile { level: file.level, range: file.range }).collect();
        let whole = plan(&files, None).ok().and_then(|plan| plan.last().map(|file| file.range.max()));
        if whole != Some(end) {
            chain.base = Base::Needed;
        }
        Ok(chain)
    }

    fn stand_at_manifest(&mut self, manifest: &Manifest) {
        if let Some((pos, page_size)) = manifest.pos().zip(manifest.page_size()) {
            (self.pos, self.index, self.page_size) = (pos, manifest.log_index(), page_size);
            (self.pages, self.time) = (manifest.page_count(), Timestamp::from_ms(manifest.time_ms));
            self.base = Base::There;
        }
    }

    /// Files have come since the manifest was written: the last one says where it leads.
    async fn stand_at_last_file(&mut self, archive: &Archive, cluster: &str) -> Result<(), BackupError> {
        self.base = Base::Needed;
        let Some(last) = archive.files().last() else { return Ok(()) };
        let (header, attributes) = archive.head(last).await?;
        let Some(attributes) = attributes.filter(|attributes| attributes.cluster == cluster) else {
            return Ok(());
        };
        let reached = attributes.pos.txid.map(|txid| txid.get() + self.offset);
        if reached == Some(last.range.max().get()) {
            (self.pos, self.index, self.time) = (attributes.pos, attributes.index, attributes.time);
            (self.page_size, self.pages) = (header.page_size, header.commit);
            self.base = Base::There;
        }
        Ok(())
    }

    /// The last transaction of the files.
    pub fn end(&self) -> Option<Txid> {
        self.files.iter().map(|file| file.range.max()).max()
    }

    /// Transactions of the cluster in the numbers of the files.
    pub fn shifted(&self, range: TxidRange) -> Result<TxidRange, BackupError> {
        let shift = |txid: Txid| txid.checked_add(self.offset);
        let shifted = shift(range.min()).zip(shift(range.max()));
        shifted.and_then(|(min, max)| TxidRange::new(min, max)).ok_or_else(|| {
            BackupError::Invalid(format!("{}: transaction numbers do not go further", self.directory))
        })
    }

    /// Gives up what the files reach: they go on with a new snapshot.
    pub fn need_base(&mut self) {
        self.base = Base::Needed;
        self.generation += 1;
    }

    /// Goes on behind a snapshot that is taken at `pos`. Numbers never come back: where the files reach further than the
    /// snapshot, theirs are shifted.
    pub fn begin_at(&mut self, pos: Pos, index: LogIndex, size: (PageSize, PageCount), time: Timestamp) {
        let (end, txid) = (self.end().map_or(0, Txid::get), pos.txid_or_zero());
        let stays = self.pos == pos && txid + self.offset == end;
        if txid + self.offset <= end && !stays {
            self.offset = end + 1 - txid;
        }
        (self.pos, self.index, (self.page_size, self.pages)) = (pos, index, size);
        self.time = self.time.max(time);
        (self.base, self.ended) = (Base::UnderWay, None);
    }

    /// The database is no more, or has another name.
    pub fn end_at(&mut self, index: LogIndex, time: Timestamp) {
        self.ended = Some(self.time.max(time));
        self.index = index;
        self.generation += 1;
        self.base = Base::Needed;
    }

    /// Whether anything was committed since the last snapshot.
    pub fn has_changed_since_snapshot(&self) -> bool {
        let snapshot =
            self.files.iter().filter(|file| file.level == SNAPSHOT).map(|file| file.range.max()).max();
        self.end() != snapshot
    }

    /// When the last snapshot was.
    pub fn snapshot_time(&self) -> Option<Timestamp> {
        self.files.iter().filter(|file| file.level == SNAPSHOT).filter_map(|file| file.time).max()
    }

    /// What is stored with a file that leads to the position.
    pub fn attributes(&self, cluster: &str, epoch: u64) -> FileAttributes {
        FileAttributes {
            time: self.time,
            pos: self.pos,
            index: self.index,
            cluster: cluster.to_owned(),
            epoch,
        }
    }

    /// Stores the manifest; it is a conflict where another uploader has stored one.
    ///
    /// # Errors
    /// As the bucket says.
    pub async fn store_manifest(
        &mut self,
        objects: &dyn Objects,
        db: &DbName,
        cluster: &str,
        epoch: u64,
    ) -> Result<(), BackupError> {
        let (key, body) = (manifest_key(&self.directory), self.document(db, cluster, epoch).encode());
        let stored = objects.put_if(&key, body.clone().into(), self.manifest.clone()).await;
        let version = match stored {
            // Our own, the answer to which was lost?
            Err(BackupError::Conflict(what)) => match objects.get(&key).await? {
                Some(object) if object.body == body => object.version,
                _ => return Err(BackupError::Conflict(what)),
            },
            stored => stored?,
        };
        self.manifest = Some(version);
        Ok(())
    }

    fn document(&self, db: &DbName, cluster: &str, epoch: u64) -> Manifest {
        let known = self.base == Base::There || self.ended.is_some();
        let pos = if known { self.pos } else { Pos::ZERO };
        Manifest {
            format: Manifest::FORMAT,
            database: db.to_string(),
            cluster: cluster.to_owned(),
            epoch,
            position: pos.to_string(),
            index: self.index.get(),
            time_ms: self.time.ms(),
            offset: self.offset,
            page_size: self.page_size.get(),
            pages: self.pages.get(),
            ended_ms: self.ended.map(Timestamp::ms),
            files: self
                .files
                .iter()
                .map(|file| ManifestFile {
                    level: file.level,
                    min: file.range.min().to_string(),
                    max: file.range.max().to_string(),
                    time_ms: file.time.unwrap_or(self.time).ms(),
                    size_bytes: file.size_bytes,
                    position: file.pos.map(|pos| pos.to_string()),
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Checksum;

    fn chain(offset: u64, end: u64, pos: u64) -> Chain {
        let mut chain = Chain::new("a".into());
        let range = TxidRange::new(Txid::FIRST, Txid::new(end).unwrap()).unwrap();
        chain.files.push(ArchiveFile { level: SNAPSHOT, range, size_bytes: 1, time: None, pos: None });
        (chain.offset, chain.pos) = (offset, at(pos));
        chain
    }

    fn at(txid: u64) -> Pos {
        Pos::new(Txid::new(txid).unwrap(), Checksum::new(txid))
    }

    #[test]
    fn numbers_of_files_never_come_back() {
        let size = (PageSize::DEFAULT, PageCount::new(1));
        for (offset, end, pos, begins, expected) in [
            // Behind a gap the numbers go on.
            (0, 9, 9, at(12), 0),
            // The database was made anew.
            (0, 9, 9, at(2), 8),
            (8, 12, 4, at(1), 12),
            // Another one, further on, has taken its name.
            (0, 9, 9, at(40), 0),
            // The same position once more.
            (3, 9, 6, at(6), 3),
            // The same number of another history.
            (0, 9, 9, Pos::new(Txid::new(9).unwrap(), Checksum::new(1)), 1),
        ] {
            let mut chain = chain(offset, end, pos);
            chain.begin_at(begins, LogIndex::new(1), size, Timestamp::from_ms(5));
            assert_eq!(chain.offset, expected, "{begins}");
            let first = chain.shifted(TxidRange::single(begins.txid.unwrap())).unwrap();
            assert!(first.max().get() > end || chain.offset == offset && begins == at(pos));
        }
    }

    #[test]
    fn time_grows_whatever_the_clocks_do() {
        let mut chain = chain(0, 9, 9);
        chain.time = Timestamp::from_ms(100);
        chain.begin_at(
            at(12),
            LogIndex::new(1),
            (PageSize::DEFAULT, PageCount::new(1)),
            Timestamp::from_ms(5),
        );
        assert_eq!(chain.time, Timestamp::from_ms(100));
        chain.end_at(LogIndex::new(2), Timestamp::from_ms(7));
        assert_eq!(chain.ended, Some(Timestamp::from_ms(100)));
    }
}
