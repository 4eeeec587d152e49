//! One node: what programs other than SQLite do to the files of a mount.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;

use crate::harness::sql::{self, JOURNAL_MODES, PAGE_SIZES};
use crate::harness::{Cluster, Options, needs_skein};

fn on_both_mounts(test: impl Fn(&mut Cluster)) {
    for options in [Options::replicas(0), Options::replicas(0).without_passthrough()] {
        if let Some(mut cluster) = Cluster::start(&options) {
            test(&mut cluster);
        }
    }
}

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    // Always there, whatever databases are.
    names.retain(|name| name != ".lag");
    names
}

fn filled(path: &Path, journal: &str, page_size: u32) {
    let connection = sql::create(path, journal, page_size);
    sql::run(&connection, "CREATE TABLE t(v); INSERT INTO t VALUES(1),(2),(3)");
}

#[test]
fn a_deleted_database_is_gone_and_its_name_free() {
    on_both_mounts(|cluster| {
        for journal in JOURNAL_MODES {
            let path = cluster.primary.path(&format!("{journal}.db"));
            for _ in 0..3 {
                filled(&path, journal, 4096);
                for name in listing(&cluster.primary.mount()) {
                    // The first to go is the database; its journal may go with it.
                    let removed = fs::remove_file(cluster.primary.path(&name)).map_err(|error| error.kind());
                    assert!(matches!(removed, Ok(()) | Err(ErrorKind::NotFound)), "{name}: {removed:?}");
                }
                assert_eq!(listing(&cluster.primary.mount()), Vec::<String>::new());
                assert_eq!(fs::metadata(&path).unwrap_err().raw_os_error(), Some(Errno::ENOENT as i32));
            }
        }
    });
}

#[test]
fn a_renamed_database_replaces_what_had_the_name() {
    on_both_mounts(|cluster| {
        for journal in JOURNAL_MODES {
            let (from, to) = (cluster.primary.path("from.db"), cluster.primary.path("to.db"));
            filled(&from, journal, 4096);
            filled(&to, "delete", 512);
            fs::rename(&from, &to).unwrap();
            assert!(!from.exists());
            let connection = sql::open(&to);
            assert_eq!(sql::number(&connection, "PRAGMA page_size"), 4096);
            assert_eq!(sql::number(&connection, "SELECT sum(v) FROM t"), 6);
            sql::run(&connection, "INSERT INTO t VALUES(4)");
            sql::check_integrity(&connection);
            drop(connection);
            fs::remove_file(&to).unwrap();
        }
    });
}

#[test]
fn subdirectories_hold_databases_and_survive_a_restart() {
    on_both_mounts(|cluster| {
        fs::create_dir_all(cluster.primary.path("tenants/7")).unwrap();
        fs::create_dir(cluster.primary.path("empty")).unwrap();
        filled(&cluster.primary.path("tenants/7/app.db"), "wal", 4096);
        cluster.primary.restart();
        assert_eq!(listing(&cluster.primary.mount()), ["empty", "tenants"]);
        let connection = sql::open(&cluster.primary.path("tenants/7/app.db"));
        assert_eq!(sql::number(&connection, "SELECT count(*) FROM t"), 3);
        drop(connection);
        let busy = fs::remove_dir(cluster.primary.path("tenants")).unwrap_err();
        assert_eq!(busy.raw_os_error(), Some(Errno::ENOTEMPTY as i32));
        fs::remove_dir(cluster.primary.path("empty")).unwrap();
    });
}

#[test]
fn mode_owner_and_times_are_kept_across_a_restart() {
    on_both_mounts(|cluster| {
        let path = cluster.primary.path("app.db");
        filled(&path, "wal", 4096);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
        }
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_234_567_890);
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        for _ in 0..2 {
            let found = fs::metadata(&path).unwrap();
            assert_eq!(found.permissions().mode() & 0o7777, 0o640);
            assert_eq!(found.modified().unwrap(), time);
            if nix::unistd::geteuid().is_root() {
                assert_eq!((found.uid(), found.gid()), (12, 34));
            }
            cluster.primary.restart();
        }
    });
}

