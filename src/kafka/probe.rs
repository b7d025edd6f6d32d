//! Whether Kafka answers this process: asked every second, on a client of its own, for all its loops. Tends their
//! clients on the way.
//!
//! The loops' own clients try again in silence for as long as it takes, so none of them would tell. A broker that
//! is frozen, or all that refuse, are noticed within seconds here; one of several is not: the others answer.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{KafkaError, client, tended, voice};
use crate::health::{Heartbeat, Told};
use crate::settings::KafkaSettings;

/// Between two questions.
const EVERY: Duration = Duration::from_secs(1);
/// An answer takes this long, at most.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Asks for the metadata of `topic` until `shutdown`, and tells `heartbeat` whether somebody answers.
///
/// # Errors
/// Settings that no client takes.
pub async fn run(
    settings: KafkaSettings,
    topic: String,
    heartbeat: Heartbeat,
    shutdown: CancellationToken,
) -> Result<(), KafkaError> {
    let kafka = Arc::new(client::inquirer(&settings)?);
    let told = Told::new("Kafka does not answer");
    // Nobody waits for it at the end: where Kafka is away it may take a while.
    let _tending = AbortOnDropHandle::new(tokio::spawn(tended::run(settings.clone())));
    loop {
        let (asked, name) = (kafka.clone(), topic.clone());
        let answer = tokio::task::spawn_blocking(move || asked.fetch_metadata(Some(&name), ANSWER_WAIT).map(drop));
        match answer.await {
            Ok(Ok(())) => {
                told.well();
                voice::settle();
                heartbeat.ready();
            }
            Ok(Err(error)) => {
                let away = KafkaError::Connect { brokers: settings.brokers.clone(), reason: error.to_string() };
                told.failed(&away.to_string());
                heartbeat.not_ready(away.to_string());
            }
            Err(error) => heartbeat.not_ready(format!("the look at Kafka ended badly: {error}")),
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
            return Ok(());
        }
    }
}
