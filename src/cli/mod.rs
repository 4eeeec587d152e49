//! The command line: one file per command.
//!
//! Owns how commands are read and how their results and errors are written. Decides nothing about databases: it starts
//! a node, or asks one over HTTP.

mod args;
mod backup;
mod backup_args;
mod certs;
mod config;
mod db;
mod db_args;
mod demo;
mod demo_node;
mod doctor;
mod exit_code;
mod history;
mod history_args;
mod ltx;
mod manual;
mod members;
mod mount;
mod node_args;
mod output;
mod primary;
mod recover;
mod restore;
mod result_format;
mod run;
mod run_args;
mod section_args;
mod sql;
mod sql_args;
mod sql_dump;
mod sql_engine;
mod status;
mod verify;
mod wait;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use clap::error::{ContextKind, ErrorKind};

use args::{Cli, Command};

/// Runs the program with these words, the first being its name; gives the exit code: the
/// supervised command's, or one of those in `exit_code`.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = words.into_iter().collect();
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &words),
    };
    match run(cli.command) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error_line(&format!("{error:#}"));
            ExitCode::from(exit_code::of(&error))
        }
    }
}

fn run(command: Command) -> anyhow::Result<i32> {
    if let Command::Ltx(command) = command {
        return ltx::run(command);
    }
    if let Command::Certs(args) = command {
        return certs::run(args);
    }
    if let Command::Config(command) = command {
        return config::run(command);
    }
    if let Command::Version(args) = command {
        let version = env!("CARGO_PKG_VERSION");
        match args.json {
            true => output::json(&serde_json::json!({ "version": version }))?,
            false => output::out(&format!("skein {version}\n"))?,
        }
        return Ok(0);
    }
    if let Command::Completions { shell } = command {
        return manual::completions(shell);
    }
    if let Command::Man { dir } = command {
        return manual::pages(&dir);
    }
    if let Command::Recover(args) = command {
        return recover::run(args);
    }
    if let Command::GuardMount(args) = command {
        crate::node::guard_mount(args.parent, args.connection, &args.mount_point)?;
        return Ok(0);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(runtime_threads())
        .enable_all()
        .build()
        .context("starting the runtime's threads")?;
    let done = runtime.block_on(async {
        match command {
            Command::Mount(args) => mount::run(args).await,
            Command::Demo(args) => demo::run(args).await,
            Command::Doctor(args) => doctor::run(args).await,
            Command::Status(args) => status::run(args).await,
            Command::Db(args) => db::run(args).await,
            Command::History(args) => history::run(args).await,
            Command::Branch(args) => history::branch(args).await,
            Command::Restore(args) => restore::run(*args).await,
            Command::Backup(args) => backup::run(args).await,
            Command::Wait(args) => wait::run(args).await,
            Command::Run(args) => run::run(args).await,
            Command::Lease(args) => run::lease(&args).await,
            Command::Members(args) => members::run(args).await,
            Command::Handoff(args) => members::hand_off(args).await,
            Command::Sql(args) => sql::run(args).await,
            Command::SqlEngine(args) => sql_engine::run(args).await,
            // Done above, without a runtime.
            _ => Ok(0),
        }
    });
    // Nothing that still blocks (a read of stdin, say) may hold up the end.
    runtime.shutdown_background();
    done
}

/// Half the processors: applications and the threads of the mount and of Raft need theirs, and two threads that hand
/// work to each other wake each other up, which costs more than the work.
fn runtime_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2))
}

/// Help goes to stdout; a mistake is one line on stderr.
fn usage(error: &clap::Error, words: &[OsString]) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that has gone does not want the help any more.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ => {
            output::error_line(&usage_line(error, words));
            ExitCode::from(2)
        }
    }
}

fn usage_line(error: &clap::Error, words: &[OsString]) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let group = words.get(1).map(|word| format!(" {}", word.to_string_lossy())).unwrap_or_default();
        return format!("no command is given; see skein{group} --help");
    }
    let program = match error.get(ContextKind::Usage) {
        Some(usage) => usage_command(&usage.to_string()),
        None => "skein".to_owned(),
    };
    let text = error.render().to_string();
    let message: Vec<_> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let message = message.join(" ");
    format!("{}; see {program} --help", message.trim_start_matches("error: ").trim_end_matches('.'))
}

/// `skein db list` of `Usage: skein db list [OPTIONS]`.
fn usage_command(usage: &str) -> String {
    let words = usage.split_whitespace().skip_while(|word| word.ends_with(':'));
    let is_word = |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase());
    let words: Vec<_> = words.take_while(is_word).collect();
    if words.is_empty() { "skein".to_owned() } else { words.join(" ") }
}

/// Whether the reader of stdout has gone (`skein status | head -1`): no error of ours.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::Partial;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_key_of_the_file_is_an_option_and_a_variable() {
        let cli = Cli::command();
        let mount = cli.find_subcommand("mount").expect("it is there");
        let option = |key: &str| {
            mount.get_arguments().find(|argument| argument.get_long() == Some(&key.replace('_', "-")))
        };
        let check = |key: &str| {
            let argument = option(key).unwrap_or_else(|| panic!("no option for {key}"));
            let variable = format!("SKEIN_{}", key.to_uppercase());
            assert_eq!(argument.get_env().and_then(|name| name.to_str()), Some(variable.as_str()));
        };
        let sections = Partial::sections();
        let plain = |key: &String| *key != "command" && sections.iter().all(|(name, _)| name != key);
        Partial::keys().into_iter().filter(plain).for_each(|key| check(&key));
        for (section, keys) in &sections {
            let keys = keys.iter().map(|key| format!("{section}_{key}"));
            // Most of what the proxy does is said in the file only.
            let told = keys.filter(|key| section != "proxy" || option(key).is_some()).collect::<Vec<_>>();
            assert!(told.len() >= 2, "{section} has too few options: {told:?}");
            told.iter().for_each(|key| check(key));
        }
    }

    #[test]
    fn mistakes_are_told_in_one_line() {
        for words in [
            &["skein"][..],
            &["skein", "mont"],
            &["skein", "mount", "--nme", "x"],
            &["skein", "mount", "--listen", "nowhere"],
            &["skein", "db", "export", "a"],
            &["skein", "db"],
            &["skein", "wait", "a", "--timeout", "soon"],
        ] {
            let error = Cli::try_parse_from(words).unwrap_err();
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            let line = usage_line(&error, &words);
            assert!(!line.contains('\n') && line.contains("--help"), "{line}");
            assert!(line.starts_with(|c: char| c.is_lowercase() || !c.is_alphabetic()), "{line}");
        }
    }
}
