//! A bounded context as an application registers it: one value with everything that is its own.
//!
//! Inside, a context is generic, and its hot path stays so. At the edges, where an application holds several,
//! its types are erased: [`Hosted`] is what can be asked of any, [`Opened`] what can once the schema ids are known.

use std::any::Any;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Kind, OpenApiRouter};
use crate::audit;
use crate::avro::{Catalogue, CatalogueError, SchemaIds, Schemas};
use crate::engine::{Aggregate, BoundedContext, Encoded, EventCodec, Projection, ReadModel, UndecodableEvent};
use crate::health::Health;
use crate::kafka::topics::TopicNames;
use crate::plain::{Plain, PlainContext};
use crate::processor::{self, Retrial};
use crate::projection::{self, AnyProjector, Projector};
use crate::settings::{Settings, TopicSettings};

/// Events of a context's aggregate.
type Event<C> = <<C as BoundedContext>::Aggregate as Aggregate>::Event;

/// What the JSON topics of a context hold, for its AsyncAPI document.
#[derive(Debug, Clone, Default)]
pub struct Messages {
    /// What a stream is to people, such as `order`.
    pub stream: &'static str,
    /// Every command by its type, as a JSON schema.
    pub commands: Vec<(String, Value)>,
    /// What became of a command, as a JSON schema.
    pub result: Value,
}

/// A loop of a context's own, given the settings, its codec, where to tell that it lives, and when to stop.
pub type Beside<C> = fn(Arc<Settings>, Arc<<C as BoundedContext>::Codec>, Arc<Health>, CancellationToken) -> Loop;

/// Everything that is a context's own. [`super::App::context`] registers it.
pub struct Context<C: BoundedContext> {
    schemas: Schemas,
    codec: fn(&SchemaIds) -> anyhow::Result<C::Codec>,
    projections: Vec<Arc<dyn Projection<Event = Event<C>>>>,
    routes: fn() -> OpenApiRouter<Arc<Api>>,
    refusals: &'static [Kind],
    messages: fn() -> Messages,
    beside: Option<Beside<C>>,
}

impl<C: BoundedContext> Context<C> {
    /// A context that publishes events of these schemas; `codec` makes its codec, given the ids of the schemas.
    pub fn new(schemas: Schemas, codec: fn(&SchemaIds) -> anyhow::Result<C::Codec>) -> Self {
        let messages = || Messages { stream: "stream", ..Messages::default() };
        let routes = OpenApiRouter::new;
        Self { schemas, codec, projections: Vec::new(), routes, refusals: &[], messages, beside: None }
    }

    /// A read model that is fed from the context's events.
    #[must_use]
    pub fn projection(mut self, projection: impl Projection<Event = Event<C>>) -> Self {
        self.projections.push(Arc::new(projection));
        self
    }

    /// As [`Context::projection`], for several.
    #[must_use]
    pub fn projections(mut self, projections: impl IntoIterator<Item = Arc<dyn Projection<Event = Event<C>>>>) -> Self {
        self.projections.extend(projections);
        self
    }

    /// Its HTTP routes, documented.
    #[must_use]
    pub fn routes(self, routes: fn() -> OpenApiRouter<Arc<Api>>) -> Self {
        Self { routes, ..self }
    }

    /// The codes that its aggregate refuses commands with, for the pages of problem types.
    #[must_use]
    pub fn refusals(self, refusals: &'static [Kind]) -> Self {
        Self { refusals, ..self }
    }

    /// A loop that runs beside its processor: for what a decision must not do, such as asking somebody outside.
    #[must_use]
    pub fn beside(self, beside: Beside<C>) -> Self {
        Self { beside: Some(beside), ..self }
    }

    /// What its JSON topics hold.
    #[must_use]
    pub fn messages(self, messages: fn() -> Messages) -> Self {
        Self { messages, ..self }
    }
}

impl<P: PlainContext> Context<Plain<P>> {
    /// A context of plain types, with what follows from these.
    pub fn of(_: P) -> Self {
        Self::new(P::SCHEMAS, Plain::codec).messages(|| Messages {
            stream: P::STREAM_ID_FIELD.trim_end_matches("Id"),
            commands: Plain::<P>::command_shapes(),
            result: Plain::<P>::outcome_shape(),
        })
    }
}

