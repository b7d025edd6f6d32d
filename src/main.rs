//! Parses the command line, runs one subcommand, and turns its answer into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    throughline::cli::main()
}
