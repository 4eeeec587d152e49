//! One node as a process.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{PATIENCE, http, is_plain, skein_binary, within};

/// The fault with which a node that has lost the process that watches over its mount gets no other one.
pub const NO_OTHER_GUARD: &str = "guard_start:2+:error";

/// How a node is started.
#[derive(Clone, Debug)]
pub struct Settings {
    pub name: String,
    pub role: &'static str,
    pub bootstrap: bool,
    pub join: Vec<SocketAddr>,
    pub passthrough: bool,
    pub env: Vec<(String, String)>,
    /// After the options: `--` and a command to supervise, or more options.
    pub extra: Vec<String>,
    /// Soft and hard limit of open files.
    pub files_max: Option<(u32, u32)>,
    /// Instead of `<dir>/data`.
    pub data: Option<PathBuf>,
    /// Instead of `<dir>/mnt`; what a replica shows in plain mode.
    pub mount: Option<PathBuf>,
}

impl Settings {
    /// A voter that founds a cluster.
    pub fn primary(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            role: "voter",
            bootstrap: true,
            join: Vec::new(),
            passthrough: true,
            env: Vec::new(),
            extra: Vec::new(),
            files_max: None,
            data: None,
            mount: None,
        }
    }

    /// A replica of the cluster reached at `join`.
    pub fn replica(name: &str, join: SocketAddr) -> Self {
        Self { role: "replica", bootstrap: false, join: vec![join], ..Self::primary(name) }
    }
}

/// A node: its directories, its addresses and, while it runs, its process.
pub struct Node {
    pub settings: Settings,
    pub listen: SocketAddr,
    pub http: SocketAddr,
    dir: PathBuf,
    child: Option<Child>,
    passthrough: bool,
    expects_panics: bool,
}

impl Node {
    /// A node below `dir`, not yet started.
    pub fn new(dir: &Path, settings: Settings) -> Self {
        let dir = dir.join(&settings.name);
        std::fs::create_dir_all(dir.join("data")).unwrap();
        std::fs::create_dir_all(dir.join("mnt")).unwrap();
        let (listen, http) = (free_address(), free_address());
        Self { settings, listen, http, dir, child: None, passthrough: false, expects_panics: false }
    }

    /// Where applications find their databases.
    pub fn mount(&self) -> PathBuf {
        self.settings.mount.clone().unwrap_or_else(|| self.dir.join("mnt"))
    }

