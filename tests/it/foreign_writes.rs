//! Programs other than SQLite write database files: what they write is on every node, or refused, and never half of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use rusqlite::Connection;

use crate::harness::sql::{self, PAGE_SIZES};
use crate::harness::{Cluster, Node, Options, eventually, is_plain, needs_skein};

/// Copies a file over another, or says why not.
type Tool = (&'static str, fn(&Path, &Path) -> Result<(), String>);

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn dd(from: &Path, to: &Path, options: &[&str]) -> Result<(), String> {
    let (from, to) = (format!("if={}", from.display()), format!("of={}", to.display()));
    run("dd", &[&[&from[..], &to[..]], options].concat())
}

fn copy_with(program: &str, options: &[&str], from: &Path, to: &Path) -> Result<(), String> {
    run(program, &[options, &[from.to_str().unwrap(), to.to_str().unwrap()]].concat())
}

fn write_all(mut file: File, from: &Path) -> Result<(), String> {
    let written = file.write_all(&fs::read(from).unwrap()).and_then(|()| file.flush());
    // What close(2) says.
    written
        .and_then(|()| nix::unistd::close(file).map_err(io::Error::from))
        .map_err(|error| error.to_string())
}

fn opened(options: &mut OpenOptions, from: &Path, to: &Path) -> Result<(), String> {
    options.open(to).map_err(|error| error.to_string()).and_then(|file| write_all(file, from))
}

/// Those that take a file that exists or does not.
const WHOLE: [Tool; 9] = [
    ("cp", |from, to| copy_with("cp", &[], from, to)),
    ("cp --sparse", |from, to| copy_with("cp", &["--sparse=always"], from, to)),
    ("dd", |from, to| dd(from, to, &["bs=8192"])),
    ("dd conv=sparse", |from, to| dd(from, to, &["bs=4096", "conv=sparse,fsync"])),
    ("rsync", |from, to| copy_with("rsync", &["-aI"], from, to)),
    ("rsync --inplace", |from, to| copy_with("rsync", &["-I", "--inplace"], from, to)),
    ("read, write, create and cut", |from, to| {
        opened(File::options().read(true).write(true).create(true).truncate(true), from, to)
    }),
    ("written backwards", |from, to| {
        let content = fs::read(from).unwrap();
        let file = File::create(to).map_err(|error| error.to_string())?;
        for (number, chunk) in content.chunks(3000).enumerate().rev() {
            file.write_all_at(chunk, 3000 * number as u64).map_err(|error| error.to_string())?;
        }
        nix::unistd::close(file).map_err(|error| error.to_string())
    }),
    ("cut to its size at last", |from, to| {
        let content = fs::read(from).unwrap();
        let data = &content[..content.len() - content.iter().rev().take_while(|byte| **byte == 0).count()];
        let file = File::options().read(true).write(true).create(true).truncate(true).open(to).unwrap();
        file.write_all_at(data, 0).and_then(|()| file.set_len(content.len() as u64)).unwrap();
        nix::unistd::close(file).map_err(|error| error.to_string())
    }),
];

/// Those that change a file in its place.
const IN_PLACE: [Tool; 5] = [
    ("dd conv=notrunc,fsync", |from, to| dd(from, to, &["bs=1M", "conv=notrunc,fsync"])),
    ("dd conv=notrunc in small blocks", |from, to| dd(from, to, &["bs=1000", "conv=notrunc"])),
    ("only for writing", |from, to| opened(File::options().write(true), from, to)),
    ("read and write", |from, to| opened(File::options().read(true).write(true), from, to)),
    ("one page at a time, synced", |from, to| {
        let content = fs::read(from).unwrap();
        let file = File::options().write(true).open(to).unwrap();
        for (number, chunk) in content.chunks(4096).enumerate() {
            file.write_all_at(chunk, 4096 * number as u64).map_err(|error| error.to_string())?;
            file.sync_all().map_err(|error| error.to_string())?;
        }
        nix::unistd::close(file).map_err(|error| error.to_string())
    }),
];

fn clusters() -> impl Iterator<Item = Cluster> {
    let options = [Options::replicas(1), Options::replicas(1).without_passthrough()];
    options.into_iter().filter_map(|options| Cluster::start(&options))
}

/// A database of 500 rows, the last page of which is zero.
fn filled(path: &Path, journal: &str, page_size: u32, factor: u32) {
    let connection = sql::create(path, journal, page_size);
    sql::run(
        &connection,
        &format!(
            "CREATE TABLE t(v, w); CREATE TABLE z(b);
             WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<500)
             INSERT INTO t SELECT x*{factor}, printf('%0200d', x*{factor}) FROM n;
             INSERT INTO z VALUES(zeroblob(200000))"
        ),
    );
}