/// What an application asks of any of its contexts; implemented once, for each by its type.
pub trait Hosted: Send + Sync {
    /// Prefix of its topics and groups.
    fn name(&self) -> &'static str;
    /// Of its events' types.
    fn namespace(&self) -> &'static str;
    /// What its JSON calls the id of a stream.
    fn stream_id_field(&self) -> &'static str;
    /// What it ever published.
    fn schemas(&self) -> &Schemas;
    /// What its projections build.
    fn read_models(&self) -> Vec<ReadModel>;
    /// Its HTTP routes.
    fn routes(&self) -> OpenApiRouter<Arc<Api>>;
    /// Its refusal codes.
    fn refusals(&self) -> &'static [Kind];
    /// What its JSON topics hold.
    fn messages(&self) -> Messages;
    /// Whether a value is a command of the context, for the examples in documents.
    ///
    /// # Errors
    /// Why not.
    fn parse_command(&self, value: &[u8]) -> Result<(), String>;
    /// The context with its codec.
    ///
    /// # Errors
    /// The codec does not fit its own schemas.
    fn open(&self, ids: &SchemaIds) -> anyhow::Result<Arc<dyn Opened>>;
}

impl dyn Hosted + '_ {
    /// Its topics and groups under these settings.
    pub fn names(&self, settings: &TopicSettings) -> TopicNames {
        TopicNames::new(self.name(), settings)
    }

    /// What an audit holds of it.
    pub fn audited(&self, settings: &TopicSettings) -> audit::Subject {
        audit::Subject {
            context: self.name(),
            namespace: self.namespace(),
            stream_id_field: self.stream_id_field(),
            names: self.names(settings),
        }
    }

    /// Its schemas; their subjects begin with the name of its events topic, the prefix included.
    ///
    /// # Errors
    /// The schema files are at fault.
    pub fn catalogue(&self, settings: &TopicSettings) -> Result<Catalogue, CatalogueError> {
        Catalogue::new(&self.names(settings).events(), self.namespace(), self.schemas().published)
    }
}

/// A loop until the shutdown.
pub type Loop = BoxFuture<'static, anyhow::Result<()>>;

/// A context with its codec; implemented once, for each by its type.
pub trait Opened: Send + Sync {
    /// Handles its commands.
    fn processor(
        &self,
        settings: Arc<Settings>,
        wake: Arc<Notify>,
        health: Arc<Health>,
        shutdown: CancellationToken,
    ) -> Loop;
    /// Keeps the read model of that name, if it is one of the context's.
    fn projection(
        &self,
        name: &str,
        settings: Arc<Settings>,
        health: Arc<Health>,
        shutdown: CancellationToken,
    ) -> Option<Loop>;
    /// Its rules, for commands that were decided before.
    fn retrial(&self, settings: &Settings) -> Box<dyn Retrial>;
    /// All its projections, for commands on them.
    fn projectors(&self, settings: &Arc<Settings>) -> Vec<Box<dyn AnyProjector>>;
    /// Its codec, for whoever knows its type.
    fn codec(&self) -> Arc<dyn Any + Send + Sync>;
    /// The public JSON of a stored event, in its newest shape.
    fn describe(&self, payload: &[u8]) -> Result<Value, UndecodableEvent>;
    /// A stored event in the newest version.
    fn renew(&self, payload: &[u8]) -> Result<Encoded, UndecodableEvent>;
    /// A stream before its first event.
    fn fold(&self) -> Box<dyn Fold>;
}

/// The state of one stream, event by event; implemented once, for each context by its type.
pub trait Fold: Send {
    /// The next event and the state after it, as public JSON.
    fn evolve(&mut self, payload: &[u8]) -> Result<Value, UndecodableEvent>;
    /// The state, as public JSON.
    fn state(&self) -> Value;
}

