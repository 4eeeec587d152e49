//! Rollback journals written by SQLite: which of them are in force, which write ends one, and what a super-journal lists.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;
use skein::sqlite::journal::{self, ends_transaction, is_header_magic};

const MODES: [&str; 3] = ["delete", "truncate", "persist"];

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

fn open(path: &Path, mode: &str, page_size: u32, synchronous: &str) -> Connection {
    let db = Connection::open(path).unwrap();
    db.execute_batch(&format!(
        "pragma page_size={page_size}; pragma journal_mode={mode}; pragma synchronous={synchronous};
         pragma cache_size=5; create table t(id integer primary key, v text)"
    ))
    .unwrap();
    db
}

fn fill(db: &Connection, count: u32) {
    let sql = format!(
        "with n(i) as (select 1 union all select i+1 from n where i < {count})
         insert into t(v) select hex(randomblob(60)) from n"
    );
    db.execute_batch(&sql).unwrap();
}

#[test]
fn the_journal_of_an_open_transaction_begins_with_the_magic_and_an_ended_one_does_not() {
    for (mode, page_size, synchronous) in MODES
        .into_iter()
        .flat_map(|mode| [512, 4096, 65536].map(|page_size| (mode, page_size)))
        .flat_map(|(mode, page_size)| ["off", "full"].map(|synchronous| (mode, page_size, synchronous)))
    {
        let what = format!("{mode}, {page_size}, {synchronous}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let db = open(&path, mode, page_size, synchronous);
        fill(&db, 300 * page_size / 1024);
        db.execute_batch("begin; update t set v = upper(v) || 'y'").unwrap();
        let journal = fs::read(beside(&path, "-journal")).unwrap();
        assert!(is_header_magic(&journal), "{what}");
        assert!(!ends_transaction(0, &journal), "{what}");
        db.execute_batch("commit").unwrap();
        match mode {
            "persist" => {
                let journal = fs::read(beside(&path, "-journal")).unwrap();
                assert!(journal.len() > 512, "{what}");
                assert!(!is_header_magic(&journal) && ends_transaction(0, &journal), "{what}");
            }
            "truncate" => assert_eq!(fs::metadata(beside(&path, "-journal")).unwrap().len(), 0, "{what}"),
            _ => assert!(!beside(&path, "-journal").exists(), "{what}"),
        }
    }
}

/// Commits over two databases until someone has seen enough, at most 20,000 times.
fn commit_over_both(one: &Path, two: &Path, seen: &AtomicBool) {
    let db = open(one, "delete", 1024, "full");
    db.execute("attach ? as two", [two.to_str().unwrap()]).unwrap();
    db.execute_batch("create table two.u(v text)").unwrap();
    for _ in 0..20_000 {
        if seen.load(Ordering::Relaxed) {
            break;
        }
        db.execute_batch("begin; insert into t(v) values('a'); insert into two.u values('b'); commit")
            .unwrap();
    }
    seen.store(true, Ordering::Relaxed);
}

#[test]
fn a_transaction_over_two_databases_names_its_super_journal() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one.db", "two.db"].map(|name| dir.path().join(name));
    let (journals, seen) = ([&one, &two].map(|path| beside(path, "-journal")), AtomicBool::new(false));
    // Looks at the journal while the other thread commits, until it is caught with its super-journal.
    let caught = std::thread::scope(|scope| {
        scope.spawn(|| commit_over_both(&one, &two, &seen));
        let mut caught = None;
        while caught.is_none() && !seen.load(Ordering::Relaxed) {
            caught = fs::read(&journals[0])
                .ok()
                .and_then(|journal| journal::super_journal_name(&mut Cursor::new(journal)).unwrap())
                .and_then(|name| Some((fs::read(&name).ok()?, name)));
        }
        seen.store(true, Ordering::Relaxed);
        caught
    });
    let (content, name) = caught.expect("one of thousands of commits is caught between two fsyncs");
    assert!(name.to_str().unwrap().contains("one.db-mj"), "{}", name.display());
    let listed: Vec<_> = journal::journals_of_super_journal(&content).collect();
    assert_eq!(listed, journals);
}
