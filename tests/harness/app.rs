//! Applications as processes of their own, so that they can be killed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{PATIENCE, target_dir, within};

/// The executable of one of the package's examples, built beside the tests.
pub fn example(name: &str) -> PathBuf {
    let path = target_dir().join("examples").join(name);
    assert!(path.exists(), "{} is missing: cargo build --examples", path.display());
    path
}

/// A running application and what it has said so far.
pub struct App {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl App {
    /// Starts `examples/transfer.rs` on a database.
    pub fn transfer(database: &Path, args: &[&str]) -> Self {
        Self::spawn(Command::new(example("transfer")).arg(database).args(args))
    }

    /// Starts a command whose stdout is kept line by line.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (stdout, kept) = (child.stdout.take().expect("piped"), Arc::clone(&lines));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        Self { child, lines, reader: Some(reader) }
    }

    /// What it has said so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// How many lines begin with `prefix` so far.
    pub fn count(&self, prefix: &str) -> usize {
        self.lines.lock().unwrap().iter().filter(|line| line.starts_with(prefix)).count()
    }

    /// Waits until it has said `n` lines that begin with `prefix`, or has ended, or `limit` is over.
    pub fn wait_for(&mut self, prefix: &str, n: usize, limit: Duration) -> bool {
        within(limit, || {
            let enough = self.count(prefix) >= n;
            (enough || self.child.try_wait().unwrap().is_some()).then_some(enough)
        })
        .unwrap_or(false)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Kills it and gives all it had said: what reached the pipe was said.
    pub fn kill9(&mut self) -> Vec<String> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.finish()
    }

    /// Waits for its end; its status, what it said, and its stderr.
    pub fn end(&mut self) -> (ExitStatus, Vec<String>, String) {
        let status = within(PATIENCE * 2, || self.child.try_wait().unwrap());
        let Some(status) = status else {
            self.kill9();
            panic!("the application did not end; last words: {:?}", self.lines().last());
        };
        let mut errors = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = std::io::Read::read_to_string(&mut stderr, &mut errors);
        }
        (status, self.finish(), errors)
    }

    fn finish(&mut self) -> Vec<String> {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        self.lines()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
