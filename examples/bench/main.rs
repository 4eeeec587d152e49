//! Measures the mount against plain SQLite on the same file system, in the same run, interleaved.
//!
//! ```text
//! bench [--quick] [--json FILE] [--only NAME] [--dir DIR] [--no-passthrough]
//! ```
//! NAME: select, insert, bulk, lag, sync, held, quorum, failover, replicas; and those that only run when named: memory, large, cold. Starts a
//! primary and a replica of the `skein` beside this program; all data is below DIR (default: `target`).
//! Prints medians over several rounds and their ratio to plain SQLite; `--json` writes the same for programs.

#[path = "../../tests/harness/mod.rs"]
mod harness;

mod footprint;
mod latency;
mod quorum;
mod report;
mod throughput;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use harness::{Cluster, Options};
use report::Report;

/// What every measurement gets.
pub struct Bench {
    pub cluster: Cluster,
    /// A directory beside the nodes' data, for plain SQLite.
    pub plain: PathBuf,
    pub rounds: usize,
    pub quick: bool,
    pub report: Report,
}

impl Bench {
    /// `full`, or a tenth of it with `--quick`.
    pub fn amount(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(10) } else { full }
    }

    /// Where all data is.
    pub fn dir(&self) -> &Path {
        self.cluster.dir()
    }

    /// A file of plain SQLite.
    pub fn plain(&self, name: &str) -> PathBuf {
        self.plain.join(name)
    }
}

struct Arguments {
    quick: bool,
    passthrough: bool,
    json: Option<PathBuf>,
    only: Option<String>,
    dir: PathBuf,
}

fn parse() -> Result<Arguments, String> {
    let mut parsed =
        Arguments { quick: false, passthrough: true, json: None, only: None, dir: harness::target_dir() };
    let mut words = std::env::args().skip(1);
    while let Some(option) = words.next() {
        let mut value = || words.next().ok_or(format!("{option} needs a value"));
        match option.as_str() {
            "--quick" => parsed.quick = true,
            "--no-passthrough" => parsed.passthrough = false,
            "--json" => parsed.json = Some(value()?.into()),
            "--only" => parsed.only = Some(value()?),
            "--dir" => parsed.dir = value()?.into(),
            _ => return Err(format!("unknown option {option}; see the head of examples/bench/main.rs")),
        }
    }
    Ok(parsed)
}

type Measurement = (&'static str, bool, fn(&mut Bench));

/// Name, whether it runs when none is named, and what it does.
const MEASUREMENTS: [Measurement; 12] = [
    ("select", true, latency::select),
    ("insert", true, throughput::insert),
    ("bulk", true, throughput::bulk),
    ("lag", true, latency::lag),
    ("sync", true, throughput::sync),
    ("held", true, latency::held),
    ("quorum", true, quorum::quorum),
    ("failover", true, quorum::failover),
    ("replicas", true, quorum::replicas),
    ("memory", false, footprint::memory),
    ("large", false, footprint::large),
    ("cold", false, footprint::cold),
];

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(64);
        }
    };
    let wanted = |name: &str, usual: bool| arguments.only.as_deref().map_or(usual, |only| only == name);
    if !MEASUREMENTS.iter().any(|(name, usual, _)| wanted(name, *usual)) {
        eprintln!("no measurement is called {:?}", arguments.only.unwrap_or_default());
        return ExitCode::from(64);
    }
    let options = Options { passthrough: arguments.passthrough, ..Options::replicas(1) };
    let Some(cluster) = Cluster::start_below(&arguments.dir, &options) else { return ExitCode::FAILURE };
    let plain = cluster.dir().join("plain");
    std::fs::create_dir(&plain).expect("the directory is new");
    let rounds = if arguments.quick { 3 } else { 7 };
    let report = Report::new(cluster.primary.passthrough());
    let mut bench = Bench { cluster, plain, rounds, quick: arguments.quick, report };
    for (name, usual, run) in MEASUREMENTS {
        if wanted(name, usual) {
            run(&mut bench);
        }
    }
    write_json(&bench.report, arguments.json.as_deref())
}

fn write_json(report: &Report, file: Option<&Path>) -> ExitCode {
    let Some(file) = file else { return ExitCode::SUCCESS };
    match std::fs::write(file, report.json()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}
