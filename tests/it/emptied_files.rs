//! A database file that is cut to nothing is a new database, on every node.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;

use crate::harness::sql::{self, JOURNAL_MODES};
use crate::harness::{Cluster, Options, Voters, needs_skein};

/// Cuts a file to nothing, or says which number close(2), or the call, came to.
type Way = (&'static str, fn(&Path) -> Result<(), Errno>);

fn shell(command: &str, path: &Path) -> Result<(), Errno> {
    let status = Command::new("sh").args(["-c", command, "sh"]).arg(path).status().unwrap();
    if status.success() { Ok(()) } else { Err(Errno::EIO) }
}

fn cut(file: File) -> Result<(), Errno> {
    file.set_len(0).unwrap();
    nix::unistd::close(file)
}

/// Those that open the file as SQLite does not.
const WAYS: [Way; 6] = [
    (": >", |path| shell(": > \"$1\"", path)),
    ("a program that ends before it writes", |path| shell("sh -c 'exit 0' > \"$1\"", path)),
    ("truncate -s 0", |path| shell("truncate -s 0 \"$1\"", path)),
    ("cp of an empty file", |path| shell("cp /dev/null \"$1\"", path)),
    // Not in this process, another thread of which may be starting a child that has the descriptor, too, for a moment.
    ("read, write and cut", |path| {
        shell("perl -e 'open(F, \"+>\", $ARGV[0]) && close(F) || die' \"$1\"", path)
    }),
    ("only for writing, then ftruncate", |path| cut(File::options().write(true).open(path).unwrap())),
];

const TABLES: &str = "SELECT count(*) FROM sqlite_schema";

fn clusters() -> impl Iterator<Item = Cluster> {
    let options = [Options::replicas(1), Options::replicas(1).without_passthrough()];
    options.into_iter().filter(|_| needs_skein()).filter_map(|options| Cluster::start(&options))
}

fn filled(path: &Path, journal: &str) -> rusqlite::Connection {
    let connection = sql::create(path, journal, 4096);
    sql::run(&connection, "CREATE TABLE old(v); INSERT INTO old VALUES(zeroblob(100000))");
    connection
}

/// Both nodes have nothing, and then what is written next in this encoding.
fn is_new_everywhere(cluster: &Cluster, db: &str, encoding: &str, what: &str) {
    let (primary, replica) = (cluster.primary.path(db), cluster.replicas[0].path(db));
    assert_eq!(sql::number(&sql::open(&primary), TABLES), 0, "primary after {what}");
    cluster.converge(db);
    assert_eq!(sql::number(&sql::open(&replica), TABLES), 0, "replica after {what}");
    let connection = sql::open(&primary);
    sql::run(
        &connection,
        &format!("PRAGMA encoding='{encoding}'; CREATE TABLE new(v); INSERT INTO new VALUES('x')"),
    );
    sql::check_integrity(&connection);
    assert_eq!(sql::text(&connection, "PRAGMA encoding"), encoding, "{what}");
    drop(connection);
    cluster.converge(db);
    assert_eq!(sql::text(&sql::open(&replica), "SELECT v FROM new"), "x", "replica after {what}");
    cluster.primary.must_client(&["db", "verify", db]);
}

#[test]
fn a_file_that_is_cut_to_nothing_is_a_new_database_on_every_node() {
    for cluster in clusters() {
        for journal in JOURNAL_MODES {
            let by_name: Way = ("truncate(2)", |path| nix::unistd::truncate(path, 0));
            for (number, (way, empty)) in WAYS.iter().chain([&by_name]).enumerate() {
                let db = format!("{journal}-{number}.db");
                let path = cluster.primary.path(&db);
                drop(filled(&path, journal));
                cluster.converge(&db);
                let what = format!("{way} in mode {journal}");
                empty(&path).unwrap_or_else(|errno| panic!("{what}: {errno}"));
                let open = sql::open(&path);
                assert_eq!(sql::text(&open, "PRAGMA journal_mode"), "delete", "{what}");
                drop(open);
                is_new_everywhere(&cluster, &db, "UTF-16le", &what);
            }
        }
    }
}

#[test]
fn connections_that_are_open_see_the_new_database_as_one_transaction() {
    for cluster in clusters() {
        for journal in JOURNAL_MODES {
            for (number, (way, empty)) in WAYS.iter().enumerate() {
                let db = format!("{journal}-{number}.db");
                let path = cluster.primary.path(&db);
                let open = filled(&path, journal);
                assert_eq!(sql::number(&open, TABLES), 1);
                cluster.converge(&db);
                let copy = sql::open(&cluster.replicas[0].path(&db));
                assert_eq!(sql::number(&copy, TABLES), 1);
                let what = format!("{way} of an open database in mode {journal}");
                assert_eq!(nix::unistd::truncate(&path, 0), Err(Errno::EBUSY), "by its name");
                assert_eq!(sql::number(&open, TABLES), 1, "nothing has changed");
                empty(&path).unwrap_or_else(|errno| panic!("{what}: {errno}"));
                assert_eq!(sql::number(&open, TABLES), 0, "the connection after {what}");
                cluster.converge(&db);
                assert_eq!(sql::number(&copy, TABLES), 0, "the replica's connection after {what}");
                is_new_everywhere(&cluster, &db, "UTF-8", &what);
                assert_eq!(sql::text(&open, "SELECT v FROM new"), "x");
                sql::check_integrity(&open);
            }
        }
    }
}

#[test]
fn a_handle_that_may_be_sqlites_cuts_a_database_to_nothing_or_is_refused() {
    for cluster in clusters() {
        for journal in JOURNAL_MODES {
            for flags in [0, nix::libc::O_NOFOLLOW] {
                use std::os::unix::fs::OpenOptionsExt;
                let db = format!("{journal}-{flags}.db");
                let path = cluster.primary.path(&db);
                let open = filled(&path, journal);
                let file = File::options().read(true).write(true).custom_flags(flags).open(&path).unwrap();
                let emptied = file.set_len(0).map_err(|error| error.raw_os_error());
                if journal == "wal" && flags == 0 {
                    assert_eq!(emptied, Ok(()));
                    assert_eq!(nix::unistd::close(file), Ok(()));
                    assert_eq!(sql::number(&open, TABLES), 0);
                    is_new_everywhere(&cluster, &db, "UTF-8", "ftruncate");
                } else {
                    assert_eq!(emptied, Err(Some(Errno::EINVAL as i32)), "{journal} {flags}");
                    assert_eq!(sql::number(&open, "SELECT length(v) FROM old"), 100_000);
                    sql::run(&open, "INSERT INTO old VALUES(1); PRAGMA wal_checkpoint(TRUNCATE)");
                    sql::check_integrity(&open);
                    drop((file, open));
                    cluster.converge(&db);
                    cluster.primary.must_client(&["db", "verify", &db]);
                }
            }
        }
    }
}

#[test]
fn a_file_that_another_process_goes_on_to_write_is_not_empty_in_between() {
    for cluster in clusters() {
        let source = cluster.dir().join("source.db");
        drop(filled(&source, "delete"));
        sql::run(&sql::open(&source), "CREATE TABLE whole(v)");
        let path = cluster.primary.path("app.db");
        drop(filled(&path, "wal"));
        cluster.converge("app.db");
        let (before, _) = cluster.primary.pos("app.db").unwrap();
        // The shell closes its own descriptors of the file before the program that writes it has been started.
        let commands = "{ true; sh -c 'cat \"$1\"' sh \"$0\"; } > \"$1\"";
        let status = Command::new("sh").args(["-c", commands]).args([&source, &path]).status().unwrap();
        assert!(status.success());
        let (after, _) = cluster.primary.pos("app.db").unwrap();
        let number = |txid: &str| u64::from_str_radix(txid, 16).unwrap();
        assert_eq!(number(&after), number(&before) + 1, "it was empty in between");
        cluster.converge("app.db");
        assert_eq!(sql::number(&sql::open(&cluster.replicas[0].path("app.db")), TABLES), 2);
    }
}

#[test]
fn a_file_of_which_nothing_was_written_or_cut_is_left_as_it_is() {
    for cluster in clusters() {
        let path = cluster.primary.path("app.db");
        drop(filled(&path, "wal"));
        cluster.converge("app.db");
        let before = cluster.primary.pos("app.db");
        assert_eq!(shell("touch \"$1\" && : >> \"$1\"", &path), Ok(()));
        // Where there was nothing, there is nothing to tell.
        let new = cluster.primary.path("new.db");
        assert_eq!(shell(": > \"$1\" && : > \"$1\"", &new), Ok(()));
        assert_eq!(fs::metadata(&new).unwrap().len(), 0);
        assert_eq!(cluster.primary.pos("app.db"), before);
        assert_eq!(sql::number(&sql::open(&path), TABLES), 1);
    }
}

#[test]
fn an_emptied_database_stays_empty_when_its_primary_dies() {
    let Some(mut voters) = Voters::three() else { return };
    let first = voters.primary();
    for journal in JOURNAL_MODES {
        drop(filled(&voters.nodes[first].path(&format!("{journal}.db")), journal));
    }
    for journal in JOURNAL_MODES {
        assert_eq!(shell(": > \"$1\"", &voters.nodes[first].path(&format!("{journal}.db"))), Ok(()));
    }
    voters.nodes[first].kill9();
    let others: Vec<usize> = (0..3).filter(|which| *which != first).collect();
    let second = voters.primary_among(&others);
    for journal in JOURNAL_MODES {
        assert_eq!(sql::number(&voters.open(second, &format!("{journal}.db")), TABLES), 0, "{journal}");
    }
    voters.nodes[first].must_start();
    for journal in JOURNAL_MODES {
        voters.same_bytes(&format!("{journal}.db"));
    }
}
