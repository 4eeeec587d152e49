//! Owners, permissions, directories and databases without content are the same on every node.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use crate::guarantees::quote;
use crate::harness::sql;
use crate::harness::{Node, Settings, Voters, eventually, needs_skein};

/// The application's user, who is not root.
const APP: (u32, u32) = (1000, 1000);

/// Does something as another user: the kernel keeps the user for file access per thread.
fn as_user<T: Send>(user: (u32, u32), work: impl FnOnce() -> T + Send) -> T {
    let work = move || {
        setfsgid(Gid::from_raw(user.1));
        setfsuid(Uid::from_raw(user.0));
        assert_eq!(setfsuid(Uid::from_raw(user.0)).as_raw(), user.0, "this test needs root");
        work()
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// Owner, group and permissions of a path, `None` where there is nothing.
fn shown(path: &Path) -> Option<(u32, u32, u32)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777))
}

/// Waits until a name is shown so on every node.
fn everywhere(nodes: &[Node], name: &str, expected: Option<(u32, u32, u32)>) {
    for node in nodes {
        let mut seen = None;
        eventually(&format!("{name} is {expected:?} on {}", node.settings.name), || {
            seen = shown(&node.path(name));
            (seen == expected).then_some(())
        });
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> =
        entries.filter(|name| !name.starts_with('.') && !name.ends_with("-pos")).collect();
    names.sort();
    names
}

/// Three voters and a replica whose mounts other users may enter; none where that cannot be tested here.
fn cluster(passthrough: bool) -> Option<Voters> {
    if !needs_skein() {
        return None;
    }
    if !nix::unistd::geteuid().is_root() {
        crate::harness::skip("changing owners needs root");
        return None;
    }
    let dir = tempfile::Builder::new().prefix("skein-names-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut nodes: Vec<Node> = Vec::new();
    for number in 1..=4 {
        let mut settings = Settings::primary(&format!("n{number}"));
        settings.bootstrap = nodes.is_empty();
        settings.role = if number == 4 { "replica" } else { "voter" };
        settings.join = nodes.iter().map(|node| node.listen).collect();
        settings.passthrough = passthrough;
        // A loaded machine must not move the primary: that is asked for.
        let patient = ["--allow-other", "--heartbeat", "200ms", "--election-timeout", "3s"];
        settings.extra = patient.map(ToOwned::to_owned).into();
        let mut node = Node::new(dir.path(), settings);
        node.must_start();
        nodes.push(node);
    }
    let voters = Voters::of(nodes, dir);
    voters.wait_voting(3);
    Some(voters)
}

fn insert(path: &Path) -> rusqlite::Result<()> {
    let connection = rusqlite::Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.execute_batch("CREATE TABLE IF NOT EXISTS t(v); INSERT INTO t VALUES(1)")
}

#[test]
fn an_application_that_is_not_root_goes_on_writing_and_creating_after_the_primary_moved() {
    quote("are the same on every node, from the first moment that a node shows them");
    for passthrough in [true, false] {
        let Some(voters) = cluster(passthrough) else { return };
        let first = voters.primary();
        chown(voters.nodes[first].mount(), Some(APP.0), Some(APP.1)).unwrap();
        as_user(APP, || {
            insert(&voters.nodes[first].path("u.db")).unwrap();
            fs::set_permissions(voters.nodes[first].path("u.db"), fs::Permissions::from_mode(0o600)).unwrap();
            fs::create_dir(voters.nodes[first].path("sub")).unwrap();
            insert(&voters.nodes[first].path("sub/v.db")).unwrap();
        });
        everywhere(&voters.nodes, "", Some((APP.0, APP.1, 0o755)));
        everywhere(&voters.nodes, "u.db", Some((APP.0, APP.1, 0o600)));
        everywhere(&voters.nodes, "sub", Some((APP.0, APP.1, 0o755)));
        everywhere(&voters.nodes, "sub/v.db", Some((APP.0, APP.1, 0o644)));
        let second = (0..3).find(|which| *which != first).unwrap();
        voters.hand_to(second);
        as_user(APP, || {
            for name in ["u.db", "sub/v.db", "new.db", "sub/new.db"] {
                insert(&voters.nodes[second].path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            fs::create_dir(voters.nodes[second].path("sub/deeper")).unwrap();
        });
        for node in &voters.nodes {
            // Whoever is neither owner nor root reads nothing that the owner keeps to itself, on no node.
            let stranger =
                as_user((1001, 1001), || fs::read(node.path("u.db")).map_err(|error| error.kind()));
            assert_eq!(stranger, Err(ErrorKind::PermissionDenied), "{}", node.settings.name);
        }
        voters.same_bytes("sub/new.db");
        everywhere(&voters.nodes, "new.db", Some((APP.0, APP.1, 0o644)));
        everywhere(&voters.nodes, "sub/deeper", Some((APP.0, APP.1, 0o755)));
    }
}

#[test]
fn a_private_database_is_private_on_every_node_from_its_first_moment() {
    let Some(voters) = cluster(true) else { return };
    let (primary, replica) = (voters.primary(), 3);
    for round in 0..20 {
        let name = format!("private{round}.db");
        fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(voters.nodes[primary].path(&name))
            .unwrap();
        let mut seen = None;
        eventually("the replica has it", || {
            seen = shown(&voters.nodes[replica].path(&name));
            seen
        });
        assert_eq!(seen, Some((0, 0, 0o600)), "{name}");
        insert(&voters.nodes[primary].path(&name)).unwrap();
        assert_eq!(shown(&voters.nodes[replica].path(&name)), Some((0, 0, 0o600)));
        // Beside the mount nobody gets at it either.
        let beside = voters.nodes[replica].data().join("dbs").join(&name).join("database");
        let read = as_user((1001, 1001), || fs::read(beside).map_err(|error| error.kind()));
        assert_eq!(read, Err(ErrorKind::PermissionDenied));
    }
}

#[test]
fn directories_and_empty_databases_come_and_go_on_every_node() {
    let Some(voters) = cluster(true) else { return };
    let node = &voters.nodes[voters.primary()];
    fs::File::create(node.path("e.db")).unwrap();
    rusqlite::Connection::open(node.path("opened.db")).unwrap().execute_batch("PRAGMA user_version").unwrap();
    fs::create_dir(node.path("d")).unwrap();
    fs::create_dir_all(node.path("tenants/7")).unwrap();
    insert(&node.path("tenants/7/a.db")).unwrap();
    fs::File::create(node.path("tenants/7/empty.db")).unwrap();
    for node in &voters.nodes {
        eventually(&format!("{} has all of it", node.settings.name), || {
            (names(&node.mount()) == ["d", "e.db", "opened.db", "tenants"]
                && names(&node.path("d")).is_empty()
                && names(&node.path("tenants/7")) == ["a.db", "empty.db"])
            .then_some(())
        });
        assert_eq!(fs::metadata(node.path("tenants/7/empty.db")).unwrap().len(), 0);
    }
    assert_eq!(
        fs::remove_dir(node.path("tenants")).unwrap_err().raw_os_error(),
        Some(Errno::ENOTEMPTY as i32)
    );
    fs::remove_dir_all(node.path("tenants")).unwrap();
    fs::remove_dir(node.path("d")).unwrap();
    fs::remove_file(node.path("e.db")).unwrap();
    for node in &voters.nodes {
        eventually(&format!("all of it is gone on {}", node.settings.name), || {
            (names(&node.mount()) == ["opened.db"]).then_some(())
        });
        assert_eq!(fs::metadata(node.path("tenants")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn a_renamed_directory_takes_its_databases_along_on_every_node() {
    let Some(voters) = cluster(true) else { return };
    let node = &voters.nodes[voters.primary()];
    fs::create_dir_all(node.path("old/deep")).unwrap();
    fs::set_permissions(node.path("old/deep"), fs::Permissions::from_mode(0o2770)).unwrap();
    for name in ["old/a.db", "old/deep/b.db"] {
        insert(&node.path(name)).unwrap();
    }
    fs::File::create(node.path("old/empty.db")).unwrap();
    fs::set_permissions(node.path("old/a.db"), fs::Permissions::from_mode(0o640)).unwrap();
    let open = sql::open(&node.path("old/a.db"));
    let busy = fs::rename(node.path("old"), node.path("new")).unwrap_err();
    assert_eq!(busy.raw_os_error(), Some(Errno::EBUSY as i32), "a database in it is open");
    drop(open);
    fs::create_dir(node.path("new")).unwrap();
    fs::create_dir(node.path("full")).unwrap();
    fs::create_dir(node.path("full/x")).unwrap();
    let full = fs::rename(node.path("old"), node.path("full")).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(Errno::ENOTEMPTY as i32));
    eventually("the directory is renamed once nobody has its databases open", || {
        fs::rename(node.path("old"), node.path("new")).ok()
    });
    everywhere(&voters.nodes, "old", None);
    everywhere(&voters.nodes, "new/a.db", Some((0, 0, 0o640)));
    everywhere(&voters.nodes, "new/deep", Some((0, 0, 0o2770)));
    for node in &voters.nodes {
        eventually("all of it is there", || {
            (names(&node.path("new")) == ["a.db", "deep", "empty.db"]).then_some(())
        });
    }
    insert(&node.path("new/deep/b.db")).unwrap();
    assert_eq!(sql::number(&sql::open(&node.path("new/deep/b.db")), "SELECT count(*) FROM t"), 2);
    for name in ["new/a.db", "new/deep/b.db"] {
        voters.same_bytes(name);
    }
}

#[test]
fn a_directory_is_renamed_between_transactions_and_none_is_lost() {
    let Some(voters) = cluster(true) else { return };
    let node = &voters.nodes[voters.primary()];
    fs::create_dir(node.path("a")).unwrap();
    let write = |directory: &str, number: u32| {
        let connection = sql::create(&node.path(directory).join("app.db"), "wal", 4096);
        // Captured a moment after it returns: the rename has to wait for it.
        let insert = format!("PRAGMA synchronous=NORMAL; INSERT INTO t VALUES({number})");
        sql::run(&connection, &format!("CREATE TABLE IF NOT EXISTS t(v); {insert}"));
    };
    for number in 0..20 {
        let (here, there) = if number % 2 == 0 { ("a", "b") } else { ("b", "a") };
        write(here, number);
        fs::rename(node.path(here), node.path(there)).unwrap();
    }
    voters.same_bytes("a/app.db");
    for node in &voters.nodes {
        let connection = sql::open(&node.path("a/app.db"));
        assert_eq!(sql::number(&connection, "SELECT count(*) FROM t"), 20, "on {}", node.settings.name);
    }
    everywhere(&voters.nodes, "b", None);
    assert!(!node.log().contains("ERROR"), "{}", node.log());
}

#[test]
fn a_private_database_stays_private_where_it_is_open_while_it_is_renamed() {
    let Some(voters) = cluster(true) else { return };
    let node = &voters.nodes[voters.primary()];
    insert(&node.path("a.db")).unwrap();
    fs::set_permissions(node.path("a.db"), fs::Permissions::from_mode(0o600)).unwrap();
    everywhere(&voters.nodes, "a.db", Some((0, 0, 0o600)));
    voters.same_bytes("a.db");
    let reader = sql::open(&voters.nodes[3].path("a.db"));
    sql::run(&reader, "BEGIN; SELECT * FROM t");
    eventually("nobody on the primary has it open any more", || {
        fs::rename(node.path("a.db"), node.path("b.db")).ok()
    });
    for node in &voters.nodes {
        let mut seen = None;
        eventually("the new name is there", || {
            seen = shown(&node.path("b.db"));
            seen
        });
        assert_eq!(seen, Some((0, 0, 0o600)), "on {}", node.settings.name);
    }
    everywhere(&voters.nodes, "a.db", None);
    drop(reader);
    voters.same_bytes("b.db");
}

#[test]
fn a_database_that_takes_the_place_of_an_open_one_is_as_private_there_as_it_was() {
    let Some(voters) = cluster(true) else { return };
    let node = &voters.nodes[voters.primary()];
    insert(&node.path("app.db")).unwrap();
    everywhere(&voters.nodes, "app.db", Some((0, 0, 0o644)));
    voters.same_bytes("app.db");
    let open: Vec<_> = voters.nodes.iter().map(|node| sql::open(&node.path("app.db"))).collect();
    open.iter().for_each(|reader| assert_eq!(sql::number(reader, "SELECT count(*) FROM t"), 1));
    insert(&node.path("new.db")).unwrap();
    fs::set_permissions(node.path("new.db"), fs::Permissions::from_mode(0o600)).unwrap();
    eventually("nobody has the new one open any more", || {
        fs::rename(node.path("new.db"), node.path("app.db")).ok()
    });
    assert_eq!(shown(&node.path("app.db")), Some((0, 0, 0o600)), "at once on the primary");
    everywhere(&voters.nodes, "app.db", Some((0, 0, 0o600)));
    everywhere(&voters.nodes, "new.db", None);
    drop(open);
    voters.same_bytes("app.db");
}

#[test]
fn names_and_attributes_survive_crashes_and_reach_nodes_that_come_late() {
    let Some(mut voters) = cluster(true) else { return };
    let first = voters.primary();
    {
        let node = &voters.nodes[first];
        fs::create_dir_all(node.path("kept/empty")).unwrap();
        fs::create_dir(node.path("gone")).unwrap();
        fs::File::create(node.path("kept/e.db")).unwrap();
        insert(&node.path("kept/a.db")).unwrap();
        chown(node.path("kept/a.db"), Some(APP.0), Some(7)).unwrap();
        fs::set_permissions(node.path("kept"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::remove_dir(node.path("gone")).unwrap();
    }
    let check = |nodes: &[Node]| {
        everywhere(nodes, "kept", Some((0, 0, 0o700)));
        everywhere(nodes, "kept/empty", Some((0, 0, 0o755)));
        everywhere(nodes, "kept/e.db", Some((0, 0, 0o644)));
        everywhere(nodes, "kept/a.db", Some((APP.0, 7, 0o644)));
        everywhere(nodes, "gone", None);
    };
    check(&voters.nodes);
    for node in &mut voters.nodes {
        node.kill9();
    }
    std::thread::scope(|scope| {
        for node in &mut voters.nodes {
            scope.spawn(|| node.must_start());
        }
    });
    voters.wait_voting(3);
    check(&voters.nodes);
    // A replica that has nothing, and one whose data directory was emptied.
    voters.nodes[3].terminate();
    let data = voters.nodes[3].data();
    fs::remove_dir_all(&data).unwrap();
    fs::create_dir(&data).unwrap();
    voters.nodes[3].must_start();
    check(&voters.nodes);
}

#[test]
fn a_node_that_is_not_primary_changes_no_names_and_no_attributes() {
    let Some(voters) = cluster(true) else { return };
    let primary = voters.primary();
    fs::create_dir(voters.nodes[primary].path("d")).unwrap();
    insert(&voters.nodes[primary].path("a.db")).unwrap();
    everywhere(&voters.nodes, "d", Some((0, 0, 0o755)));
    everywhere(&voters.nodes, "a.db", Some((0, 0, 0o644)));
    for which in [(primary + 1) % 3, 3] {
        let node = &voters.nodes[which];
        let mode = fs::Permissions::from_mode(0o600);
        let refused = [
            ("mkdir", fs::create_dir(node.path("new"))),
            ("rmdir", fs::remove_dir(node.path("d"))),
            ("rename", fs::rename(node.path("d"), node.path("e"))),
            ("chmod", fs::set_permissions(node.path("a.db"), mode.clone())),
            ("chmod of a directory", fs::set_permissions(node.path("d"), mode.clone())),
            ("chown", chown(node.path("a.db"), Some(5), None)),
            ("chmod of the mount", fs::set_permissions(node.mount(), mode)),
        ];
        for (what, result) in refused {
            assert_eq!(
                result.map_err(|error| error.raw_os_error()),
                Err(Some(Errno::EROFS as i32)),
                "{what} on {}",
                node.settings.name
            );
        }
        let created = fs::File::create(node.path("new.db")).map(drop).unwrap_err();
        assert_eq!(created.kind(), ErrorKind::PermissionDenied);
    }
}

#[test]
fn a_node_may_show_other_owners_and_permissions_than_the_log_has() {
    let Some(mut voters) = cluster(true) else { return };
    let node = &voters.nodes[voters.primary()];
    insert(&node.path("a.db")).unwrap();
    fs::create_dir(node.path("d")).unwrap();
    everywhere(&voters.nodes, "d", Some((0, 0, 0o755)));
    everywhere(&voters.nodes, "a.db", Some((0, 0, 0o644)));
    let replica = &mut voters.nodes[3];
    replica.terminate();
    let forced =
        ["--mount-uid", "1000", "--mount-gid", "1000", "--mount-file-mode", "640", "--mount-dir-mode", "750"];
    replica.settings.extra.extend(forced.map(ToOwned::to_owned));
    replica.must_start();
    assert_eq!(shown(&replica.mount()), Some((1000, 1000, 0o750)));
    assert_eq!(shown(&replica.path("d")), Some((1000, 1000, 0o750)));
    assert_eq!(shown(&replica.path("a.db")), Some((1000, 1000, 0o640)));
    let read = as_user(APP, || fs::read(replica.path("a.db")).map(|bytes| bytes.len()));
    assert!(read.unwrap() > 0);
    let stranger = as_user((1001, 1001), || fs::read(replica.path("a.db")).map_err(|error| error.kind()));
    assert_eq!(stranger, Err(ErrorKind::PermissionDenied));
    everywhere(&voters.nodes[..3], "a.db", Some((0, 0, 0o644)));
}

#[test]
fn chown_of_a_whole_tree_succeeds_and_new_files_take_the_group_of_their_directory() {
    let Some(voters) = cluster(false) else { return };
    let node = &voters.nodes[voters.primary()];
    fs::create_dir(node.path("d")).unwrap();
    let open = sql::create(&node.path("d/a.db"), "wal", 4096);
    sql::run(&open, "CREATE TABLE t(v)");
    // Side files and control files among them.
    for entry in fs::read_dir(node.path("d")).unwrap() {
        chown(entry.unwrap().path(), Some(APP.0), Some(50)).unwrap();
    }
    chown(node.path("d"), Some(APP.0), Some(50)).unwrap();
    fs::set_permissions(node.path("d"), fs::Permissions::from_mode(0o2775)).unwrap();
    for name in ["d/a.db", "d/a.db-wal", "d/a.db-shm"] {
        assert_eq!(shown(&node.path(name)), Some((APP.0, 50, 0o644)), "{name}");
    }
    fs::create_dir(node.path("d/sub")).unwrap();
    insert(&node.path("d/sub/b.db")).unwrap();
    everywhere(&voters.nodes, "d/sub", Some((0, 50, 0o2755)));
    everywhere(&voters.nodes, "d/sub/b.db", Some((0, 50, 0o644)));
    drop(open);
    voters.same_bytes("d/a.db");
}