impl<C: BoundedContext> Hosted for Context<C> {
    fn name(&self) -> &'static str {
        C::NAME
    }

    fn namespace(&self) -> &'static str {
        C::NAMESPACE
    }

    fn stream_id_field(&self) -> &'static str {
        C::STREAM_ID_FIELD
    }

    fn schemas(&self) -> &Schemas {
        &self.schemas
    }

    fn read_models(&self) -> Vec<ReadModel> {
        self.projections.iter().map(|projection| projection.read_model()).collect()
    }

    fn routes(&self) -> OpenApiRouter<Arc<Api>> {
        (self.routes)()
    }

    fn refusals(&self) -> &'static [Kind] {
        self.refusals
    }

    fn messages(&self) -> Messages {
        (self.messages)()
    }

    fn parse_command(&self, value: &[u8]) -> Result<(), String> {
        C::parse_command(value, uuid::Uuid::nil()).map(drop).map_err(|invalid| invalid.reason)
    }

    fn open(&self, ids: &SchemaIds) -> anyhow::Result<Arc<dyn Opened>> {
        let codec = Arc::new((self.codec)(ids)?);
        Ok(Arc::new(Open::<C> { codec, projections: self.projections.clone(), beside: self.beside }))
    }
}

struct Open<C: BoundedContext> {
    codec: Arc<C::Codec>,
    beside: Option<Beside<C>>,
    projections: Vec<Arc<dyn Projection<Event = Event<C>>>>,
}

impl<C: BoundedContext> Opened for Open<C> {
    fn processor(
        &self,
        settings: Arc<Settings>,
        wake: Arc<Notify>,
        health: Arc<Health>,
        shutdown: CancellationToken,
    ) -> Loop {
        let codec = self.codec.clone();
        let beside = self.beside.map(|run| run(settings.clone(), codec.clone(), health.clone(), shutdown.clone()));
        Box::pin(async move {
            let processor = async { anyhow::Ok(processor::run::<C>(settings, codec, wake, health, shutdown).await?) };
            match beside {
                Some(beside) => futures_util::try_join!(processor, beside).map(drop),
                None => processor.await,
            }
        })
    }

    fn projection(
        &self,
        name: &str,
        settings: Arc<Settings>,
        health: Arc<Health>,
        shutdown: CancellationToken,
    ) -> Option<Loop> {
        let projection = self.projections.iter().find(|one| one.read_model().name == name)?.clone();
        let (names, codec) = (TopicNames::new(C::NAME, &settings.topics), self.codec.clone());
        Some(Box::pin(async move { Ok(projection::run(settings, names, projection, codec, health, shutdown).await?) }))
    }

    fn retrial(&self, settings: &Settings) -> Box<dyn Retrial> {
        processor::retrial::<C>(settings, self.codec.clone())
    }

    fn projectors(&self, settings: &Arc<Settings>) -> Vec<Box<dyn AnyProjector>> {
        let names = TopicNames::new(C::NAME, &settings.topics);
        let one = |projection: &Arc<_>| -> Box<dyn AnyProjector> {
            Box::new(Projector::new(settings.clone(), &names, Arc::clone(projection), self.codec.clone()))
        };
        self.projections.iter().map(one).collect()
    }

    fn codec(&self) -> Arc<dyn Any + Send + Sync> {
        self.codec.clone()
    }

    fn describe(&self, payload: &[u8]) -> Result<Value, UndecodableEvent> {
        self.codec.decode(payload).map(|event| C::describe_event(&event))
    }

    fn renew(&self, payload: &[u8]) -> Result<Encoded, UndecodableEvent> {
        self.codec.decode(payload).and_then(|event| self.codec.encode(&event))
    }

    fn fold(&self) -> Box<dyn Fold> {
        Box::new(Stream::<C> { codec: self.codec.clone(), state: C::Aggregate::default() })
    }
}

struct Stream<C: BoundedContext> {
    codec: Arc<C::Codec>,
    state: C::Aggregate,
}

impl<C: BoundedContext> Fold for Stream<C> {
    fn evolve(&mut self, payload: &[u8]) -> Result<Value, UndecodableEvent> {
        let event = self.codec.decode(payload)?;
        self.state.evolve(&event);
        Ok(C::describe_event(&event))
    }

    fn state(&self) -> Value {
        C::describe_state(&self.state)
    }
}
