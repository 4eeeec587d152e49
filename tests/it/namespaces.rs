//! Applications in other process and mount namespaces than the daemon, as in the containers of a pod.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::sql;
use crate::harness::{Node, PATIENCE, Settings, eventually, needs_skein, skip, unmount, within};

/// Whether namespaces can be made here.
fn can_unshare() -> bool {
    let made = Command::new("unshare").args(["--mount", "--pid", "--fork", "true"]).output();
    let can = made.is_ok_and(|output| output.status.success());
    if !can {
        skip("namespaces cannot be made here (unshare)");
    }
    can && needs_skein()
}

fn run(program: &str, arguments: &[&str], path: &Path) {
    let status = Command::new(program).args(arguments).arg(path).status().unwrap();
    assert!(status.success(), "{program} {arguments:?} {}", path.display());
}

/// A directory whose mounts are seen in every mount namespace; taken away when dropped.
struct SharedDir(tempfile::TempDir);

impl SharedDir {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("skein-namespaces-").tempdir().unwrap();
        run("mount", &["--bind", dir.path().to_str().unwrap()], dir.path());
        run("mount", &["--make-shared"], dir.path());
        Self(dir)
    }
}

impl Drop for SharedDir {
    fn drop(&mut self) {
        unmount(self.0.path());
    }
}

/// A daemon that is process 1 of a namespace of its own, where it sees no other processes.
struct Contained {
    outer: Child,
    stdout: mpsc::Receiver<String>,
}

impl Contained {
    fn start(node: &Node) -> Self {
        let daemon = node.command();
        let script = "mount --make-private /proc; mount -t proc proc /proc; exec \"$@\"";
        let mut outer = Command::new("unshare")
            .args(["--mount", "--propagation", "unchanged", "--pid", "--fork", "--kill-child"])
            .args(["sh", "-c", script, "sh"])
            .arg(daemon.get_program())
            .args(daemon.get_args())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = lines(outer.stdout.take().unwrap());
        let contained = Self { outer, stdout };
        let line = contained.stdout.recv_timeout(PATIENCE).expect("the daemon says that it has mounted");
        assert!(line.starts_with("mounted "), "{line}");
        contained
    }

    /// Kills the daemon, and with it its namespace.
    fn kill9(mut self) {
        let outer = self.outer.id();
        let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
        let daemon: i32 = children.trim().parse().expect("the daemon is its one child");
        kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
        self.outer.wait().unwrap();
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        // With it goes the daemon, see `--kill-child`.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

fn lines(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    lines
}

#[test]
fn an_application_outside_the_daemons_process_namespace_cannot_write_once_the_daemon_is_dead() {
    if !can_unshare() {
        return;
    }
    let dir = SharedDir::new();
    let mut node = Node::new(dir.0.path(), Settings::primary("n1"));
    let daemon = Contained::start(&node);
    let connection = sql::create(&node.path("a.db"), "wal", 4096);
    sql::run(&connection, "CREATE TABLE t(v); PRAGMA synchronous=normal");
    connection.busy_timeout(Duration::from_millis(200)).unwrap();
    let insert = |text: &str| connection.execute("INSERT INTO t VALUES(?1)", [text]);
    for _ in 0..20 {
        insert("before").unwrap();
    }
    // What was committed by now is captured: what comes later is what counts here.
    let captured = eventually("the position stands still", || {
        let before = node.pos("a.db")?;
        std::thread::sleep(Duration::from_millis(100));
        (node.pos("a.db")? == before).then_some(before)
    });
    daemon.kill9();
    for attempt in 0..10 {
        let written = insert("while dead");
        assert!(written.is_err(), "write {attempt} was accepted by nobody");
    }
    node.settings.bootstrap = false;
    let _daemon = Contained::start(&node);
    for attempt in 0..10 {
        let written = insert("on the dead mount");
        assert!(written.is_err(), "write {attempt} was accepted on the dead mount");
    }
    let fresh = sql::open(&node.path("a.db"));
    assert_eq!(sql::number(&fresh, "SELECT count(*) FROM t"), 20);
    assert_eq!(node.pos("a.db"), Some(captured));
    sql::run(&fresh, "INSERT INTO t VALUES('after')");
    sql::check_integrity(&fresh);
    assert!(insert("on the dead mount").is_err());
    assert_eq!(sql::number(&fresh, "SELECT count(*) FROM t WHERE v = 'on the dead mount'"), 0);
    drop(fresh);
    drop(connection);
    unmount(&node.mount());
}

#[test]
fn applications_inside_and_outside_the_daemons_process_namespace_share_a_database() {
    if !can_unshare() {
        return;
    }
    let dir = SharedDir::new();
    let node = Node::new(dir.0.path(), Settings::primary("n1"));
    let daemon = Contained::start(&node);
    for synchronous in ["normal", "full"] {
        let outside = sql::create(&node.path(&format!("{synchronous}.db")), "wal", 4096);
        sql::run(&outside, &format!("CREATE TABLE t(v); PRAGMA synchronous={synchronous}"));
        let second = sql::open(&node.path(&format!("{synchronous}.db")));
        for round in 0..50 {
            let writer = if round % 2 == 0 { &outside } else { &second };
            writer.execute("INSERT INTO t VALUES(zeroblob(3000))", []).unwrap();
        }
        sql::run(&outside, "PRAGMA wal_checkpoint(TRUNCATE)");
        sql::run(&outside, "INSERT INTO t VALUES('last')");
        assert_eq!(sql::number(&second, "SELECT count(*) FROM t"), 51);
        sql::check_integrity(&second);
        drop((outside, second));
        let copy = dir.0.path().join("copy.db");
        let whole = within(PATIENCE, || {
            std::fs::write(&copy, node.export(&format!("{synchronous}.db")).ok()?).unwrap();
            (sql::number(&sql::open(&copy), "SELECT count(*) FROM t") == 51).then_some(())
        });
        assert!(whole.is_some(), "{synchronous}: the log lacks commits");
    }
    daemon.kill9();
    unmount(&node.mount());
}

#[test]
fn a_node_ends_although_another_mount_namespace_has_a_copy_of_its_mount() {
    if !can_unshare() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::new(dir.path(), Settings::primary("n1"));
    node.must_start();
    sql::run(&sql::create(&node.path("a.db"), "wal", 4096), "CREATE TABLE t(v)");
    let script = "echo ready; read go; ls \"$0\" >/dev/null 2>&1 && echo alive || echo dead";
    let mut copy = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .arg(node.mount())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = lines(copy.stdout.take().unwrap());
    assert_eq!(said.recv_timeout(PATIENCE).unwrap(), "ready");
    assert_eq!(node.terminate().and_then(|status| status.code()), Some(0));
    copy.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(said.recv_timeout(PATIENCE).unwrap(), "dead");
    copy.wait().unwrap();
    node.must_start();
    assert_eq!(sql::number(&sql::open(&node.path("a.db")), "SELECT count(*) FROM t"), 0);
}
