//! More databases than a node may have files open.

use rusqlite::Connection;

use crate::harness::{Node, Settings, eventually, needs_skein, sql};

const FILES_MAX: u32 = 200;
/// One in so many databases is in WAL mode, which takes several descriptors while it is open, and a little longer.
const WAL_EACH: u32 = 8;

fn open_files(node: &Node) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().count()
}

fn has_room(node: &Node) -> bool {
    open_files(node) < FILES_MAX as usize * 2 / 3
}

#[test]
fn a_node_has_more_databases_than_descriptors_and_at_the_limit_what_is_open_goes_on() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::primary("n1");
    settings.files_max = Some((FILES_MAX / 2, FILES_MAX));
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.pid())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some(FILES_MAX.to_string().as_str()), "{files}");
    let count = FILES_MAX + 10;
    let path = |node: &Node, number: u32| node.path(&format!("tenants/{number}.db"));
    std::fs::create_dir(node.path("tenants")).unwrap();
    for number in 0..count {
        let mode = if number % WAL_EACH == 0 { "wal" } else { "delete" };
        let statements =
            format!("PRAGMA journal_mode={mode}; CREATE TABLE t(v); INSERT INTO t VALUES({number})");
        // One that was closed keeps its descriptors for a moment.
        eventually("there is room", || has_room(&node).then_some(()));
        let db = Connection::open(path(&node, number)).unwrap();
        sql::run(&db, &statements);
    }
    // Those that nobody has open are let go of.
    eventually("cold databases hold no descriptor", || {
        (open_files(&node) < FILES_MAX as usize / 2).then_some(())
    });
    node.restart();
    for number in (0..count).step_by(31) {
        eventually("there is room", || has_room(&node).then_some(()));
        let db = sql::open(&path(&node, number));
        assert_eq!(sql::number(&db, "SELECT v FROM t"), i64::from(number));
        sql::run(&db, "INSERT INTO t VALUES(0)");
    }
    // One that is open works while others are opened until no more can be.
    let first = sql::open(&path(&node, 0));
    sql::run(&first, "INSERT INTO t VALUES(1)");
    let before = sql::number(&first, "SELECT count(*) FROM t");
    let mut open = Vec::new();
    let refused = (WAL_EACH..count).step_by(WAL_EACH as usize).find(|number| {
        let Ok(db) = Connection::open(path(&node, *number)) else { return true };
        let failed = db.execute_batch("INSERT INTO t VALUES(2)").is_err();
        open.push(db);
        failed
    });
    assert!(refused.is_some(), "the limit is not reached: {} files", open_files(&node));
    assert!(node.is_running());
    assert_eq!(sql::number(&first, "SELECT count(*) FROM t"), before);
    sql::run(&first, "INSERT INTO t VALUES(3)");
    open.clear();
    eventually("others can be opened again", || {
        let db = Connection::open(path(&node, refused.unwrap())).ok()?;
        db.execute_batch("INSERT INTO t VALUES(4)").ok()
    });
    drop(first);
    node.restart();
    for number in (0..count).step_by(5) {
        eventually("there is room", || has_room(&node).then_some(()));
        sql::check_integrity(&sql::open(&path(&node, number)));
    }
}
