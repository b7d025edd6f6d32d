//! `throughline dev`: services, all roles and the addresses to open, in one process, until Ctrl-C.
//!
//! Services that are configured or run already are used and left alone; a pair of its own ends with it.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};

use super::Program;
use crate::app::dev::{self, CancelFlag, Origin, Report, Services};
use crate::app::lifecycle::Lifecycle;
use crate::app::{install, roles};
use crate::settings::Settings;

/// Runs everything until a signal; 0 then, an error when a role or a service ended by itself.
pub async fn run(program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let mut settings = program.settings.clone();
    let mut lifecycle = Lifecycle::with_signals()?;
    let cancel = CancelFlag::default();
    let report: Report = Arc::new(|line| eprintln!("{line}"));
    let starting = Services::open_reporting(program.settings, report, cancel.clone());
    tokio::pin!(starting);
    let services = match lifecycle.unless_signalled(&mut starting).await {
        Some(services) => services.context("cannot bring the services up")?,
        None => {
            cancel.set();
            // What had started already stops before this returns.
            if let Ok(services) = starting.await {
                services.stop().await?;
            }
            return Ok(ExitCode::SUCCESS);
        }
    };
    settings.kafka.brokers = services.kafka_brokers.clone();
    settings.database.url = services.database_url.as_str().into();
    dev::prefer_free_ports(&mut settings).context("no free port")?;
    let ran = run_roles(program, &settings, lifecycle, &services).await;
    if services.origin == Origin::Started {
        eprintln!("stopping Kafka and PostgreSQL");
    }
    services.stop().await?;
    ran.map(|()| ExitCode::SUCCESS)
}

async fn run_roles(
    program: &Program<'_>,
    settings: &Settings,
    mut lifecycle: Lifecycle,
    services: &Services,
) -> anyhow::Result<()> {
    match lifecycle.unless_signalled(install::ready(program.app, settings)).await {
        Some(ready) => ready.context("cannot start")?,
        None => return Ok(()),
    }
    let all = roles::parse(program.app, &[])?;
    roles::start(program.app, &all, settings, &lifecycle).await.context("cannot start")?;
    print_addresses(settings);
    let shutdown = lifecycle.shutdown();
    let running = lifecycle.run();
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => Ok(ended?),
        reason = services.failed() => {
            shutdown.cancel();
            running.await?;
            bail!("{reason}")
        }
    }
}

fn print_addresses(settings: &Settings) {
    let (api, admin) = (settings.http.listen, settings.http.admin_listen);
    println!("API page    http://{api}/docs");
    println!("metrics     http://{admin}/metrics");
    println!("readiness   http://{admin}/readyz?verbose");
    println!("Kafka       {}", settings.kafka.brokers);
    println!("PostgreSQL  {}", settings.database.url.expose());
    println!("Ctrl-C ends it.");
}
