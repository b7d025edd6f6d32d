//! Clients that find back to Kafka: whatever lives as long as its loop is tended.
//!
//! librdkafka forgets the brokers that an answer about topics does not list. Where that lists none at all (a lone
//! broker that was frozen and is fenced, a rolling upgrade) it forgets all of them, and asks nobody ever again
//! (confluentinc/librdkafka#5301). A client that reaches nobody while a new one is answered is given its bootstrap
//! servers again. Knows neither what a client is for nor who owns it.

use std::ffi::CString;
use std::ops::Deref;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{Consumer, ConsumerContext};
use rdkafka::producer::{Producer, ProducerContext};
use rdkafka::types::RDKafka;
use rdkafka::{ClientConfig, ClientContext, bindings as sys};

use super::{KafkaError, client};
use crate::settings::KafkaSettings;

/// Between two looks at all clients of this process.
const TEND_EVERY: Duration = Duration::from_secs(5);
/// A client answers this question within, or it reaches nobody. One that is dropped meanwhile waits as long.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// The clients of this process.
static PLACES: Mutex<Vec<Arc<Place>>> = Mutex::new(Vec::new());

/// A client that is tended for as long as it lives.
pub struct Tended<T> {
    // Given up before the client is: fields are dropped in this order.
    #[cfg_attr(not(test), expect(dead_code, reason = "it is dropped"))]
    registration: Registration,
    client: T,
}

impl<T> Tended<T> {
    /// Makes a consumer.
    ///
    /// # Errors
    /// Options that the client refuses.
    pub fn consumer<C, Context>(config: &ClientConfig, context: C) -> Result<Self, KafkaError>
    where
        C: ClientContext,
        Context: ConsumerContext,
        T: Consumer<Context> + FromClientConfigAndContext<C>,
    {
        let client: T = made(config, context)?;
        Ok(Self { registration: Registration::of(client.client().native_ptr(), config), client })
    }

    /// Makes a producer.
    ///
    /// # Errors
    /// Options that the client refuses.
    pub fn producer<C, Context>(config: &ClientConfig, context: C) -> Result<Self, KafkaError>
    where
        C: ClientContext,
        Context: ProducerContext,
        T: Producer<Context> + FromClientConfigAndContext<C>,
    {
        let client: T = made(config, context)?;
        Ok(Self { registration: Registration::of(client.client().native_ptr(), config), client })
    }
}

fn made<C: ClientContext, T: FromClientConfigAndContext<C>>(
    config: &ClientConfig,
    context: C,
) -> Result<T, KafkaError> {
    config.create_with_context(context).map_err(|error| KafkaError::Settings(error.to_string()))
}

impl<T> Deref for Tended<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.client
    }
}

/// Tends every client of this process, until it is dropped.
pub async fn run(settings: KafkaSettings) {
    loop {
        tokio::time::sleep(TEND_EVERY).await;
        let settings = settings.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || tend(&settings)).await {
            tracing::error!(%error, "tending clients ended badly");
        }
    }
}

/// Asks every client of this process whether it reaches a broker, and helps those that do not although a new one
/// does. Blocks for twice [`ANSWER_WAIT`] a client that is lost; where Kafka is away, the first one tells for all.
fn tend(settings: &KafkaSettings) {
    let places = lock(&PLACES).clone();
    let mut is_there = None;
    for place in places.iter().filter(|place| !place.reaches_somebody()) {
        if !*is_there.get_or_insert_with(|| client::check(settings).is_ok()) {
            return;
        }
        // The new client took a while: whoever found back meanwhile needs no help.
        if !place.reaches_somebody() {
            place.bootstrap();
            metrics::counter!("throughline_kafka_bootstraps_total").increment(1);
            tracing::warn!("a Kafka client had forgotten every broker; it is given the bootstrap servers again");
        }
    }
}

/// A client's entry; empty once the client is about to end.
struct Place {
    client: Mutex<Option<Handle>>,
    servers: CString,
}

struct Handle(ptr::NonNull<RDKafka>);

// SAFETY: librdkafka's handles may be used by any thread.
unsafe impl Send for Handle {}

impl Place {
    /// Whether a broker answers this client; one that ended needs none.
    fn reaches_somebody(&self) -> bool {
        let handle = lock(&self.client);
        let Some(Handle(client)) = &*handle else { return true };
        let mut metadata = ptr::null();
        let wait_ms = ANSWER_WAIT.as_millis() as i32;
        // SAFETY: the client lives while its entry is locked and not empty. What is answered is freed once.
        unsafe {
            let code = sys::rd_kafka_metadata(client.as_ptr(), 0, ptr::null_mut(), &raw mut metadata, wait_ms);
            if !metadata.is_null() {
                sys::rd_kafka_metadata_destroy(metadata);
            }
            code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
        }
    }

    fn bootstrap(&self) {
        if let Some(Handle(client)) = &*lock(&self.client) {
            // SAFETY: as above; the text is copied.
            unsafe { sys::rd_kafka_brokers_add(client.as_ptr(), self.servers.as_ptr()) };
        }
    }
}

