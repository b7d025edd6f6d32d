//! `throughline db apply|check`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{FOUND_FALSE, Program};
use crate::app::install;
use crate::store::{DatabaseRole, StoreError, connect, migrate};

/// Arguments of `db`.
#[derive(Debug, Args)]
pub struct DbArgs {
    #[command(subcommand)]
    verb: DbVerb,
}

#[derive(Debug, Subcommand)]
enum DbVerb {
    /// Apply missing migrations; register topics, schemas and read tables
    Apply,
    /// Whether every migration is applied; exit code 3 when not
    Check,
}

/// Applies or checks the database.
pub async fn run(args: DbArgs, Program { app, settings, .. }: &Program<'_>) -> anyhow::Result<ExitCode> {
    match args.verb {
        DbVerb::Apply => {
            let applied = install::apply_database(app, settings).await?;
            if applied.is_empty() {
                println!("the database is up to date");
            }
            for name in applied {
                println!("applied {name}");
            }
            Ok(ExitCode::SUCCESS)
        }
        DbVerb::Check => {
            let client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
            match migrate::check(&client).await {
                Ok(()) => {
                    println!("the database is up to date");
                    Ok(ExitCode::SUCCESS)
                }
                Err(StoreError::Schema(reason)) => {
                    eprintln!("{reason}");
                    Ok(ExitCode::from(FOUND_FALSE))
                }
                Err(error) => Err(error.into()),
            }
        }
    }
}
