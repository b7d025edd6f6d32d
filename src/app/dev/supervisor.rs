//! One thread that starts the local services, watches them and stops them. The kernel ties a child's
//! death to the thread that started it, so this thread lives as long as they do.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::error::DevError;
use super::kafka::KafkaServer;
use super::postgres::{PostgresServer, PostgresStop};
use super::process::{CancelFlag, Identity, Report, wait_until};
use super::state::{Layout, Ports, Recorded};
use super::{fetch, wrappers};
use crate::settings::{DevRunner, DevSettings};

/// How often the services are looked after.
const WATCH: Duration = Duration::from_millis(200);

type Job = Box<dyn FnOnce(&mut Pair) + Send>;

/// Handle of the thread. Dropping it stops both services and waits for that.
#[derive(Debug)]
pub(super) struct Supervisor {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    failed: watch::Receiver<Option<String>>,
}

/// What a start found or made.
pub(super) enum Opened {
    Found(Recorded),
    Started(Recorded, Supervisor),
}

/// Both local services of one directory.
pub(super) struct Pair {
    settings: DevSettings,
    layout: Layout,
    /// By node id, from 1 on.
    kafka: Vec<KafkaServer>,
    postgres: PostgresServer,
    state: Recorded,
    cancel: CancelFlag,
}

/// Finds running services, or cleans up what a dead launcher left and starts them.
pub(super) async fn open(settings: DevSettings, report: Report, cancel: CancelFlag) -> Result<Opened, DevError> {
    let (jobs, inbox) = mpsc::channel::<Job>();
    let (tell_failed, failed) = watch::channel(None);
    let (tell, told) = oneshot::channel();
    let body = move || match find_or_start(settings, &report, &cancel) {
        Ok(Beginning::Found(state)) => drop(tell.send(Ok((*state, false)))),
        Ok(Beginning::Started(mut pair)) => {
            // Nobody waits any more: then nobody would stop them either.
            if tell.send(Ok((pair.state.clone(), true))).is_err() {
                pair.stop();
                return;
            }
            pair.watch(&inbox, &tell_failed);
        }
        Err(error) => drop(tell.send(Err(error))),
    };
    let thread = std::thread::Builder::new()
        .name("dev-services".into())
        .spawn(body)
        .map_err(|error| DevError::step("starting the launcher's thread", error, "see the limits of this user"))?;
    match told.await {
        Ok(Ok((state, false))) => Ok(Opened::Found(state)),
        Ok(Ok((state, true))) => {
            Ok(Opened::Started(state, Supervisor { jobs: Some(jobs), thread: Some(thread), failed }))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(DevError::step("starting the services", "the launcher's thread ended", "throughline dev up")),
    }
}

impl Supervisor {
    /// Runs `job` where the services live.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Pair) -> Result<T, DevError> + Send + 'static,
    ) -> Result<T, DevError> {
        let gone = || DevError::step("reaching the services", "they were stopped", "throughline dev up");
        let (tell, told) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(Box::new(move |pair| drop(tell.send(job(pair))))).map_err(|_| gone())?;
        told.await.map_err(|_| gone())?
    }

    /// Returns when a service ended without being asked to, with what is known of it.
    pub(super) async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the services were stopped".into(),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed already, and the children die with the thread.
            let _ = thread.join();
        }
    }
}

enum Beginning {
    Found(Box<Recorded>),
    Started(Box<Pair>),
}

