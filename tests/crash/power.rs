//! Power cuts: the data directory is on a disk image, of which only what reached the disk survives.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::harness::sql::JOURNAL_MODES;
use crate::harness::{Cluster, Options, eventually, is_plain, skip, unmount};
use crate::{Acknowledged, Traffic, first_seed, rounds, settle};

const IMAGE_MIB: u64 = 1500;

/// A disk that can lose its power: an ext4 file system in a file, mounted through a loop device. What the file has
/// not got yet was in memory only.
struct Disk {
    image: PathBuf,
    mounted: PathBuf,
}

impl Disk {
    /// Makes and mounts one below `dir`; none where that is not possible here.
    fn new(dir: &Path) -> Option<Self> {
        let disk = Self { image: dir.join("disk.img"), mounted: dir.join("disk") };
        std::fs::create_dir(&disk.mounted).unwrap();
        std::fs::File::create(&disk.image).unwrap().set_len(IMAGE_MIB << 20).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.image).status();
        (made.is_ok_and(|status| status.success()) && disk.mount()).then_some(disk)
    }

    fn mount(&self) -> bool {
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mounted).status();
        mounted.is_ok_and(|status| status.success())
    }

    /// What is on the disk at this moment, as a copy.
    fn freeze(&self) -> PathBuf {
        let copy = self.image.with_extension("copy");
        let copied = Command::new("cp").arg("--sparse=always").arg(&self.image).arg(&copy).status().unwrap();
        assert!(copied.success());
        copy
    }

    /// Goes on with a copy: everything that reached the disk later, or not at all, is lost.
    fn restore(&self, copy: &Path) {
        // What the killed daemon had open is let go of a moment later.
        eventually("the disk is no more in use", || umount2(&self.mounted, MntFlags::empty()).ok());
        std::fs::rename(copy, &self.image).unwrap();
        assert!(self.mount());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.mounted);
    }
}

fn cut_the_power(of_primary: bool) {
    if is_plain() || !nix::unistd::geteuid().is_root() {
        return skip("a disk image can be mounted by root only, and a plain directory has no log");
    }
    let dir = tempfile::Builder::new().prefix("skein-disk-").tempdir().unwrap();
    let Some(disk) = Disk::new(dir.path()) else { return skip("mkfs.ext4 or a loop device is missing") };
    let data = Some(disk.mounted.join("data"));
    let mut options = Options::replicas(1);
    if of_primary {
        options.primary_data = data
    } else {
        options.replica_data = data
    }
    let Some(mut cluster) = Cluster::start(&options) else { return };
    let mut acknowledged = Acknowledged::new();
    for seed in first_seed()..first_seed() + rounds().div_ceil(4) {
        let mut random = StdRng::seed_from_u64(seed);
        let journal = *JOURNAL_MODES.choose(&mut random).unwrap();
        let whose = if of_primary { "the primary" } else { "the replica" };
        let context = format!("SKEIN_CRASH_SEED={seed} ({journal}, power cut of {whose})");
        let mut traffic = Traffic::start(&cluster, journal, seed);
        traffic.warm_up(40, Duration::from_secs(20));
        // The moment is what this test draws; the system writes back what is five seconds old.
        std::thread::sleep(Duration::from_millis(random.random_range(0..1500)));
        let victim = if of_primary { &mut cluster.primary } else { &mut cluster.replicas[0] };
        // From here on the primary acknowledges nothing.
        kill(Pid::from_raw(i32::try_from(victim.pid()).unwrap()), Signal::SIGSTOP).unwrap();
        let copy = disk.freeze();
        victim.kill9();
        traffic.kill(&mut acknowledged);
        let victim = if of_primary { &cluster.primary } else { &cluster.replicas[0] };
        unmount(&victim.mount());
        disk.restore(&copy);
        settle(&mut cluster, &acknowledged, &context);
        eprintln!("{context}: {} commits kept", acknowledged.values().sum::<i64>());
    }
    drop(cluster);
}

#[test]
fn acknowledged_commits_survive_power_cuts_of_the_primary() {
    cut_the_power(true);
}

#[test]
fn a_replica_converges_after_power_cuts() {
    cut_the_power(false);
}
