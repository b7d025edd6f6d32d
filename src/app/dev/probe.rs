//! Does it answer? One real request to each service. Not how clients of the loops connect: no pools,
//! no roles.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};

/// A metadata request, answered by at least one broker within `bound`.
pub(super) fn kafka_answers(
    brokers: &str,
    options: impl IntoIterator<Item = (String, String)>,
    bound: Duration,
) -> Result<(), String> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "200")
        .set_log_level(RDKafkaLogLevel::Emerg);
    config.extend(options);
    let client: BaseConsumer = config.create().map_err(|error| error.to_string())?;
    let metadata = client.fetch_metadata(None, bound).map_err(|error| error.to_string())?;
    if metadata.brokers().is_empty() { Err("no broker is registered".into()) } else { Ok(()) }
}

/// `select 1`, answered within `bound`; with `statement` instead where one is given.
pub(super) fn postgres_answers(url: &str, statement: &str, bound: Duration) -> Result<(), String> {
    let url = url.to_owned();
    let statement = statement.to_owned();
    // A thread of its own: callers may already be inside a runtime, where blocking on another panics.
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| error.to_string())?.block_on(async {
            tokio::time::timeout(bound, ask(&url, &statement)).await.map_err(|_| "no answer in time".to_owned())?
        })
    });
    thread.join().unwrap_or_else(|_| Err("the probe ended".into()))
}

async fn ask(url: &str, statement: &str) -> Result<(), String> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.map_err(explain)?;
    let driver = tokio::spawn(connection);
    let answer = client.simple_query(statement).await.map_err(explain);
    driver.abort();
    answer.map(drop)
}

fn explain(error: tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} ({})", error.message(), error.code().code()),
        None => match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

/// A port that is free now: `wanted` if it is, else another. The service may still find it taken;
/// then its starter asks again. Taken from below the ephemeral range, so that no outgoing connection
/// (not even a client's to the very port while the service is down) can hold it.
pub(super) fn free_port(wanted: u16, taken: &[u16]) -> u16 {
    let usable =
        |port: u16| port != 0 && !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    if usable(wanted) {
        return wanted;
    }
    let first_ephemeral = first_ephemeral_port();
    if first_ephemeral >= 20_000 {
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            let port = rand::random_range(first_ephemeral - 12_000..first_ephemeral);
            if usable(port) {
                return port;
            }
        }
    }
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_or(wanted, |address| address.port())
}

fn first_ephemeral_port() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wanted_port_is_kept_only_while_it_is_free() {
        let port = free_port(0, &[]);
        assert_eq!(free_port(port, &[]), port);
        assert_ne!(free_port(port, &[port]), port);
        let _holder = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert_ne!(free_port(port, &[]), port);
    }

    #[test]
    fn nobody_there_is_said_soon() {
        let port = free_port(0, &[]);
        let started = Instant::now();
        assert!(kafka_answers(&format!("127.0.0.1:{port}"), [], Duration::from_millis(500)).is_err());
        let url = format!("postgres://nobody:secret@127.0.0.1:{port}/none");
        let error = postgres_answers(&url, "select 1", Duration::from_millis(500)).unwrap_err();
        assert!(!error.contains("secret"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
