//! From a URL to a session: every address that it names, one after the other, each within bounds.
//!
//! The driver tries hosts in turn too, but only the connect of a socket has a limit there: a server that accepts
//! and never answers would eat the wait of the next one. So each address is an attempt of its own here, handshake
//! included, and an error tells what each of them said. Knows no loop and no pool.

use std::sync::Arc;
use std::time::Duration;

use rand::seq::SliceRandom as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode};
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{StoreError, describe};
use crate::settings::DatabaseSettings;

/// A connection that hears nothing asks after this long, this often and so many times, unless the URL says
/// otherwise. The driver's own default is two hours.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(5), Duration::from_secs(2), 3);
const DRIVERS_KEEPALIVE: Duration = Duration::from_secs(2 * 60 * 60);
/// What was sent and is not acknowledged by then has met a silent network, unless the URL says otherwise.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// One address: what the driver is given, and its name for people.
struct Address {
    config: Config,
    name: String,
}

/// Why one address gave no session.
struct Refusal {
    reason: String,
    code: Option<String>,
}

/// Opens sessions on whichever address of a URL gives one.
pub(super) struct Dialer {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    /// Of one address, where others are left.
    attempt: Duration,
    /// The URL limits each address, the last one too.
    strict: bool,
    target: String,
}

impl Dialer {
    /// # Errors
    /// The URL or the TLS material cannot be used.
    pub fn new(settings: &DatabaseSettings) -> Result<Self, StoreError> {
        let mut config = parse(settings)?;
        config.application_name("throughline");
        if config.get_keepalives() && config.get_keepalives_idle() == DRIVERS_KEEPALIVE {
            config.keepalives_idle(KEEPALIVE.0);
        }
        if config.get_keepalives_interval().is_none() {
            config.keepalives_interval(KEEPALIVE.1);
        }
        if config.get_keepalives_retries().is_none() {
            config.keepalives_retries(KEEPALIVE.2);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(UNACKNOWLEDGED);
        }
        let asked = config.get_connect_timeout().copied();
        Ok(Self {
            tls: tls(settings, &config)?,
            attempt: asked.unwrap_or(Duration::from_millis(settings.connect_timeout_ms)),
            strict: asked.is_some(),
            target: target(&config),
            config,
        })
    }

    /// `host:port/database`, for messages.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// A session on the first address that gives one, after `setup`; within `wait` all in all.
    pub async fn session(&self, setup: &str, wait: Duration) -> Result<(Client, JoinHandle<()>), StoreError> {
        let deadline = Instant::now() + wait;
        let (client, connection) = self.dial(deadline).await?;
        let refused = match tokio::time::timeout_at(deadline, client.batch_execute(setup)).await {
            Ok(Ok(())) => return Ok((client, connection)),
            Ok(Err(error)) => Refusal::of(&error),
            Err(_) => Refusal { reason: "no answer in time".into(), code: None },
        };
        let reason = format!("its session cannot be set up: {}", refused.reason);
        Err(self.failed(reason, refused.code.as_deref()))
    }

    async fn dial(&self, deadline: Instant) -> Result<(Client, JoinHandle<()>), StoreError> {
        let mut hosts = self.hosts();
        let random = self.config.get_load_balance_hosts() == LoadBalanceHosts::Random;
        if random {
            hosts.shuffle(&mut rand::rng());
        }
        let mut refusals: Vec<(String, Refusal)> = Vec::new();
        let hosts_count = hosts.len();
        for (nth, host) in hosts.into_iter().enumerate() {
            let until = self.until(deadline, hosts_count - nth);
            let name = host.name.clone();
            let mut addresses = match tokio::time::timeout_at(until, host.resolve()).await {
                Ok(Ok(addresses)) => addresses,
                Ok(Err(error)) => {
                    refusals.push((name, Refusal { reason: error.to_string(), code: None }));
                    continue;
                }
                Err(_) => {
                    refusals.push((name, Refusal { reason: "its name is not resolved in time".into(), code: None }));
                    continue;
                }
            };
            if random {
                addresses.shuffle(&mut rand::rng());
            }
            let addresses_count = addresses.len();
            for (at, address) in addresses.into_iter().enumerate() {
                let left = (hosts_count - nth - 1) + (addresses_count - at);
                match self.attempt(&address.config, self.until(deadline, left)).await {
                    Ok(session) => return Ok(session),
                    Err(refusal) => refusals.push((address.name, refusal)),
                }
            }
        }
        let code = refusals.iter().find_map(|(_, refusal)| refusal.code.clone());
        let reason = match refusals.as_slice() {
            [(_, only)] => only.reason.clone(),
            several => {
                let each: Vec<_> =
                    several.iter().map(|(name, refusal)| format!("{name}: {}", refusal.reason)).collect();
                each.join("; ")
            }
        };
        Err(self.failed(reason, code.as_deref()))
    }