const SUM: i64 = 500 * 501 / 2;

fn sum(path: &Path) -> i64 {
    let connection = sql::open(path);
    sql::check_integrity(&connection);
    sql::number(&connection, "SELECT sum(v) FROM t WHERE w = printf('%0200d', v)")
}

/// What `converge` asks for, also of a database that has been renamed since.
fn same_position(cluster: &Cluster, db: &str, what: &str) {
    if is_plain() {
        return;
    }
    eventually(&format!("the replica has what the primary has after {what}"), || {
        let pos = cluster.primary.pos(db)?;
        (cluster.replicas[0].pos(db)? == pos).then_some(())
    });
}

/// Both nodes show the sum, and go on to agree after another transaction.
fn agree_on(cluster: &Cluster, db: &str, expected: i64, what: &str) {
    same_position(cluster, db, what);
    assert_eq!(sum(&cluster.primary.path(db)), expected, "primary after {what}");
    assert_eq!(sum(&cluster.replicas[0].path(db)), expected, "replica after {what}");
    if !is_plain() {
        cluster.primary.must_client(&["db", "verify", db]);
    }
    let connection = sql::open(&cluster.primary.path(db));
    sql::run(&connection, "INSERT INTO t VALUES(1, printf('%0200d', 1))");
    drop(connection);
    same_position(cluster, db, what);
    assert_eq!(sum(&cluster.replicas[0].path(db)), expected + 1, "replica after {what} and an INSERT");
}

fn installed(tool: &str) -> bool {
    !tool.starts_with("rsync") || Command::new("rsync").arg("--version").output().is_ok()
}

#[test]
fn what_a_tool_writes_over_a_database_is_one_transaction_on_every_node() {
    for cluster in clusters() {
        for journal in ["wal", "delete"] {
            let source = cluster.dir().join(format!("source-{journal}.db"));
            filled(&source, journal, 4096, 3);
            for (number, (tool, copy)) in WHOLE.iter().chain(&IN_PLACE).enumerate() {
                let db = format!("{journal}-{number}.db");
                let target = cluster.primary.path(&db);
                filled(&target, journal, 4096, 1);
                cluster.converge(&db);
                if !installed(tool) {
                    continue;
                }
                let what = format!("{tool} over a database in mode {journal}");
                match copy(&source, &target) {
                    Ok(()) => agree_on(&cluster, &db, 3 * SUM, &what),
                    // It opens the file as some SQLite might, which would leave no journal to roll back with.
                    Err(_) if *tool == "read and write" && journal == "delete" => {
                        agree_on(&cluster, &db, SUM, &what);
                    }
                    Err(error) => panic!("{what}: {error}"),
                }
            }
        }
    }
}

#[test]
fn connections_that_are_open_see_what_a_tool_wrote() {
    for cluster in clusters() {
        for journal in ["wal", "delete"] {
            let source = cluster.dir().join(format!("source-{journal}.db"));
            filled(&source, journal, 4096, 3);
            // A rename over a database that is open is another matter.
            let tools = WHOLE.iter().chain(&IN_PLACE).filter(|(tool, _)| *tool != "rsync" && installed(tool));
            for (number, (tool, copy)) in tools.enumerate() {
                let db = format!("open-{journal}-{number}.db");
                let target = cluster.primary.path(&db);
                filled(&target, journal, 4096, 1);
                let open = sql::open(&target);
                assert_eq!(sql::number(&open, "SELECT sum(v) FROM t"), SUM);
                sql::run(&open, "UPDATE t SET v = v + 1, w = printf('%0200d', v + 1) WHERE rowid = 1");
                cluster.converge(&db);
                let expected = match copy(&source, &target) {
                    Ok(()) => 3 * SUM,
                    Err(_) if *tool == "read and write" && journal == "delete" => SUM + 1,
                    Err(error) => panic!("{tool} over an open database in mode {journal}: {error}"),
                };
                assert_eq!(sql::number(&open, "SELECT sum(v) FROM t"), expected, "{tool}, {journal}");
                agree_on(&cluster, &db, expected, &format!("{tool} over an open database in mode {journal}"));
                sql::check_integrity(&open);
            }
        }
    }
}