#[test]
fn free_space_is_that_of_the_data_directory() {
    on_both_mounts(|cluster| {
        let (mount, data) =
            (statvfs(&cluster.primary.mount()).unwrap(), statvfs(&cluster.primary.data()).unwrap());
        assert_eq!(
            mount.blocks() * mount.fragment_size(),
            data.blocks() * data.fragment_size(),
            "df on the mount shows another disk"
        );
        assert!(mount.blocks_available() > 0);
    });
}

#[test]
fn a_database_file_is_copied_in_and_captured() {
    on_both_mounts(|cluster| {
        for journal in JOURNAL_MODES {
            for page_size in PAGE_SIZES {
                let outside = cluster.dir().join("outside.db");
                let connection = sql::create(&outside, journal, page_size);
                sql::run(
                    &connection,
                    "CREATE TABLE t(v); INSERT INTO t VALUES(1),(2),(3),(zeroblob(100000))",
                );
                drop(connection);
                let db = format!("copied-{journal}-{page_size}.db");
                fs::copy(&outside, cluster.primary.path(&db)).unwrap();
                let expected = fs::read(&outside).unwrap();
                crate::harness::eventually("the copy is captured", || {
                    (cluster.primary.export(&db).ok()? == expected).then_some(())
                });
                let copied = sql::open(&cluster.primary.path(&db));
                sql::check_integrity(&copied);
                sql::run(&copied, "INSERT INTO t VALUES(4)");
                assert_eq!(sql::number(&copied, "SELECT count(*) FROM t"), 5);
                drop(copied);
                fs::remove_file(&outside).unwrap();
            }
        }
    });
}

#[test]
fn a_connection_that_opens_a_database_right_behind_the_daemon_gets_a_log_it_can_write() {
    on_both_mounts(|cluster| {
        let (path, log) = (cluster.primary.path("app.db"), cluster.primary.path("app.db-wal"));
        filled(&path, "wal", 4096);
        for round in 0..100 {
            // For an export the daemon makes the log and its index, and removes both when the file is opened next.
            assert!(!cluster.primary.export("app.db").unwrap().is_empty());
            let as_sqlite = |path: &Path| {
                let mut options = fs::File::options();
                options.read(true).write(true).create(true).custom_flags(nix::libc::O_NOFOLLOW);
                options
                    .open(path)
                    .unwrap_or_else(|error| panic!("round {round}: {}: {error}", path.display()))
            };
            let database = as_sqlite(&path);
            drop(as_sqlite(&log));
            drop(database);
        }
        let connection = sql::open(&path);
        sql::run(&connection, "INSERT INTO t VALUES(4)");
    });
}

#[test]
fn a_file_that_is_no_database_is_refused_with_the_reason_in_the_log() {
    if !needs_skein() {
        return;
    }
    on_both_mounts(|cluster| {
        let path = cluster.primary.path("notes.txt");
        let refused = fs::File::create(&path).and_then(|mut file| {
            file.write_all(&[b'x'; 8192])?;
            file.sync_all()
        });
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(Errno::EINVAL as i32));
        assert!(cluster.primary.log().contains("notes.txt"), "the log does not name the file");
        let link = std::os::unix::fs::symlink("/etc/passwd", cluster.primary.path("link.db"));
        assert!(link.is_err(), "a symbolic link was made");
        filled(&cluster.primary.path("a.db"), "wal", 4096);
        let hard = fs::hard_link(cluster.primary.path("a.db"), cluster.primary.path("b.db"));
        assert!(hard.is_err(), "a hard link was made");
    });
}