struct Registration(Arc<Place>);

impl Registration {
    fn of(client: *mut RDKafka, config: &ClientConfig) -> Self {
        // A text with a NUL made no client.
        let servers = CString::new(config.get("bootstrap.servers").unwrap_or_default()).unwrap_or_default();
        let place = Arc::new(Place { client: Mutex::new(ptr::NonNull::new(client).map(Handle)), servers });
        lock(&PLACES).push(place.clone());
        Self(place)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&PLACES).retain(|place| !Arc::ptr_eq(place, &self.0));
        *lock(&self.0.client) = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::kafka::client::Inquirer;

    /// Long: the client allots its memory by the length of an answer, and has too little for the shortest.
    const TOPIC: &str = "a-topic-of-a-broker-that-answers-questions-about-topics-and-nothing-else-whoever-asks-for-it";

    /// A broker that answers questions about topics and nothing else: itself and one topic; once `fenced`, no
    /// broker and one topic.
    struct Broker {
        address: String,
        fenced: Arc<AtomicBool>,
    }

    impl Broker {
        fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let fenced = Arc::new(AtomicBool::new(false));
            let says = fenced.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let says = says.clone();
                    std::thread::spawn(move || answer(stream.unwrap(), port, &says));
                }
            });
            Self { address: format!("127.0.0.1:{port}"), fenced }
        }

        fn settings(&self) -> KafkaSettings {
            let mut settings = KafkaSettings { brokers: self.address.clone(), ..KafkaSettings::default() };
            for (name, value) in [("api.version.request", "false"), ("broker.version.fallback", "0.8.2.0")] {
                settings.librdkafka.insert(name.into(), value.into());
            }
            settings
        }
    }

    /// Metadata of version 0, as the protocol's guide has it, whatever is asked.
    fn answer(mut stream: TcpStream, port: u16, fenced: &AtomicBool) -> Option<()> {
        let text = |text: &str| [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat();
        loop {
            let mut length = [0; 4];
            stream.read_exact(&mut length).ok()?;
            let mut request = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut request).ok()?;
            assert_eq!(request[..4], [0, 3, 0, 0], "a question about topics, of version 0");
            let broker = [&1i32.to_be_bytes()[..], &text("127.0.0.1"), &i32::from(port).to_be_bytes()].concat();
            let (brokers, topics) = match fenced.load(Ordering::SeqCst) {
                // The client forgets its brokers for good where one notices before the answer is read to its end.
                true => (0i32.to_be_bytes().to_vec(), 5_000i32),
                false => ([&1i32.to_be_bytes()[..], &broker].concat(), 1),
            };
            let topic = [&5u16.to_be_bytes()[..], &text(TOPIC), &0i32.to_be_bytes()].concat();
            let all = topic.repeat(topics as usize);
            let body = [&request[4..8], &brokers, &topics.to_be_bytes(), &all].concat();
            stream.write_all(&[&(body.len() as u32).to_be_bytes(), &body[..]].concat()).ok()?;
        }
    }

    fn asks(inquirer: &Inquirer, wait: u64) -> bool {
        inquirer.fetch_metadata(Some(TOPIC), Duration::from_secs(wait)).is_ok()
    }

    /// A client that was told of no broker, once; none where it found back.
    fn lost(broker: &Broker) -> Option<Inquirer> {
        let inquirer = client::inquirer(&broker.settings()).unwrap();
        assert!(asks(&inquirer, 10));
        broker.fenced.store(true, Ordering::SeqCst);
        // Whatever it makes of the answer; it forgets in threads of its own.
        asks(&inquirer, 10);
        std::thread::sleep(Duration::from_secs(1));
        broker.fenced.store(false, Ordering::SeqCst);
        (!asks(&inquirer, 5)).then_some(inquirer)
    }

    #[test]
    fn a_client_that_forgot_every_broker_finds_back_by_the_bootstrap_servers() {
        let broker = Broker::start();
        let inquirer = (0..20).find_map(|_| lost(&broker));
        let inquirer = inquirer.expect("it is mended in the client: nobody has to be tended any more");
        assert!(!asks(&inquirer, 5), "it does not find back by itself");
        tend(&broker.settings());
        assert!(asks(&inquirer, 10));
    }

    #[test]
    fn who_is_well_or_ends_needs_nothing_and_who_waits_for_a_broker_is_known() {
        let broker = Broker::start();
        let well = client::inquirer(&broker.settings()).unwrap();
        assert!(asks(&well, 10) && well.registration.0.reaches_somebody());
        let away = KafkaSettings { brokers: "127.0.0.1:1".into(), ..broker.settings() };
        let waits = client::inquirer(&away).unwrap();
        let place = waits.registration.0.clone();
        assert!(!place.reaches_somebody());
        drop(waits);
        assert!(place.reaches_somebody());
        place.bootstrap();
    }
}
