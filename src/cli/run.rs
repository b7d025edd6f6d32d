//! `throughline run [ROLE…]`: the loops, in one process, until a signal.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::Program;
use crate::app::{install, lifecycle, roles};

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// processor, processor:CONTEXT, relay, projection:NAME, projections, process:NAME, processes, api; none = all
    #[arg(value_name = "ROLE")]
    roles: Vec<String>,
}

/// Runs the roles; 0 after SIGTERM or SIGINT, an error when a role ended by itself.
pub async fn run(args: RunArgs, Program { app, settings, .. }: &Program<'_>) -> anyhow::Result<ExitCode> {
    let roles = roles::parse(app, &args.roles)?;
    // Before anything that takes time: a process that is told to stop while it starts stops cleanly.
    let mut lifecycle = lifecycle::Lifecycle::with_signals()?;
    match lifecycle.unless_signalled(install::ready(app, settings)).await {
        Some(ready) => ready.context("cannot start")?,
        None => return Ok(ExitCode::SUCCESS),
    }
    roles::start(app, &roles, settings, &lifecycle).await.context("cannot start")?;
    lifecycle.run().await?;
    Ok(ExitCode::SUCCESS)
}
