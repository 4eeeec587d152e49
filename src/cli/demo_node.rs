use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long a node has to start, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node of the demonstration: a process of this program.
pub(super) struct DemoNode {
    pub(super) name: String,
    /// The line it printed.
    pub(super) announcement: String,
    /// HOST:PORT of its gRPC.
    pub(super) listen: String,
    /// URL of its API.
    pub(super) http: String,
    pub(super) mount: PathBuf,
    dir: PathBuf,
    child: Child,
}

impl DemoNode {
    /// Starts a node below `dir` with these options besides the usual ones, and waits until its mount may be used.
    pub(super) async fn start(dir: &Path, name: &str, options: &[&str]) -> anyhow::Result<Self> {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let (listen, http) = (free_address()?, free_address()?);
        let mount = dir.join("mnt");
        let (child, announcement) = launch(&dir, name, &listen, &http, options).await?;
        let http = format!("http://{http}");
        Ok(Self { name: name.to_owned(), announcement, listen, http, mount, dir, child })
    }

    /// Kills the node as a power cut would.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("killing node {}", self.name))
    }

    /// Starts a killed node again, where it was.
    pub(super) async fn restart(&mut self, options: &[&str]) -> anyhow::Result<()> {
        let http = self.http.trim_start_matches("http://").to_owned();
        let started = launch(&self.dir, &self.name, &self.listen, &http, options).await?;
        (self.child, self.announcement) = started;
        Ok(())
    }

    /// Ends the node in order.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM)
                .with_context(|| format!("ending node {}", self.name))?;
        }
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            Ok(Ok(status)) => bail!("node {} ended with {status}", self.name),
            Ok(Err(error)) => bail!("node {}: {error}", self.name),
            Err(_) => bail!("node {} did not end within {PATIENCE:?}", self.name),
        }
    }
}

/// Starts the process and waits for the line that says that its mount may be used.
async fn launch(
    dir: &Path,
    name: &str,
    listen: &str,
    http: &str,
    options: &[&str],
) -> anyhow::Result<(Child, String)> {
    let (mount, log) = (dir.join("mnt"), dir.join("log"));
    let program = std::env::current_exe().context("finding this program's file")?;
    let mut command = Command::new(program);
    // What the user's environment says is meant for another node.
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("SKEIN_")) {
        command.env_remove(key);
    }
    command.arg("mount").arg("--mount").arg(&mount).arg("--data").arg(dir.join("data"));
    command.args(["--name", name, "--listen", listen, "--http", http]).args(options);
    let stderr = File::options().create(true).append(true).open(&log);
    let stderr = stderr.with_context(|| log.display().to_string())?;
    // A group of its own: Ctrl-C is this program's, which ends the nodes in order.
    command.process_group(0).kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    let mut child = command.spawn().context("starting a node")?;
    let Some(stdout) = child.stdout.take() else { bail!("node {name} has no stdout") };
    let mut lines = BufReader::new(stdout).lines();
    let announcement = match tokio::time::timeout(PATIENCE, lines.next_line()).await {
        Ok(Ok(Some(line))) => line,
        Ok(_) => bail!("node {name} did not start: {}", last_line(&log)),
        Err(_) => bail!("node {name} did not start within {PATIENCE:?}: {}", last_line(&log)),
    };
    Ok((child, announcement))
}

/// A loopback address nobody listens on at the moment.
fn free_address() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("finding a free loopback port")?;
    Ok(listener.local_addr().context("finding a free loopback port")?.to_string())
}

/// What a node said last.
fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    match last {
        Some(line) => line.trim_start_matches("skein: ").to_owned(),
        None => format!("see {}", log.display()),
    }
}
