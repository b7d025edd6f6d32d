//! The main job: a whole order book through the whole pipeline, on a real Kafka and a real
//! PostgreSQL, ending in a proof that the read tables equal totals computed without it.
//!
//! `make demo` runs it. `DEMO_SCALE` (or `--scale`) is the TPC-H scale factor, 0.01 = 15,000 orders;
//! `DEMO_EXIT=1` (or `--exit`) ends after the proof with 0 or 1.

mod feed;
mod latencies;
mod orderbook;
mod proof;
mod stages;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Parser;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use throughline::api;
use throughline::app::dev::{self, CancelFlag, Report, Services};
use throughline::app::{install, lifecycle::Lifecycle, roles, telemetry};
use throughline::kafka::topics::TopicNames;
use throughline::settings::{LoadedSettings, Settings};
use throughline::store::{DatabaseRole, connect};

use feed::Deliveries;
use orderbook::{Expected, OrderBook};
use stages::Stages;

/// Takes the TPC-H order book through the pipeline and proves the read tables.
#[derive(Debug, Parser)]
struct Arguments {
    /// TPC-H scale factor: 0.01 = 15,000 orders, about 60,000 lines
    #[arg(long, env = "DEMO_SCALE", default_value_t = 0.01)]
    scale: f64,
    /// End after the proof instead of staying up
    #[arg(long, env = "DEMO_EXIT", num_args = 0..=1, default_missing_value = "1", value_parser = clap::builder::FalseyValueParser::new(), default_value = "0")]
    exit: bool,
    /// Give up when nothing moves for this long
    #[arg(long, default_value_t = 60)]
    stall_seconds: u64,
}

/// When each stage was done, seconds after the first command was sent.
struct Timings {
    sent: f64,
    decided: f64,
    published: f64,
    projected: f64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let mut settings = LoadedSettings::load(None, &[])?.settings;
    telemetry::start(&settings.log, telemetry::QUIET);
    println!("Throughline: {} of the TPC-H order book, on a real Kafka and a real PostgreSQL", arguments.scale);
    let report: Report = Arc::new(|line| eprintln!("{line}"));
    let services = Services::open_reporting(&settings, report, CancelFlag::default());
    let services = services.await.context("cannot bring the services up")?;
    settings.kafka.brokers = services.kafka_brokers.clone();
    settings.database.url = services.database_url.as_str().into();
    dev::prefer_free_ports(&mut settings).context("no free port")?;

    install::ready(&reference::app(), &settings).await?;
    let lifecycle = Lifecycle::with_signals()?;
    roles::start(&reference::app(), &roles::parse(&reference::app(), &[])?, &settings, &lifecycle).await?;
    let shutdown = lifecycle.shutdown();
    let running = tokio::spawn(lifecycle.run());

    let outcome = tokio::select! {
        outcome = take_in(&arguments, &settings) => outcome,
        () = shutdown.cancelled() => bail!("interrupted, or a role ended before the book was through"),
    };
    let holds = match outcome {
        Ok(holds) => holds,
        Err(error) => {
            shutdown.cancel();
            running.await??;
            return Err(error);
        }
    };
    if !arguments.exit {
        print_addresses(&settings);
        shutdown.cancelled().await;
    }
    shutdown.cancel();
    running.await??;
    drop(services);
    Ok(holds)
}

async fn take_in(arguments: &Arguments, settings: &Settings) -> anyhow::Result<bool> {
    let client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
    let names = TopicNames::new("orders", &settings.topics);
    let before = Stages::read(&client, &names.events()).await?;
    let book = Arc::new(OrderBook::new(arguments.scale));
    let deliveries = Arc::new(Deliveries::default());
    let started = Instant::now();
    let feeding = {
        let (kafka, topic, book, deliveries) =
            (settings.kafka.clone(), names.commands(), book.clone(), deliveries.clone());
        tokio::task::spawn_blocking(move || feed::send(&kafka, &topic, &book, deliveries))
    };
    let (expected, timings) =
        follow(&client, &names.events(), &before, feeding, &deliveries, started, arguments).await?;
    let after = Stages::read(&client, &names.events()).await?;
    summary(&expected, &before, &after, &timings);
    latencies::print(&api::install_metrics()?.render());
    println!("\nProof: read tables against totals computed from the generator alone");
    let holds = proof::prove(&client, &book, &expected).await?;
    println!(
        "{}",
        if holds { "PROOF HOLDS: the read tables equal the order book, to the cent" } else { "PROOF FAILS" }
    );
    Ok(holds)
}