#[test]
fn journal_modes_that_cannot_be_rolled_back_are_refused_on_write() {
    if !needs_skein() {
        return;
    }
    on_both_mounts(|cluster| {
        for journal in ["off", "memory"] {
            let path = cluster.primary.path(&format!("{journal}.db"));
            filled(&path, "delete", 4096);
            let connection = sql::open(&path);
            assert_eq!(sql::text(&connection, &format!("PRAGMA journal_mode={journal}")), journal);
            let refused =
                connection.execute_batch("UPDATE t SET v = v + 10; INSERT INTO t VALUES(randomblob(9000))");
            assert!(refused.is_err(), "journal_mode {journal} wrote");
            drop(connection);
            let after = sql::open(&path);
            assert_eq!(sql::number(&after, "SELECT sum(v) FROM t"), 6);
            sql::check_integrity(&after);
            assert!(
                cluster.primary.log().contains(&format!("{journal}.db")),
                "the log does not name the file"
            );
        }
    });
}

#[test]
fn control_files_tell_the_position_and_that_this_is_the_primary() {
    if !needs_skein() {
        return;
    }
    on_both_mounts(|cluster| {
        filled(&cluster.primary.path("app.db"), "delete", 4096);
        let (txid, checksum) = cluster.primary.pos("app.db").unwrap();
        let shown = fs::read_to_string(cluster.primary.path("app.db-pos")).unwrap();
        assert_eq!(shown.trim_end(), format!("{txid}/{checksum}"));
        assert_eq!(txid.len(), 16);
        assert!(!cluster.primary.path(".primary").exists(), "the primary shows .primary");
    });
}

#[test]
fn acknowledged_rows_are_there_after_an_orderly_restart() {
    on_both_mounts(|cluster| {
        for journal in JOURNAL_MODES {
            for synchronous in ["normal", "full"] {
                let path = cluster.primary.path(&format!("{journal}-{synchronous}.db"));
                let connection = sql::create(&path, journal, 4096);
                sql::run(&connection, &format!("PRAGMA synchronous={synchronous}; CREATE TABLE t(v)"));
                for row in 0..50 {
                    connection.execute("INSERT INTO t VALUES(?1)", [row]).unwrap();
                }
            }
        }
        for _ in 0..2 {
            cluster.primary.restart();
            for name in listing(&cluster.primary.mount()).iter().filter(|name| name.ends_with(".db")) {
                let connection = sql::open(&cluster.primary.path(name));
                assert_eq!(sql::number(&connection, "SELECT count(*) FROM t"), 50, "{name}");
                sql::check_integrity(&connection);
            }
        }
    });
}

#[test]
#[ignore = "writes 1.1 GiB twice; scripts/soak runs it"]
fn a_database_over_one_gibibyte_leaves_the_lock_page_out() {
    on_both_mounts(|cluster| {
        for journal in ["wal", "delete"] {
            let path = cluster.primary.path(&format!("huge-{journal}.db"));
            let connection = sql::create(&path, journal, 65536);
            sql::run(&connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)");
            let sql =
                "INSERT INTO t(v) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<110)
                       SELECT zeroblob(1048576) FROM n";
            for _ in 0..10 {
                sql::run(&connection, sql);
            }
            sql::run(&connection, "INSERT INTO t(v) VALUES('beyond the lock page')");
            sql::check_integrity(&connection);
            drop(connection);
            cluster.primary.restart();
            let connection = sql::open(&path);
            assert_eq!(sql::number(&connection, "SELECT count(*) FROM t"), 1101);
            sql::check_integrity(&connection);
            drop(connection);
            let exported = cluster.dir().join("exported.db");
            fs::write(&exported, cluster.primary.export(&format!("huge-{journal}.db")).unwrap()).unwrap();
            let copy = sql::open(&exported);
            sql::check_integrity(&copy);
            assert_eq!(sql::number(&copy, "SELECT count(*) FROM t"), 1101);
            drop(copy);
            fs::remove_file(&path).unwrap();
        }
    });
}
