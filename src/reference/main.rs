//! The binary `throughline`: the reference application with the command line that every application has.

use std::process::ExitCode;

fn main() -> ExitCode {
    reference::app().main()
}
