//! How a node starts: the same options twice, a program that does not exist, and the program's user.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::harness::sql;
use crate::harness::{Node, Settings, Voters, eventually, needs_skein, skip};

#[test]
fn a_replica_that_is_told_nobody_to_follow_follows_whom_it_followed_or_their_neighbours() {
    let Some(mut voters) = Voters::three() else { return };
    let replica = voters.add_replica();
    sql::run(&sql::create(&voters.nodes[voters.primary()].path("a.db"), "wal", 4096), "CREATE TABLE t(v)");
    voters.same_bytes("a.db");
    let remembered = voters.nodes[replica].data().join("node.toml");
    let all: Vec<String> = voters.nodes[..3].iter().map(|node| node.listen.to_string()).collect();
    eventually("the replica has noted all voters", || {
        let text = fs::read_to_string(&remembered).unwrap();
        all.iter().all(|addr| text.contains(addr)).then_some(())
    });
    voters.nodes[replica].terminate();
    // The one it was told of is gone meanwhile.
    voters.nodes[0].terminate();
    voters.nodes[replica].settings.join.clear();
    voters.nodes[replica].must_start();
    let primary = voters.primary_among(&[1, 2]);
    sql::run(&sql::open(&voters.nodes[primary].path("a.db")), "INSERT INTO t VALUES(1)");
    eventually("the replica gets it", || {
        let count = sql::number(&sql::open(&voters.nodes[replica].path("a.db")), "SELECT count(*) FROM t");
        (count == 1).then_some(())
    });
}

#[test]
fn a_node_that_founded_its_cluster_starts_again_with_the_same_options() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), Settings::primary("n1"));
    node.must_start();
    sql::run(&sql::create(&node.path("a.db"), "wal", 4096), "CREATE TABLE t(v); INSERT INTO t VALUES(1)");
    for end in ["terminate", "kill"] {
        match end {
            "kill" => node.kill9(),
            _ => assert!(node.terminate().is_some()),
        }
        node.settings.bootstrap = true;
        node.must_start();
        assert_eq!(sql::number(&sql::open(&node.path("a.db")), "SELECT count(*) FROM t"), 1);
    }
}

#[test]
fn a_program_that_does_not_exist_is_told_before_anything_is_mounted() {
    if !needs_skein() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for program in ["/no/such/program", "no-such-program-anywhere", "/etc/passwd"] {
        let mut settings = Settings::primary("n1");
        settings.extra = vec!["--".into(), program.into()];
        let node = Node::new(dir.path(), settings);
        let output = node.command().output().unwrap();
        assert_eq!(output.status.code(), Some(127), "{program}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(program) && said.trim_end().lines().count() == 1, "{said}");
        assert_eq!(
            fs::read_dir(node.mount()).unwrap().count(),
            0,
            "it is an empty directory, not a dead mount"
        );
        assert_eq!(fs::read_dir(node.data()).unwrap().count(), 0, "nothing was founded");
    }
}

/// What a line of `/etc/passwd` says of a user: number, group, home.
fn known_user(name: &str) -> Option<(u32, u32, String)> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    let fields: Vec<_> =
        text.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|f| f[0] == name)?;
    Some((fields[2].parse().ok()?, fields[3].parse().ok()?, fields[5].to_owned()))
}

fn noted(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(ToOwned::to_owned).collect()
}

#[test]
fn the_program_runs_as_the_user_it_is_to_run_as_and_makes_databases() {
    if !needs_skein() {
        return;
    }
    let user = known_user("daemon").filter(|_| nix::unistd::geteuid().is_root());
    let Some((uid, gid, home)) = user else { return skip("needs root, and a user called daemon") };
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let notes = dir.path().join("notes");
    fs::create_dir(&notes).unwrap();
    fs::set_permissions(&notes, fs::Permissions::from_mode(0o777)).unwrap();
    let note = notes.join("note");
    let script =
        "{ id -u; id -g; echo $HOME $USER $LOGNAME; : >\"$1/made.db\"; echo $?; } >\"$0\"; exec sleep 1000";
    let mut settings = Settings::primary("n1");
    let mount = dir.path().join("n1/mnt");
    settings.extra = ["--exec-user", "daemon", "--mount-uid", "daemon", "--", "sh", "-c", script]
        .map(ToOwned::to_owned)
        .into_iter()
        .chain([note.display().to_string(), mount.display().to_string()])
        .collect();
    let mut node = Node::new(dir.path(), settings);
    node.must_start();
    let lines =
        eventually("the program has noted all", || Some(noted(&note)).filter(|lines| lines.len() == 4));
    let expected = [uid.to_string(), gid.to_string(), format!("{home} daemon daemon"), "0".into()];
    assert_eq!(lines, expected);
    let made = fs::metadata(node.path("made.db")).unwrap();
    assert_eq!((made.uid(), made.gid()), (uid, gid));
    // It dies with the daemon, although it is somebody else's.
    let program = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let words = fs::read(entry.path().join("environ")).ok()?;
        let own = String::from_utf8_lossy(&words).contains("LOGNAME=daemon");
        let sleeps = fs::read_to_string(entry.path().join("comm")).ok()?.trim() == "sleep";
        let parent = fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = parent.rsplit(')').next()?.split_whitespace().nth(1)? == node.pid().to_string();
        (own && sleeps && parent).then(|| entry.path())
    });
    let program = program.expect("the program runs");
    node.kill9();
    eventually("the program died with the daemon", || (!program.exists()).then_some(()));
    let mut refused = Settings::primary("n2");
    refused.extra = ["--exec-user", "no such user", "--", "true"].map(ToOwned::to_owned).into();
    let error = Node::new(dir.path(), refused).start().unwrap_err();
    assert!(error.contains("--exec-user no such user"), "{error}");
}