#[test]
fn whole_files_arrive_under_a_new_name_in_every_page_size() {
    for cluster in clusters() {
        for (journal, page_size) in
            [("wal", PAGE_SIZES[0]), ("delete", PAGE_SIZES[1]), ("wal", PAGE_SIZES[2])]
        {
            let source = cluster.dir().join(format!("source-{page_size}.db"));
            filled(&source, journal, page_size, 3);
            let new: Tool = ("a file that must not exist", |from, to| {
                opened(File::options().read(true).write(true).create_new(true), from, to)
            });
            let made: Tool = ("a file made where it is missing", |from, to| {
                opened(File::options().read(true).write(true).create(true).truncate(false), from, to)
            });
            for (number, (tool, copy)) in WHOLE.iter().chain([&new, &made]).enumerate() {
                if !installed(tool) {
                    continue;
                }
                let db = format!("new-{page_size}-{number}.db");
                copy(&source, &cluster.primary.path(&db)).unwrap_or_else(|error| panic!("{tool}: {error}"));
                agree_on(&cluster, &db, 3 * SUM, tool);
            }
        }
    }
}

#[test]
fn what_would_be_no_database_any_more_is_refused_and_nothing_has_changed() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters() {
        for journal in ["wal", "delete"] {
            let db = format!("{journal}.db");
            let target = cluster.primary.path(&db);
            filled(&target, journal, 4096, 1);
            sql::run(&sql::open(&target), "PRAGMA wal_checkpoint(PASSIVE)");
            let zeros = |length: usize| vec![0; length];
            let zero = cluster.dir().join("zero");
            fs::write(&zero, zeros(4096)).unwrap();
            assert!(dd(&zero, &target, &["bs=4096", "conv=notrunc"]).is_err(), "page 1 was zeroed");
            assert!(run("truncate", &["-s", "-4096", target.to_str().unwrap()]).is_err(), "it was cut");
            let cut = nix::unistd::truncate(&target, 4096);
            assert_eq!(cut, Err(Errno::EINVAL), "it was cut by its name");
            let half = fs::read(&target).unwrap();
            assert!(
                fs::write(&target, &half[..half.len() / 2 / 4096 * 4096]).is_ok(),
                "nobody has closed it yet"
            );
            let file = File::create(&target).unwrap();
            file.write_all_at(&half[..8192], 0).unwrap();
            assert_eq!(nix::unistd::close(file), Err(Errno::EINVAL), "half of it was taken");
            assert!(fs::write(&target, "text").is_err(), "text was taken");
            agree_on(&cluster, &db, SUM, "writes that were refused");
        }
    }
}

#[test]
fn a_file_longer_than_its_header_says_is_taken_as_sqlite_takes_it() {
    for cluster in clusters() {
        let source = cluster.dir().join("source.db");
        filled(&source, "delete", 4096, 3);
        for (number, more) in [1, 4096, 4096 * 7 + 100].into_iter().enumerate() {
            let longer = cluster.dir().join("longer.db");
            fs::copy(&source, &longer).unwrap();
            let size = fs::metadata(&longer).unwrap().len();
            File::options().write(true).open(&longer).unwrap().set_len(size + more).unwrap();
            assert_eq!(sum(&longer), 3 * SUM, "SQLite itself");
            let db = format!("longer-{number}.db");
            fs::copy(&longer, cluster.primary.path(&db)).unwrap();
            agree_on(&cluster, &db, 3 * SUM, "a copy that is too long");
            let size = fs::metadata(cluster.primary.path(&db)).unwrap().len();
            run(
                "truncate",
                &["-s", &format!("{}", size + more), cluster.primary.path(&db).to_str().unwrap()],
            )
            .unwrap();
            agree_on(&cluster, &db, 3 * SUM + 1, "an extension");
        }
    }
}