fn find_or_start(settings: DevSettings, report: &Report, cancel: &CancelFlag) -> Result<Beginning, DevError> {
    let layout = Layout::of(&settings)?;
    let stop_bound = Duration::from_millis(settings.stop_timeout_ms);
    // Another launcher may hold it while it fetches.
    let lock_bound = Duration::from_millis(settings.fetch_timeout_ms + settings.start_timeout_ms);
    let _lock = layout.lock(lock_bound, cancel)?;
    if let Some(state) = layout.read_state() {
        if state.ready && state.is_alive() {
            return Ok(Beginning::Found(Box::new(state)));
        }
        // Starts happen under the lock that we hold, so a living owner is stopping, or has lost a service.
        wait_until(stop_bound, || !state.is_owned() || layout.read_state().is_none());
        if state.is_owned() && layout.read_state().is_some() {
            let reason = format!("process {} owns them and lost one", state.owner.map_or(0, |owner| owner.pid));
            return Err(DevError::step("finding the running services", reason, "throughline dev down"));
        }
        if [&state.kafka, &state.postgres].iter().any(|left| left.as_ref().is_some_and(Identity::is_alive)) {
            report("cleaning up what a killed launcher left running");
        }
        state.end_services(stop_bound);
        layout.forget_state();
    }
    Pair::start(settings, layout, report, cancel).map(|pair| Beginning::Started(Box::new(pair)))
}

impl Pair {
    fn start(settings: DevSettings, layout: Layout, report: &Report, cancel: &CancelFlag) -> Result<Self, DevError> {
        let files = fetch::prepare(&settings, report, cancel)?;
        report("starting Kafka and PostgreSQL");
        let started = Instant::now();
        let bound = Duration::from_millis(settings.start_timeout_ms);
        ["kafka", "postgres"].iter().for_each(|name| layout.rotate_log(name));
        let last = layout.read_ports();
        let jars = files.jars.clone();
        let mut kafka = vec![KafkaServer::new(files, &layout, &last, settings.kafka_heap_mib)?];
        kafka[0].spawn()?;
        let mut state = Recorded {
            runner: DevRunner::Local,
            owner: Identity::own(),
            kafka: kafka[0].identity(),
            more_kafka: Vec::new(),
            postgres: None,
            kafka_brokers: kafka[0].brokers(),
            database_url: String::new(),
            kafka_jars: Some(jars),
            ready: false,
        };
        let mut begin = || {
            layout.write_state(&state)?;
            // While Java starts.
            let taken = [kafka[0].port, kafka[0].controller_port];
            let mut postgres = PostgresServer::new(&layout, last.postgres, &taken, cancel)?;
            postgres.spawn()?;
            state.postgres = postgres.identity();
            layout.write_state(&state)?;
            let waited = postgres
                .wait_ready(bound, true, cancel)
                .and_then(|()| kafka[0].wait_ready(bound.saturating_sub(started.elapsed()), true, cancel))
                .and_then(|()| join_brokers(&mut kafka, &layout, &settings, (&last, postgres.port), cancel));
            match waited {
                Ok(()) => Ok(postgres),
                Err(error) => {
                    postgres.stop(PostgresStop::Fast, Duration::from_millis(settings.stop_timeout_ms));
                    Err(error)
                }
            }
        };
        let postgres = match begin() {
            Ok(postgres) => postgres,
            Err(error) => {
                let bound = Duration::from_millis(settings.stop_timeout_ms);
                kafka.iter_mut().for_each(|broker| broker.stop(bound));
                layout.forget_state();
                return Err(error);
            }
        };
        let mut pair = Self { settings, layout, kafka, postgres, state, cancel: cancel.clone() };
        let recorded = pair.record();
        if let Err(error) = recorded {
            pair.stop();
            return Err(error);
        }
        Ok(pair)
    }

    /// Writes down what runs now, where the next start and other commands look.
    fn record(&mut self) -> Result<(), DevError> {
        self.state.kafka = self.kafka[0].identity();
        self.state.more_kafka = self.kafka[1..].iter().filter_map(KafkaServer::identity).collect();
        self.state.postgres = self.postgres.identity();
        self.state.kafka_brokers = self.kafka.iter().map(KafkaServer::brokers).collect::<Vec<_>>().join(",");
        self.state.database_url = self.postgres.url();
        self.state.ready = self.kafka.iter().all(|broker| broker.identity().is_some()) && self.state.postgres.is_some();
        let ports = Ports {
            kafka: self.kafka[0].port,
            more_kafka: self.kafka[1..].iter().map(|broker| broker.port).collect(),
            controller: self.kafka[0].controller_port,
            postgres: self.postgres.port,
        };
        self.layout.write_ports(&ports)?;
        wrappers::write(&self.layout, &self.state)?;
        self.layout.write_state(&self.state)
    }

