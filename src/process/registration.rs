//! A process manager as an application registers it: what it reads of which contexts, its types erased.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::audit::{self, Fault};
use super::read::{Feed, Reader, Told};
use super::state::{self, InstanceView, Status};
use super::{Managed, ProcessError, ResetReport, RetryReport, reset, retry, run};
use crate::engine::{Aggregate, BoundedContext, Concern, EventCodec as _, ProcessManager, Recorded};
use crate::health::Health;
use crate::kafka::topics::TopicNames;
use crate::projection::recorded;
use crate::settings::{Settings, TopicSettings};
use crate::store::{Pace, StoreError};

type Event<C> = <<C as BoundedContext>::Aggregate as Aggregate>::Event;

/// The codecs of the contexts that an application hosts, by the context's name.
pub type Codecs = HashMap<&'static str, Arc<dyn Any + Send + Sync>>;

/// Makes a reader of a context's events out of its codec; none where that is another one.
type Bind<E> = Arc<dyn Fn(&Arc<dyn Any + Send + Sync>) -> Option<Reader<E>> + Send + Sync>;

/// A process manager with what it reads. [`crate::App::process`] registers it.
pub struct Process<P: ProcessManager> {
    make: fn(&Settings) -> anyhow::Result<P>,
    events: Vec<(&'static str, Bind<P::Event>)>,
    outcomes: BTreeSet<&'static str>,
}

impl<P: ProcessManager> Process<P> {
    /// A process manager that reads nothing yet; `make` makes it, given the settings.
    pub fn new(make: fn(&Settings) -> anyhow::Result<P>) -> Self {
        Self { make, events: Vec::new(), outcomes: BTreeSet::new() }
    }

    /// Reads the events of `C`: `route` tells whose an event is and what it says to it, if anything.
    #[must_use]
    pub fn events<C: BoundedContext>(mut self, route: fn(&Recorded<Event<C>>) -> Option<Concern<P::Event>>) -> Self {
        let bind: Bind<P::Event> = Arc::new(move |codec| {
            let codec = codec.clone().downcast::<C::Codec>().ok()?;
            Some(Box::new(move |record, seq| {
                let event = recorded(record, seq, |bytes| codec.decode(bytes))?;
                let told = |concern| Told::event(concern, event.event_id, event.correlation_id.clone());
                Ok(route(&event).map(told))
            }))
        });
        self.events.push((C::NAME, bind));
        self
    }

    /// Reads what becomes of the commands that it sends to `C`.
    #[must_use]
    pub fn outcomes<C: BoundedContext>(mut self) -> Self {
        self.outcomes.insert(C::NAME);
        self
    }

    fn managed(&self, settings: &Arc<Settings>, codecs: &Codecs) -> Result<Managed<P>, ProcessError> {
        let failed = |reason: String| ProcessError::Registration { process: P::NAME, reason };
        let mut feeds = HashMap::new();
        for (context, bind) in &self.events {
            let codec = codecs
                .get(context)
                .ok_or_else(|| failed(format!("it reads events of {context}, which is not hosted")))?;
            let reader =
                bind(codec).ok_or_else(|| failed(format!("the context hosted as {context} is another one")))?;
            feeds.insert(TopicNames::new(context, &settings.topics).events(), Feed::Events(reader));
        }
        for context in &self.outcomes {
            feeds.insert(TopicNames::new(context, &settings.topics).results(), Feed::Outcomes(context));
        }
        let process = (self.make)(settings).map_err(|error| failed(format!("{error:#}")))?;
        let group = state::group(&settings.topics, P::NAME);
        Ok(Managed { settings: settings.clone(), process, group, feeds })
    }
}

/// A process manager with its types erased; implemented once, for each by its type.
pub trait AnyProcess: Send + Sync {
    /// Its name.
    fn name(&self) -> &'static str;
    /// The contexts that it reads.
    fn contexts(&self) -> BTreeSet<&'static str>;
    /// The topics that it reads.
    fn topics(&self, settings: &TopicSettings) -> BTreeSet<String>;
    /// The process manager with the codecs of what it reads.
    ///
    /// # Errors
    /// A context is not hosted, or its settings cannot be used.
    fn open(&self, settings: &Arc<Settings>, codecs: &Codecs) -> Result<Box<dyn OpenProcess>, ProcessError>;
}

impl<P: ProcessManager> AnyProcess for Process<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn contexts(&self) -> BTreeSet<&'static str> {
        self.events.iter().map(|(context, _)| *context).chain(self.outcomes.iter().copied()).collect()
    }

    fn topics(&self, settings: &TopicSettings) -> BTreeSet<String> {
        let names = |context: &str| TopicNames::new(context, settings);
        let events = self.events.iter().map(|(context, _)| names(context).events());
        events.chain(self.outcomes.iter().map(|context| names(context).results())).collect()
    }

    fn open(&self, settings: &Arc<Settings>, codecs: &Codecs) -> Result<Box<dyn OpenProcess>, ProcessError> {
        Ok(Box::new(Arc::new(self.managed(settings, codecs)?)))
    }
}

/// The end of an operation.
type Done<'a, T> = BoxFuture<'a, Result<T, ProcessError>>;

/// A process manager that can run; implemented once, for each by its type.
pub trait OpenProcess: Send + Sync {
    /// Its name.
    fn name(&self) -> &'static str;
    /// Its consumer group.
    fn group(&self) -> &str;
    /// Its loop, until the shutdown.
    fn run(&self, health: Arc<Health>, shutdown: CancellationToken) -> Done<'static, ()>;
    /// Where it stands.
    fn status<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<Status, StoreError>>;
    /// One instance, whole; none where it has not begun.
    fn instance<'a>(
        &'a self,
        client: &'a Client,
        instance: uuid::Uuid,
    ) -> BoxFuture<'a, Result<Option<InstanceView>, StoreError>>;
    /// Handles everything again and sends nothing twice.
    fn reset(&self) -> Done<'_, ResetReport>;
    /// Handles again what is parked.
    fn retry(&self) -> Done<'_, RetryReport>;
    /// Holds the `newest` instances, or all, against their inputs; `told` hears what is wrong. Returns how many.
    fn audit<'a>(
        &'a self,
        client: &'a mut Client,
        newest: Option<i64>,
        pace: &'a Pace,
        told: &'a (dyn Fn(Fault) + Send + Sync),
    ) -> Done<'a, u64>;
}

impl<P: ProcessManager> OpenProcess for Arc<Managed<P>> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn group(&self) -> &str {
        &self.group
    }

    fn run(&self, health: Arc<Health>, shutdown: CancellationToken) -> Done<'static, ()> {
        Box::pin(run::run(self.clone(), health, shutdown))
    }

    fn status<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<Status, StoreError>> {
        Box::pin(state::status(client, self))
    }

    fn instance<'a>(
        &'a self,
        client: &'a Client,
        instance: uuid::Uuid,
    ) -> BoxFuture<'a, Result<Option<InstanceView>, StoreError>> {
        Box::pin(state::instance(client, P::NAME, instance))
    }

    fn reset(&self) -> Done<'_, ResetReport> {
        Box::pin(reset::reset(self))
    }

    fn retry(&self) -> Done<'_, RetryReport> {
        Box::pin(retry::retry(self))
    }

    fn audit<'a>(
        &'a self,
        client: &'a mut Client,
        newest: Option<i64>,
        pace: &'a Pace,
        told: &'a (dyn Fn(Fault) + Send + Sync),
    ) -> Done<'a, u64> {
        Box::pin(audit::audit(self, client, newest, pace, told))
    }
}