    /// When an attempt ends that has `left` addresses to come, itself included: each gets its share.
    fn until(&self, deadline: Instant, left: usize) -> Instant {
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / u32::try_from(left.max(1)).unwrap_or(u32::MAX);
        if left > 1 || self.strict { now + share.min(self.attempt) } else { deadline }
    }

    async fn attempt(&self, config: &Config, until: Instant) -> Result<(Client, JoinHandle<()>), Refusal> {
        let opened = tokio::time::timeout_at(until, async {
            match &self.tls {
                Some(tls) => {
                    let (client, connection) = config.connect(tls.clone()).await?;
                    Ok((client, tokio::spawn(told(connection))))
                }
                None => {
                    let (client, connection) = config.connect(NoTls).await?;
                    Ok((client, tokio::spawn(told(connection))))
                }
            }
        });
        match opened.await {
            Ok(opened) => opened.map_err(|error: tokio_postgres::Error| Refusal::of(&error)),
            Err(_) => Err(Refusal { reason: "no answer in time".into(), code: None }),
        }
    }

    /// Each host of the URL by itself, in its order.
    fn hosts(&self) -> Vec<Address> {
        let config = &self.config;
        let count = config.get_hosts().len().max(config.get_hostaddrs().len());
        (0..count)
            .map(|index| {
                let mut one = bare(config);
                let port = config.get_ports().get(index).or(config.get_ports().first()).copied().unwrap_or(5432);
                one.port(port);
                let addr = config.get_hostaddrs().get(index);
                let mut name = addr.map(ToString::to_string);
                match config.get_hosts().get(index) {
                    Some(Host::Tcp(host)) => {
                        one.host(host);
                        name = Some(host.clone());
                    }
                    #[cfg(unix)]
                    Some(Host::Unix(path)) => {
                        one.host_path(path);
                        name = Some(path.display().to_string());
                    }
                    None => {}
                }
                if let Some(addr) = addr {
                    one.hostaddr(*addr);
                }
                Address { config: one, name: format!("{}:{port}", name.unwrap_or_default()) }
            })
            .collect()
    }

    fn failed(&self, reason: String, code: Option<&str>) -> StoreError {
        let next_step = match code {
            Some("28P01" | "28000") => "Check user and password in DATABASE_URL.",
            Some("3D000") => "Create the database, then run `throughline db apply`.",
            Some("22023" | "42704") => "The loop's role is missing: run `throughline db apply`.",
            Some("42501") => "The user may not take the loop's role: run `throughline db apply` as the owner.",
            _ => "Check DATABASE_URL, or start one with `throughline dev up --detach`.",
        };
        StoreError::Connect { target: self.target.clone(), reason, next_step }
    }
}

impl Address {
    /// Every address behind the host's name, each an attempt of its own.
    async fn resolve(self) -> std::io::Result<Vec<Self>> {
        let [Host::Tcp(host)] = self.config.get_hosts() else { return Ok(vec![self]) };
        if !self.config.get_hostaddrs().is_empty() {
            return Ok(vec![self]);
        }
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        let found: Vec<_> = tokio::net::lookup_host((host.as_str(), port)).await?.collect();
        let several = found.len() > 1;
        Ok(found
            .into_iter()
            .map(|address| {
                let mut config = self.config.clone();
                config.hostaddr(address.ip());
                let name = if several { format!("{} ({})", self.name, address.ip()) } else { self.name.clone() };
                Self { config, name }
            })
            .collect())
    }
}