#[test]
fn a_page_size_that_the_old_size_is_no_multiple_of_can_be_chosen_in_every_rollback_mode() {
    for cluster in clusters() {
        for journal in ["delete", "truncate", "persist"] {
            for (from, to) in [(4096, 8192), (512, 65536), (8192, 1024)] {
                let db = format!("{journal}-{from}-{to}.db");
                let connection = sql::create(&cluster.primary.path(&db), journal, from);
                sql::run(&connection, "CREATE TABLE t(v, w)");
                // One page at a time, until the size is odd.
                let mut row = 0;
                while row < 115 || sql::number(&connection, "PRAGMA page_count") % 2 == 0 {
                    row += 1;
                    let padding = from * 2 / 3;
                    sql::run(&connection, &format!("INSERT INTO t VALUES({row}, zeroblob({padding}))"));
                }
                sql::run(&connection, "DELETE FROM t WHERE v > 10");
                sql::run(&connection, &format!("PRAGMA page_size={to}; VACUUM"));
                assert_eq!(sql::number(&connection, "PRAGMA page_size"), i64::from(to));
                sql::run(&connection, "UPDATE t SET w = printf('%0200d', v)");
                drop(connection);
                agree_on(&cluster, &db, 55, &format!("page size {from} to {to} in mode {journal}"));
            }
        }
    }
}

#[test]
fn a_log_or_journal_copied_beside_its_database_is_refused_before_anything_changed() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters() {
        let source = cluster.dir().join("source.db");
        filled(&source, "wal", 4096, 1);
        let writer = sql::open(&source);
        sql::run(&writer, "PRAGMA wal_autocheckpoint=0; INSERT INTO t VALUES(7, printf('%0200d', 7))");
        let side = |path: &Path, suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
        for (number, first) in [true, false].into_iter().enumerate() {
            let db = format!("copied-{number}.db");
            let target = cluster.primary.path(&db);
            let beside = || {
                for suffix in ["-wal", "-journal", "-shm"] {
                    for copy in [WHOLE[0].1, WHOLE[6].1, |from, to| dd(from, to, &["conv=notrunc"])] {
                        let copied = copy(&side(&source, "-wal"), &side(&target, suffix));
                        assert!(copied.is_err(), "{suffix} was taken");
                    }
                    assert!(!side(&target, suffix).exists(), "a {suffix} was left");
                }
            };
            if first {
                beside();
            }
            fs::copy(&source, &target).unwrap();
            beside();
            agree_on(&cluster, &db, SUM, "a copy of the database alone");
        }
        assert!(cluster.primary.log().contains("skein db import"), "the log does not say what to do");
    }
}

#[test]
fn positions_are_read_by_name_and_not_listed_so_that_a_directory_can_be_copied_back() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters() {
        fs::create_dir(cluster.primary.path("d")).unwrap();
        for (db, journal) in [("d/a.db", "wal"), ("d/b.db", "delete")] {
            filled(&cluster.primary.path(db), journal, 4096, 1);
            assert_eq!(fs::read(cluster.primary.path(&format!("{db}-pos"))).unwrap().len(), 34);
        }
        let listed = |dir: &Path| {
            let names =
                fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        };
        eventually("only the databases are listed", || {
            (listed(&cluster.primary.path("d")) == ["a.db", "b.db"]).then_some(())
        });
        let elsewhere = cluster.dir().join("elsewhere");
        run("cp", &["-r", cluster.primary.path("d").to_str().unwrap(), elsewhere.to_str().unwrap()]).unwrap();
        run("cp", &["-rT", elsewhere.to_str().unwrap(), cluster.primary.path("e").to_str().unwrap()])
            .unwrap();
        for db in ["e/a.db", "e/b.db"] {
            agree_on(&cluster, db, SUM, "cp -r there and back");
        }
    }
}

