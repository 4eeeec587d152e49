//! The program: reads the command line, runs the command, sets the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    skein::cli::main(std::env::args_os())
}