impl Refusal {
    fn of(error: &tokio_postgres::Error) -> Self {
        Self { reason: describe(error), code: error.code().map(|code| code.code().to_owned()) }
    }
}

/// Whoever uses the session is told of its end by each call; people who look for why find it here.
async fn told(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    if let Err(error) = connection.await {
        tracing::debug!(reason = describe(&error), "a database connection ended");
    }
}

/// All of a configuration but its hosts.
fn bare(config: &Config) -> Config {
    let mut one = Config::new();
    one.ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .channel_binding(config.get_channel_binding())
        .target_session_attrs(config.get_target_session_attrs())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle());
    config.get_user().map(|user| one.user(user));
    config.get_password().map(|password| one.password(password));
    config.get_dbname().map(|name| one.dbname(name));
    config.get_options().map(|options| one.options(options));
    config.get_application_name().map(|name| one.application_name(name));
    config.get_connect_timeout().map(|timeout| one.connect_timeout(*timeout));
    config.get_tcp_user_timeout().map(|timeout| one.tcp_user_timeout(*timeout));
    config.get_keepalives_interval().map(|interval| one.keepalives_interval(interval));
    config.get_keepalives_retries().map(|retries| one.keepalives_retries(retries));
    one
}

fn parse(settings: &DatabaseSettings) -> Result<Config, StoreError> {
    if settings.url.is_empty() {
        return Err(StoreError::Settings(
            "no database is configured: set DATABASE_URL=postgres://user:password@host:port/name, \
             or run `throughline dev up --detach` and `eval \"$(throughline dev env)\"`"
                .into(),
        ));
    }
    let config: Config = settings.url.expose().parse().map_err(|_| {
        StoreError::Settings("DATABASE_URL is not of the form postgres://user:password@host:port/name".into())
    })?;
    let (hosts, addresses, ports) = (config.get_hosts().len(), config.get_hostaddrs().len(), config.get_ports().len());
    let several = hosts.max(addresses);
    let uneven = hosts > 0 && addresses > 0 && hosts != addresses || ports > 1 && ports != several;
    if several == 0 || uneven {
        let found = format!("{hosts} host(s), {addresses} address(es) and {ports} port(s)");
        return Err(StoreError::Settings(format!("DATABASE_URL names {found}: it needs a host, and a port for each")));
    }
    Ok(config)
}

fn target(config: &Config) -> String {
    let port = |index: usize| config.get_ports().get(index).or(config.get_ports().first()).copied().unwrap_or(5432);
    let named = config.get_hosts().iter().enumerate().map(|(index, host)| match host {
        Host::Tcp(host) => format!("{host}:{}", port(index)),
        #[cfg(unix)]
        Host::Unix(path) => format!("{}:{}", path.display(), port(index)),
    });
    let mut hosts: Vec<String> = named.collect();
    if hosts.is_empty() {
        let numbered = config.get_hostaddrs().iter().enumerate();
        hosts = numbered.map(|(index, address)| format!("{address}:{}", port(index))).collect();
    }
    format!("{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default())
}

/// TLS unless the URL says `sslmode=disable`, or names no mode and no authority is configured.
fn tls(settings: &DatabaseSettings, config: &Config) -> Result<Option<MakeRustlsConnect>, StoreError> {
    let Some(path) = &settings.ca_file else {
        return match config.get_ssl_mode() {
            SslMode::Require => Err(StoreError::Settings(
                "sslmode=require needs database.ca_file, a PEM file with the authorities to trust".into(),
            )),
            _ => Ok(None),
        };
    };
    let at_fault = |error: &dyn std::fmt::Display| StoreError::Settings(format!("{}: {error}", path.display()));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| at_fault(&error))? {
        roots.add(certificate.map_err(|error| at_fault(&error))?).map_err(|error| at_fault(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::Settings(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Some(MakeRustlsConnect::new(client)))
}
