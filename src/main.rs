//! The binary: parses the command line, loads the settings, runs one subcommand.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use throughline::cli::dev::{self, DevArgs};
use throughline::settings::LoadedSettings;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Dev(DevArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Dev(args) = Cli::parse().command;
    let run = async || {
        let loaded = LoadedSettings::load(None, &[])?;
        dev::run(args, &loaded.settings).await
    };
    match run().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("throughline: {error:#}");
            ExitCode::FAILURE
        }
    }
}