/// Shows the stages until the last event of the book is in every read table.
async fn follow(
    client: &tokio_postgres::Client,
    events_topic: &str,
    before: &Stages,
    mut feeding: tokio::task::JoinHandle<anyhow::Result<Expected>>,
    deliveries: &Deliveries,
    started: Instant,
    arguments: &Arguments,
) -> anyhow::Result<(Expected, Timings)> {
    let orders = (1_500_000.0 * arguments.scale) as u64;
    let bars = Bars::new(orders * 2);
    let mut timings = Timings { sent: 0.0, decided: 0.0, published: 0.0, projected: 0.0 };
    let mut expected: Option<Expected> = None;
    let (mut last_sum, mut last_move) = (-1, Instant::now());
    loop {
        if expected.is_none() && feeding.is_finished() {
            let book = (&mut feeding).await??;
            bars.length(book.commands);
            timings.sent = started.elapsed().as_secs_f64();
            expected = Some(book);
        }
        let now = Stages::read(client, events_topic).await?;
        let elapsed = started.elapsed().as_secs_f64();
        bars.show(deliveries.acknowledged.load(Ordering::Relaxed), before, &now);
        if let Some(book) = expected.as_ref().filter(|book| now.decided - before.decided >= book.commands as i64) {
            for (done, timing) in [
                (true, &mut timings.decided),
                (now.published >= now.recorded, &mut timings.published),
                (now.projected_min() >= now.recorded, &mut timings.projected),
            ] {
                if done && *timing == 0.0 {
                    *timing = elapsed;
                }
            }
            bars.events(now.recorded - before.recorded);
            if timings.projected > 0.0 {
                debug_assert!(book.orders > 0);
                break;
            }
        }
        let sum = now.decided + now.recorded + now.published + now.projected_min();
        if sum != last_sum {
            (last_sum, last_move) = (sum, Instant::now());
        } else if last_move.elapsed() > Duration::from_secs(arguments.stall_seconds) {
            bail!("nothing moved for {} s: {now:?}", arguments.stall_seconds);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bars.finish();
    Ok((expected.context("the book ended without totals")?, timings))
}

struct Bars {
    all: MultiProgress,
    sent: ProgressBar,
    decided: ProgressBar,
    published: ProgressBar,
    projected: ProgressBar,
}

impl Bars {
    fn new(commands: u64) -> Self {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template(
            "{prefix:<10} {bar:32} {human_pos:>11}/{human_len:<11} {per_sec:>16} {eta:>5} left",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = |name: &'static str| all.add(ProgressBar::new(commands).with_style(style.clone()).with_prefix(name));
        Self {
            sent: bar("sent"),
            decided: bar("decided"),
            published: bar("published"),
            projected: bar("projected"),
            all,
        }
    }

    fn length(&self, commands: u64) {
        for bar in [&self.sent, &self.decided, &self.published, &self.projected] {
            bar.set_length(commands);
        }
    }

    fn events(&self, events: i64) {
        self.published.set_length(events.unsigned_abs());
        self.projected.set_length(events.unsigned_abs());
    }

    fn show(&self, sent: u64, before: &Stages, now: &Stages) {
        self.sent.set_position(sent);
        self.decided.set_position((now.decided - before.decided).unsigned_abs());
        self.published.set_position((now.published - before.published).unsigned_abs());
        self.projected.set_position((now.projected_min() - before.projected_min()).unsigned_abs());
    }

    fn finish(&self) {
        for bar in [&self.sent, &self.decided, &self.published, &self.projected] {
            bar.finish();
        }
        drop(self.all.clear());
    }
}

fn summary(expected: &Expected, before: &Stages, after: &Stages, timings: &Timings) {
    let commands = expected.commands as f64;
    let events = (after.recorded - before.recorded) as f64;
    println!(
        "\nTaken in: {} orders, {} lines, {} commands; {} new events",
        expected.orders, expected.lines, expected.commands, events as i64
    );
    if events == 0.0 {
        println!("(every command was decided before: sent again, nothing happened twice)");
    }
    println!("  {:<10} {:>9}   {:>12}", "stage", "done at", "rate");
    for (stage, at, count, unit) in [
        ("sent", timings.sent, commands, "commands/s"),
        ("decided", timings.decided, commands, "commands/s"),
        ("published", timings.published, events, "events/s"),
        ("projected", timings.projected, events, "events/s"),
    ] {
        println!("  {stage:<10} {at:>7.2} s   {:>12.0} {unit}", count / at.max(1e-9));
    }
}

fn print_addresses(settings: &Settings) {
    println!("\nUp and running; Ctrl-C ends it.");
    println!("  orders     http://{}/api/orders", settings.http.listen);
    println!("  API page   http://{}/docs", settings.http.listen);
    println!("  metrics    http://{}/metrics", settings.http.admin_listen);
    println!("  Kafka      {}", settings.kafka.brokers);
}