    /// Until the handle is dropped, or a service ends by itself: then both are stopped.
    fn watch(mut self: Box<Self>, inbox: &mpsc::Receiver<Job>, tell_failed: &watch::Sender<Option<String>>) {
        loop {
            match inbox.recv_timeout(WATCH) {
                Ok(job) => job(&mut self),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let failed = self.kafka.iter_mut().find_map(KafkaServer::failure);
                    if let Some(reason) = failed.or_else(|| self.postgres.failure()) {
                        self.stop();
                        tell_failed.send_replace(Some(reason));
                        return;
                    }
                }
            }
        }
        self.stop();
    }

    fn stop(&mut self) {
        let bound = Duration::from_millis(self.settings.stop_timeout_ms);
        self.kafka.iter().for_each(KafkaServer::ask_to_stop);
        self.postgres.ask_to_stop();
        self.kafka.iter_mut().for_each(|broker| broker.stop(bound));
        self.postgres.stop(PostgresStop::Fast, bound);
        self.layout.forget_state();
    }

    fn start_bound(&self) -> Duration {
        Duration::from_millis(self.settings.start_timeout_ms)
    }

    /// SIGKILL to one broker; it stays down.
    pub(super) fn kill_broker(&mut self, node: u16) -> Result<(), DevError> {
        self.broker(node)?.kill();
        self.record()
    }

    /// The broker again, on the same port; returns when it answers.
    pub(super) fn start_broker(&mut self, node: u16) -> Result<(), DevError> {
        let (bound, cancel) = (self.start_bound(), self.cancel.clone());
        let broker = self.broker(node)?;
        if broker.identity().is_none() {
            broker.spawn()?;
        }
        broker.wait_ready(bound, false, &cancel)?;
        self.record()
    }

    fn broker(&mut self, node: u16) -> Result<&mut KafkaServer, DevError> {
        let at = usize::from(node).checked_sub(1);
        at.and_then(|at| self.kafka.get_mut(at)).ok_or_else(|| {
            let what = format!("there is no broker {node}");
            DevError::Unusable { what, next: "set THROUGHLINE__DEV__KAFKA_BROKERS".into() }
        })
    }

    /// Down in the given way; it stays down.
    pub(super) fn stop_postgres(&mut self, how: PostgresStop) -> Result<(), DevError> {
        self.postgres.stop(how, Duration::from_millis(self.settings.stop_timeout_ms));
        self.record()
    }

    /// The server again, on the same port; returns when it answers.
    pub(super) fn start_postgres(&mut self) -> Result<(), DevError> {
        if self.postgres.identity().is_none() {
            self.postgres.spawn()?;
        }
        self.postgres.wait_ready(self.start_bound(), false, &self.cancel)?;
        self.record()
    }
}

/// Starts the brokers beside the first, which has to answer: they ask its controller to be let in.
fn join_brokers(
    kafka: &mut Vec<KafkaServer>,
    layout: &Layout,
    settings: &DevSettings,
    (last, postgres): (&Ports, u16),
    cancel: &CancelFlag,
) -> Result<(), DevError> {
    let bound = Duration::from_millis(settings.start_timeout_ms);
    for node in 2..=settings.kafka_brokers {
        let taken: Vec<u16> = kafka.iter().flat_map(|broker| [broker.port, broker.controller_port]).collect();
        let taken = [taken, vec![postgres]].concat();
        let wanted = last.more_kafka.get(usize::from(node) - 2).copied().unwrap_or_default();
        layout.rotate_log(&format!("kafka-{node}"));
        let mut broker = KafkaServer::beside(&kafka[0], layout, node, wanted, &taken)?;
        let joined = broker.spawn().and_then(|()| broker.wait_ready(bound, true, cancel));
        kafka.push(broker);
        joined?;
    }
    Ok(())
}