    /// A path on the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mount().join(name)
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.settings.data.clone().unwrap_or_else(|| self.dir.join("data"))
    }

    /// Whether the node said that passthrough is on.
    pub fn passthrough(&self) -> bool {
        self.passthrough
    }

    /// The command that starts the node.
    pub fn command(&self) -> Command {
        let mut command = skein();
        command.arg("mount").arg("--mount").arg(self.mount()).arg("--data").arg(self.data());
        command.args(["--name", &self.settings.name, "--role", self.settings.role]);
        command.args(["--listen", &self.listen.to_string(), "--http", &self.http.to_string()]);
        if self.settings.bootstrap {
            command.arg("--bootstrap");
        }
        if !self.settings.join.is_empty() {
            let peers: Vec<_> = self.settings.join.iter().map(ToString::to_string).collect();
            command.args(["--join", &peers.join(",")]);
        }
        if !self.settings.passthrough {
            command.arg("--no-passthrough");
        }
        command.args(&self.settings.extra);
        if let Some((soft, hard)) = self.settings.files_max {
            let limit = format!("ulimit -Sn {soft}; ulimit -Hn {hard}; exec \"$0\" \"$@\"");
            let mut limited = Command::new("sh");
            limited.args(["-c", &limit]).arg(command.get_program()).args(command.get_args());
            for (key, _) in command.get_envs().filter(|(_, value)| value.is_none()) {
                limited.env_remove(key);
            }
            command = limited;
        }
        command.envs(self.settings.env.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Starts the node and waits until applications may start.
    ///
    /// # Errors
    /// Where it ends before that or takes too long, with the end of what it said.
    pub fn start(&mut self) -> Result<(), String> {
        assert!(self.child.is_none(), "{} runs", self.settings.name);
        if is_plain() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", skein_binary().display()));
        let stdout = child.stdout.take().expect("stdout is piped");
        self.child = Some(child);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) if line.starts_with("mounted ") => {
                    self.passthrough = line.contains("(passthrough on)");
                    self.check_line(&line)?;
                    // A cluster is founded once: later starts find it in the data directory.
                    self.settings.bootstrap = false;
                    return Ok(());
                }
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let tail = self.log_tail();
                    self.kill9();
                    return Err(format!("{} did not mount within {PATIENCE:?}\n{tail}", self.settings.name));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let status = self.child.take().expect("just started").wait().unwrap();
                    return Err(format!("{} ended with {status}\n{}", self.settings.name, self.log_tail()));
                }
            }
        }
    }

    fn check_line(&self, line: &str) -> Result<(), String> {
        let expected = format!(
            "mounted {} (passthrough {}), http {}, node {}",
            self.mount().display(),
            if self.passthrough { "on" } else { "off" },
            self.http,
            self.settings.name
        );
        if line == expected { Ok(()) } else { Err(format!("said {line:?}, expected {expected:?}")) }
    }

    /// Starts the node; panics where that fails.
    pub fn must_start(&mut self) {
        if let Err(error) = self.start() {
            panic!("{error}");
        }
    }

    /// Kills the daemon as a power cut would. Its mount stays behind, dead.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends the node in order (SIGTERM) and gives its exit status.
    pub fn terminate(&mut self) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("pids are small"));
        kill(pid, Signal::SIGTERM).unwrap();
        let status = within(PATIENCE, || child.try_wait().unwrap());
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{} did not end after SIGTERM\n{}", self.settings.name, self.log_tail());
        }
        status
    }

    /// Ends in order and starts again.
    pub fn restart(&mut self) {
        self.terminate();
        self.must_start();
    }

    /// Whether the process lives.
    pub fn is_running(&mut self) -> bool {
        is_plain() || self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Waits until the process has ended by itself, for at most `limit`.
    pub fn wait_for_end(&mut self, limit: Duration) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        let status = within(limit, || child.try_wait().unwrap())?;
        self.child = None;
        Some(status)
    }

    /// Process id of the daemon, where it runs.
    pub fn pid_if_running(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Process id of the daemon.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    /// The process that watches over the mount, which would fence the applications of a dead node.
    pub fn guard_pid(&self) -> Option<i32> {
        let daemon = self.pid().to_string();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.find(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = words.split(|byte| *byte == 0).collect();
            words.get(1) == Some(&&b"guard-mount"[..]) && words.get(2) == Some(&daemon.as_bytes())
        })
    }

    /// Kills that process. The node starts another one, unless [`Settings::env`] has [`NO_OTHER_GUARD`].
    pub fn kill_guard(&self) -> i32 {
        let pid = self.guard_pid().expect("the mount is guarded");
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        pid
    }

    /// Resident memory of the daemon in bytes (`VmRSS`), and its peak (`VmHWM`).
    pub fn memory_bytes(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).expect("the kernel says it");
            line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// Everything the node wrote to stderr so far, all runs.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("stderr")
    }

    /// The end of the log; `SKEIN_TEST_LOG_LINES` says how many lines of it.
    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let shown =
            std::env::var("SKEIN_TEST_LOG_LINES").ok().and_then(|lines| lines.parse().ok()).unwrap_or(40);
        let tail = lines[lines.len().saturating_sub(shown)..].join("\n    ");
        format!("--- stderr of {}:\n    {tail}\n---", self.settings.name)
    }

    /// `GET /v1/status`.
    pub fn status(&self) -> Result<Value, String> {
        http::get_json(self.http, "/v1/status")
    }

    /// What the status says of one database: TXID and checksum.
    pub fn pos(&self, db: &str) -> Option<(String, String)> {
        let status = self.status().ok()?;
        let found = status["databases"].as_array()?.iter().find(|entry| entry["name"] == db)?;
        Some((found["txid"].as_str()?.to_owned(), found["checksum"].as_str()?.to_owned()))
    }

    /// A consistent copy of a database as bytes.
    pub fn export(&self, db: &str) -> Result<Vec<u8>, String> {
        if is_plain() {
            return std::fs::read(self.path(db)).map_err(|error| error.to_string());
        }
        let path = format!("/v1/databases/{}/export", http::encode(db));
        let reply = http::request(self.http, "GET", &path, &[])?;
        if reply.status == 200 { Ok(reply.body) } else { Err(reply.text()) }
    }

    /// Runs a client command (`status`, `db`, `wait`...) against this node.
    pub fn client(&self, args: &[&str]) -> std::process::Output {
        skein().args(args).env("SKEIN_URL", format!("http://{}", self.http)).output().unwrap()
    }

    /// Runs a client command that must succeed; its stdout.
    pub fn must_client(&self, args: &[&str]) -> String {
        let output = self.client(args);
        assert!(output.status.success(), "skein {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let running = self.child.is_some();
        self.kill9();
        if !is_plain() {
            unmount(&self.mount());
        }
        if std::thread::panicking() {
            eprintln!(
                "{} ({}running at the end)\n{}",
                self.settings.name,
                if running { "" } else { "not " },
                self.log_tail()
            );
        } else if !self.expects_panics {
            assert!(!self.log().contains("panicked at"), "the daemon panicked\n{}", self.log());
        }
    }
}

/// Takes away whatever is mounted at `dir`, dead or alive.
pub fn unmount(dir: &Path) {
    for _ in 0..4 {
        if umount2(dir, MntFlags::MNT_DETACH).is_err() {
            break;
        }
    }
    if !nix::unistd::geteuid().is_root() {
        let _ = Command::new("fusermount3").args(["-u", "-z", "-q"]).arg(dir).status();
    }
}

/// The program, without configuration from the environment of the tests.
pub fn skein() -> Command {
    let mut command = Command::new(skein_binary());
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("SKEIN_") {
            command.env_remove(key);
        }
    }
    command
}

/// A loopback address nobody listens on, below the ports the kernel hands out by itself.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..2000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id().wrapping_mul(37);
        let port = 12_000 + u16::try_from(step % 20_000).expect("below 20,000");
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().unwrap();
        }
    }
    panic!("no free loopback port");
}