#[test]
fn names_and_directories_that_are_no_databases_are_refused_clearly() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters() {
        let made = fs::create_dir(cluster.primary.path(".app.db-litestream"));
        assert_eq!(made.unwrap_err().raw_os_error(), Some(Errno::EPERM as i32));
        assert!(cluster.primary.log().contains("meta-path"), "the log does not say what to do");
        let name = cluster.primary.mount().join(std::ffi::OsStr::from_bytes(b"caf\xe9.db"));
        let errno = Some(Errno::EILSEQ as i32);
        assert_eq!(File::create(&name).unwrap_err().raw_os_error(), errno);
        assert_eq!(fs::create_dir(&name).unwrap_err().raw_os_error(), errno);
        filled(&cluster.primary.path("a.db"), "delete", 4096, 1);
        assert_eq!(fs::rename(cluster.primary.path("a.db"), &name).unwrap_err().raw_os_error(), errno);
        agree_on(&cluster, "a.db", SUM, "a rename that was refused");
    }
}

#[test]
fn text_is_refused_and_leaves_no_file() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters() {
        let notes = cluster.primary.path("notes.txt");
        run("touch", &[notes.to_str().unwrap()]).unwrap();
        assert_eq!(
            fs::write(&notes, "remember the milk").unwrap_err().raw_os_error(),
            Some(Errno::EINVAL as i32)
        );
        eventually("the empty file goes", || (!notes.exists()).then_some(()));
        assert!(fs::write(&notes, "remember the milk").is_err());
        assert!(
            opened(
                File::options().read(true).write(true).create(true).truncate(false),
                Path::new("/etc/passwd"),
                &notes
            )
            .is_err()
        );
        eventually("no file is left", || (!notes.exists()).then_some(()));
        assert!(!cluster.primary.path("notes.txt-pos").exists());
    }
}

#[test]
fn a_file_that_was_unlinked_while_it_is_open_stays_usable_on_this_node_alone() {
    for cluster in clusters() {
        let path = cluster.primary.path("scratch");
        for options in [File::options().create_new(true), File::options().create(true).truncate(true)] {
            let mut file = options.read(true).write(true).open(&path).unwrap();
            fs::remove_file(&path).unwrap();
            file.write_all(&[b'x'; 100_000]).unwrap();
            file.set_len(70_000).unwrap();
            file.sync_all().unwrap();
            let mut read = Vec::new();
            file.seek(SeekFrom::Start(10)).unwrap();
            file.read_to_end(&mut read).unwrap();
            assert_eq!(read, vec![b'x'; 69_990]);
            nix::unistd::close(file).unwrap();
            assert!(!path.exists(), "the file is back");
        }
        // Staged first, unlinked then: nothing of it comes into the log.
        let source = cluster.dir().join("source.db");
        filled(&source, "delete", 4096, 1);
        let mut file = File::create(&path).unwrap();
        file.write_all(&fs::read(&source).unwrap()).unwrap();
        fs::remove_file(&path).unwrap();
        file.sync_all().unwrap();
        nix::unistd::close(file).unwrap();
        assert!(!path.exists() && cluster.primary.pos("scratch").is_none(), "it came into the log");
    }
}

#[test]
fn sqlite_keeps_its_temporary_files_on_the_mount() {
    for cluster in clusters() {
        filled(&cluster.primary.path("app.db"), "wal", 4096, 1);
        cluster.converge("app.db");
        let sort = "PRAGMA temp_store=FILE; PRAGMA cache_size=10; CREATE TEMP TABLE big(v);
                    INSERT INTO big WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<30000)
                    SELECT printf('%0100d', x*7919%30011) FROM n;
                    CREATE INDEX temp.i ON big(v); SELECT count(*) FROM (SELECT v FROM big ORDER BY v)";
        for (node, sql) in
            [(&cluster.primary, "VACUUM"), (&cluster.primary, sort), (&cluster.replicas[0], sort)]
        {
            let output = Command::new("sqlite3")
                .arg(node.path("app.db"))
                .arg(sql)
                .env("SQLITE_TMPDIR", node.mount())
                .output()
                .unwrap();
            assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        }
        agree_on(&cluster, "app.db", SUM, "VACUUM and a sort");
        let left = fs::read_dir(cluster.primary.mount())
            .unwrap()
            .any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with("etilqs_"));
        assert!(!left, "a temporary file is listed");
    }
}

/// A database in WAL mode with 8 bytes reserved at the end of each page, as SQLite's checksum VFS asks for.
fn with_reserved_bytes(path: &Path) -> Connection {
    let connection = sql::open(path);
    let mut reserved = 8_i32;
    // SAFETY: the connection is open, and the file control reads and writes one int.
    let result = unsafe {
        rusqlite::ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            rusqlite::ffi::SQLITE_FCNTL_RESERVE_BYTES,
            (&raw mut reserved).cast(),
        )
    };
    assert_eq!(result, rusqlite::ffi::SQLITE_OK);
    assert_eq!(sql::text(&connection, "PRAGMA journal_mode=wal"), "wal");
    connection
}

/// Fills the reserved bytes of these pages in the database file, as such a VFS does when a checkpoint writes them.
fn fill_reserved(node: &Node, db: &str, pages: std::ops::Range<u64>, with: u8) {
    let path = node.data().join("dbs").join(db).join("database");
    let file = File::options().write(true).open(path).unwrap();
    pages.for_each(|page| file.write_all_at(&[with; 8], (page + 1) * 4096 - 8).unwrap());
}

#[test]
fn what_a_vfs_fills_into_reserved_bytes_at_a_checkpoint_is_the_same_on_every_node() {
    for cluster in clusters() {
        for synchronous in ["FULL", "NORMAL", "OFF"] {
            let db = format!("{synchronous}.db");
            let path = cluster.primary.path(&db);
            let connection = with_reserved_bytes(&path);
            sql::run(&connection, &format!("PRAGMA synchronous={synchronous}; CREATE TABLE t(v)"));
            let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 20) INSERT INTO t SELECT zeroblob(3000) FROM n";
            sql::run(&connection, fill);
            cluster.converge(&db);
            sql::run(&connection, "PRAGMA wal_checkpoint(PASSIVE)");
            fill_reserved(&cluster.primary, &db, 0..10, 0xaa);
            // The log begins anew: from here on the file counts.
            sql::run(&connection, "UPDATE t SET v=1 WHERE rowid=20");
            let bytes = cluster.same_bytes(&db);
            assert_eq!(bytes[10 * 4096 - 8..10 * 4096], [0xaa; 8], "{synchronous}");
            sql::run(&connection, "UPDATE t SET v=zeroblob(2000); PRAGMA wal_checkpoint(PASSIVE)");
            fill_reserved(&cluster.primary, &db, 4..5, 0xbb);
            drop(connection);
            let bytes = cluster.same_bytes(&db);
            assert_eq!(bytes[5 * 4096 - 8..5 * 4096], [0xbb; 8], "{synchronous}");
            cluster.primary.must_client(&["db", "verify", &db]);
            assert_eq!(sql::number(&sql::open(&cluster.replicas[0].path(&db)), "SELECT count(*) FROM t"), 20);
        }
    }
}

/// Begins a transaction as SQLite does below an encryption: a journal in force, then a first page that is no header. Gives
/// what the write of that page came to.
fn encrypted_first_page(path: &Path) -> io::Result<()> {
    let journal = path.with_extension("db-journal");
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).custom_flags(nix::libc::O_NOFOLLOW);
    let database = options.open(path).unwrap();
    let mut header = vec![0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    [0_u32, 1, 0, 512, 4096].iter().for_each(|field| header.extend_from_slice(&field.to_be_bytes()));
    header.resize(512, 0);
    options.open(&journal).unwrap().write_all_at(&header, 0).unwrap();
    let written = database.write_all_at(&[0x5a; 4096], 0);
    fs::remove_file(&journal).unwrap();
    written
}

#[test]
fn an_encrypted_first_page_is_refused_at_once_and_leaves_no_file() {
    if !needs_skein() {
        return;
    }
    for cluster in clusters() {
        let (new, old) = (cluster.primary.path("new.db"), cluster.primary.path("old.db"));
        filled(&old, "delete", 4096, 1);
        for path in [&new, &old] {
            let refused = encrypted_first_page(path).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(Errno::EINVAL as i32));
            assert!(!path.with_extension("db-journal").exists());
        }
        assert!(
            cluster.primary.log().contains("cipher_plaintext_header_size=32"),
            "the log says the way that works"
        );
        let copy = cluster.replicas[0].path("new.db");
        eventually("no file is left", || (!new.exists() && !copy.exists()).then_some(()));
        agree_on(&cluster, "old.db", SUM, "a page that was refused");
    }
}
