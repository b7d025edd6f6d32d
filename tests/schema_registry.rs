//! Schema ids and the registry API against a real PostgreSQL: concurrent registration, edited and
//! unknown schemas, and the shapes and error codes that stock Confluent clients expect.

use std::sync::atomic::{AtomicU32, Ordering};

use reference::orders::OrdersCodec;
use reference::orders::schemas;
use serde_json::{Value, json};
use throughline::app::dev::Services;
use throughline::app::install;
use throughline::avro::ids::{check_store, load, register};
use throughline::avro::{
    Catalogue, ExternalRegistry, ExternalRegistryError, Published, SchemaIdsError, Upcasters, registry_routes,
};
use throughline::settings::{DatabaseSettings, LoadedSettings, Settings};
use throughline::store::{Database, DatabaseRole, connect, destinations, migrate};
use tokio_postgres::Client;

/// A migrated database of its own, dropped at the end of the scenario.
struct OwnDatabase {
    name: String,
    administration: Client,
    settings: DatabaseSettings,
    _services: Services,
}

impl OwnDatabase {
    async fn create() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let settings = LoadedSettings::load(None, &[]).expect("settings").settings;
        let services = Services::open(&settings).await.expect("services");
        let name = format!("registry_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let at = |url: &str| DatabaseSettings {
            url: serde_json::from_value(json!(url)).expect("a secret is a string"),
            ..DatabaseSettings::default()
        };
        let base = &services.database_url;
        let administration = connect::connect(&at(base), &DatabaseRole::Owner).await.expect("connect");
        administration.batch_execute(&format!("create database {name}")).await.expect("create a database");
        let (server, _) = base.rsplit_once('/').expect("the URL names a database");
        let settings = at(&format!("{server}/{name}"));
        let database = Self { name, administration, settings, _services: services };
        migrate::apply(&mut database.connect().await).await.expect("migrate");
        database
    }

    async fn connect(&self) -> Client {
        connect::connect(&self.settings, &DatabaseRole::Owner).await.expect("connect")
    }

    async fn remove(self) {
        let drop = format!("drop database {} with (force)", self.name);
        self.administration.batch_execute(&drop).await.expect("drop the database");
    }
}

/// The catalogue with one more version of OrderShipped, or with an edited first one.
fn changed(edit: bool) -> Catalogue {
    let newest = schemas::PUBLISHED.iter().find(|one| one.event_type == "OrderShipped" && one.version == 2).unwrap();
    let next = newest.definition.replacen(
        "\"fields\": [",
        "\"fields\": [{\"name\": \"parcels\", \"type\": \"int\", \"default\": 1},",
        1,
    );
    let mut published: Vec<Published<'_>> = schemas::PUBLISHED.to_vec();
    if edit {
        published.retain(|one| !(one.event_type == "OrderShipped" && one.version == 2));
        published.push(Published { definition: &next, ..*newest });
    } else {
        published.push(Published { version: 3, definition: &next, ..*newest });
    }
    Catalogue::new(schemas::EVENTS_TOPIC, schemas::NAMESPACE, &published).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_are_given_once_however_many_register() {
    let database = OwnDatabase::create().await;
    let catalogue = schemas::catalogue().unwrap();
    let first = database.connect().await;
    let unregistered = load(&first, &catalogue).await.unwrap_err();
    assert!(matches!(unregistered, SchemaIdsError::Unregistered { .. }), "{unregistered}");
    assert!(unregistered.to_string().contains("throughline db apply"));

    let clients = [first, database.connect().await, database.connect().await, database.connect().await];
    let all = futures_util::future::try_join_all(clients.iter().map(|client| register(client, &catalogue)));
    let all = all.await.unwrap();
    for one in catalogue.schemas() {
        let id = all[0].id_of(&one.event_type, one.version).unwrap();
        assert_eq!(all[0].version_of(id), Some((one.event_type.as_str(), one.version)));
        assert!(all.iter().all(|ids| ids.id_of(&one.event_type, one.version) == Some(id)));
    }
    let count = |row: tokio_postgres::Row| row.get::<_, i64>(0);
    let rows = count(clients[0].query_one("select count(*) from throughline.schemas", &[]).await.unwrap());
    assert_eq!(rows, catalogue.schemas().len() as i64);

    let edited = register(&clients[0], &changed(true)).await.unwrap_err();
    assert!(matches!(&edited, SchemaIdsError::Differs { version: 2, .. }), "{edited}");
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_with_events_of_a_newer_program_is_refused_by_type_version_and_count() {
    let database = OwnDatabase::create().await;
    let mut client = database.connect().await;
    register(&client, &changed(false)).await.unwrap();
    let catalogue = schemas::catalogue().unwrap();
    let ids = load(&client, &catalogue).await.unwrap();
    // Registered by a newer program, not used yet: an old reader may run.
    check_store(&client, &catalogue, &schemas::upcasters(), &ids).await.unwrap();
    destinations::register(&mut client, "orders-events", 1).await.unwrap();
    let insert = "
        with topic as (select id from throughline.topics where name = 'orders-events')
        insert into throughline.events (partition, topic, seq, stream_id, version, event_id, type, schema_version,
                                        command_id, correlation_id, recorded_at, payload)
        select 0, topic.id, seq, gen_random_uuid(), 1, gen_random_uuid(), 'OrderShipped', 1 + seq, gen_random_uuid(), '',
               now(), ''
        from topic, generate_series(0, 2) as seq";
    client.batch_execute(insert).await.unwrap();
    let refused = check_store(&client, &catalogue, &schemas::upcasters(), &ids).await.unwrap_err();
    assert!(refused.to_string().contains("OrderShipped version 3 (1 events)"), "{refused}");
    // A program that lost its upcasters is told as exactly, but only of versions that events have.
    let refused = check_store(&client, &catalogue, &Upcasters::default(), &ids).await.unwrap_err().to_string();
    assert!(!refused.contains("OrderPlaced") && refused.contains("OrderShipped version 1 (1 events)"), "{refused}");
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registry_answers_as_confluents() {
    let database = OwnDatabase::create().await;
    let catalogue = schemas::catalogue().unwrap();
    let ids = register(&database.connect().await, &catalogue).await.unwrap();
    let pool = Database::new(&database.settings, &DatabaseRole::Reader).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let routes = registry_routes(pool).layer(axum::extract::DefaultBodyLimit::max(10_000));
    // As the API's own router does, which answers in another shape.
    let routes = routes.fallback(async || "elsewhere").method_not_allowed_fallback(async || "elsewhere");
    let server = tokio::spawn(async move { axum::serve(listener, routes).await });

    // Or the test would pass only beside others that have.
    drop(rustls::crypto::ring::default_provider().install_default());
    let http = reqwest::Client::new();
    let get = async |path: &str| {
        let answer = http.get(format!("{base}{path}")).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/vnd.schemaregistry.v1+json", "{path}");
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let subject = "orders-events-throughline.orders.OrderPlaced";
    let definition = catalogue.schema("OrderPlaced", 2).unwrap().definition.as_str();
    let id = ids.id_of("OrderPlaced", 2).unwrap();

    let subjects = ["OrderCancelled", "OrderPlaced", "OrderShipped", "PaymentReceived"];
    let subjects: Vec<_> = subjects.iter().map(|one| catalogue.subject(one)).collect();
    assert_eq!(get("/subjects").await, (200, json!(subjects)));
    assert_eq!(get("/subjects?subjectPrefix=orders-events-throughline.orders.OrderP").await, (200, json!([subject])));
    assert_eq!(get("/subjects?subjectPrefix=:*:").await.1.as_array().unwrap().len(), 4);
    assert_eq!(get(&format!("/subjects/{subject}/versions")).await, (200, json!([1, 2, 3, 4])));
    let version = json!({"subject": subject, "version": 2, "id": id, "schema": definition});
    assert_eq!(get(&format!("/subjects/{subject}/versions/2")).await, (200, version.clone()));
    assert_eq!(get(&format!("/subjects/{subject}/versions/latest")).await.1["version"], 4);
    assert_eq!(get(&format!("/schemas/ids/{id}")).await, (200, json!({"schema": definition})));
    assert_eq!(get(&format!("/schemas/ids/{id}/versions")).await, (200, json!([{"subject": subject, "version": 2}])));
    assert_eq!(get(&format!("/schemas/ids/{id}/subjects")).await, (200, json!([subject])));
    assert_eq!(get(&format!("/schemas/ids/{id}/schema")).await.1["name"], "OrderPlaced");
    let config = json!({"compatibilityLevel": "BACKWARD_TRANSITIVE"});
    for path in ["/config", &format!("/config/{subject}"), "/config/nobody?defaultToGlobal=true"] {
        assert_eq!(get(path).await, (200, config.clone()), "{path}");
    }
    assert_eq!(get("/config/nobody").await.1["error_code"], 40401);
    assert_eq!(get("/mode").await, (200, json!({"mode": "READONLY"})));
    assert_eq!(get("/schemas/types").await, (200, json!(["AVRO"])));

    for (path, status, code) in [
        ("/subjects/none/versions".to_owned(), 404, 40401),
        ("/subjects/none/versions/1".to_owned(), 404, 40401),
        ("/subjects/none/versions/latest".to_owned(), 404, 40401),
        (format!("/subjects/{subject}/versions/9"), 404, 40402),
        (format!("/subjects/{subject}/versions/two"), 422, 42202),
        ("/schemas/ids/4711".to_owned(), 404, 40403),
        ("/schemas/ids/x".to_owned(), 404, 40403),
        ("/subjects/a%00b/versions".to_owned(), 400, 400),
        ("/subjects/a%00b/versions/1".to_owned(), 400, 400),
        ("/config/a%00b".to_owned(), 400, 400),
        // What the framework refuses, and what is under no path.
        ("/subjects/%FF/versions".to_owned(), 400, 400),
        ("/subjects?subjectPrefix=a&subjectPrefix=b".to_owned(), 400, 400),
        ("/config/nobody?defaultToGlobal=yes".to_owned(), 400, 400),
        ("/subjects/none/nothing".to_owned(), 404, 404),
        ("/schemas".to_owned(), 404, 404),
        ("/compatibility/subjects/x/versions/latest".to_owned(), 404, 404),
        ("/subjects/none".to_owned(), 405, 405),
    ] {
        let (found, body) = get(&path).await;
        assert_eq!((found, &body["error_code"]), (status, &json!(code)), "{path}");
        assert!(body["message"].is_string());
    }

    let post = async |path: String, body: Value| {
        let answer = http.post(format!("{base}{path}")).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    // A serializer that does not register looks its schema up; white space does not matter.
    let compact = serde_json::from_str::<Value>(definition).unwrap().to_string();
    assert_eq!(post(format!("/subjects/{subject}"), json!({"schema": compact})).await, (200, version));
    assert_eq!(post(format!("/subjects/{subject}"), json!({"schema": "\"int\""})).await.1["error_code"], 40403);
    assert_eq!(post(format!("/subjects/{subject}/versions"), json!({"schema": compact})).await.1["error_code"], 42205);
    assert_eq!(get("/subjects?subjectPrefix=a%00b").await.1["error_code"], 400);
    assert_eq!(post("/subjects/a%00b".to_owned(), json!({"schema": compact})).await.1["error_code"], 400);
    let large = json!({"schema": "x".repeat(20_000)});
    assert_eq!(post(format!("/subjects/{subject}"), large).await.1["error_code"], 413);
    let nothing = json!({"error_code": 404, "message": "HTTP 404 Not Found"});
    assert_eq!(post("/compatibility/subjects/x/versions/latest".to_owned(), json!({})).await, (404, nothing));
    let deleted = http.delete(format!("{base}/subjects/{subject}")).send().await.unwrap();
    assert_eq!((deleted.status().as_u16(), &deleted.headers()["allow"]), (405, &"POST".parse().unwrap()));
    assert_eq!(deleted.json::<Value>().await.unwrap()["message"], "HTTP 405 Method Not Allowed");
    assert_eq!(http.get(format!("{base}/else")).send().await.unwrap().text().await.unwrap(), "elsewhere");
    // What is amiss is told in the same shape, whatever the content type.
    for (body, status, code) in [("nonsense", 400, 400), ("{}", 422, 42201), (r#"{"schema": "{"}"#, 422, 42201)] {
        let answer = http.post(format!("{base}/subjects/{subject}")).body(body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{body}");
        assert_eq!(answer.json::<Value>().await.unwrap()["error_code"], code, "{body}");
    }
    server.abort();
    database.remove().await;
}

/// A registry that gives each new definition the next id, from `first`, as Confluent's does.
async fn stand_in(first: i32) -> (String, tokio::task::JoinHandle<()>) {
    let known = std::sync::Arc::new(std::sync::Mutex::new(Vec::<(String, String)>::new()));
    let register = async move |axum::extract::Path(subject): axum::extract::Path<String>,
                               axum::Json(body): axum::Json<Value>| {
        let entry = (subject, body["schema"].as_str().unwrap().to_owned());
        let mut known = known.lock().unwrap();
        let at = known.iter().position(|one| *one == entry).unwrap_or_else(|| {
            known.push(entry);
            known.len() - 1
        });
        axum::Json(json!({"id": first + at as i32}))
    };
    let routes = axum::Router::new().route("/base/subjects/{subject}/versions", axum::routing::post(register));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://user:secret@{}/base", listener.local_addr().unwrap());
    (address, tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_registry_gives_the_ids_and_may_be_away_later() {
    let database = OwnDatabase::create().await;
    let client = database.connect().await;
    let catalogue = schemas::catalogue().unwrap();
    let (address, server) = stand_in(100).await;
    let registry = ExternalRegistry::new(&address).unwrap();
    let ids = registry.register(&client, &catalogue).await.unwrap();
    assert_eq!(ids.iter().map(|(id, _, _)| id).min(), Some(100));
    let again = registry.register(&client, &catalogue).await.unwrap();
    assert_eq!(again.id_of("OrderPlaced", 3), ids.id_of("OrderPlaced", 3));

    // Away: what is known suffices; what is new does not go without it.
    server.abort();
    let _ = server.await;
    let away = registry.register(&client, &catalogue).await.unwrap();
    assert_eq!(away.id_of("OrderPlaced", 3), ids.id_of("OrderPlaced", 3));
    let error = registry.register(&client, &changed(false)).await.unwrap_err();
    assert!(matches!(error, ExternalRegistryError::Unreachable { .. }), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    assert!(error.to_string().contains("refused"), "why it did not answer: {error}");

    // Refusing, as a gateway in front of nothing does: the same.
    let gateway = axum::Router::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refusing = ExternalRegistry::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, gateway).await });
    let refused = refusing.register(&client, &catalogue).await.unwrap();
    assert_eq!(refused.id_of("OrderPlaced", 3), ids.id_of("OrderPlaced", 3));
    let error = refusing.register(&client, &changed(false)).await.unwrap_err();
    assert!(matches!(error, ExternalRegistryError::Refused { .. }), "{error}");
    server.abort();

    // Another registry with other ids would make stored bytes mean something else.
    let (other, server) = stand_in(500).await;
    let error = ExternalRegistry::new(&other).unwrap().register(&client, &catalogue).await.unwrap_err();
    assert!(matches!(error, ExternalRegistryError::OtherIds { .. }), "{error}");
    server.abort();
    assert!(matches!(ExternalRegistry::new("kafka:9092"), Err(ExternalRegistryError::Address(_))));
    database.remove().await;
}

/// A registry that answers everything so.
async fn answering(status: u16, body: &str) -> (ExternalRegistry, tokio::task::JoinHandle<()>) {
    let (status, body) = (axum::http::StatusCode::from_u16(status).unwrap(), body.to_owned());
    let routes = axum::Router::new().fallback(async move || (status, body));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registry = ExternalRegistry::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    (registry, tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_registry_is_believed_only_what_can_be() {
    let database = OwnDatabase::create().await;
    let client = database.connect().await;
    let catalogue = schemas::catalogue().unwrap();
    let large = format!("{}{{\"id\": 5}}", " ".repeat(2 << 20));
    for (status, body, says) in [
        (401, r#"{"id": 5, "message": "who are you"}"#, "401 Unauthorized {\"id\": 5, \"message\": \"who are you\"}"),
        (302, r#"{"id": 5}"#, "302 Found"),
        (503, "under maintenance", "503 Service Unavailable under maintenance"),
        (200, r#"{"id": 0}"#, "the id 0 is not positive"),
        (200, r#"{"id": -5}"#, "the id -5 is not positive"),
        (200, &large, "more than 1048576 bytes"),
        (200, r#"{"id": 7}"#, "OrderCancelled version 2 the id 7, which is that of"),
    ] {
        let (registry, server) = answering(status, body).await;
        let error = registry.register(&client, &catalogue).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        server.abort();
    }
    let kept: i64 = client.query_one("select count(*) from throughline.schemas", &[]).await.unwrap().get(0);
    assert_eq!(kept, 0, "nothing is kept of what is refused");

    // An id that the store knows as something else's.
    let taken = "insert into throughline.schemas (id, subject, version, event_type, fingerprint, definition)
                 overriding system value values (902, 'another', 4, 'Another', '', '')";
    client.batch_execute(taken).await.unwrap();
    let (address, server) = stand_in(900).await;
    let error = ExternalRegistry::new(&address).unwrap().register(&client, &catalogue).await.unwrap_err();
    assert!(matches!(&error, ExternalRegistryError::SameId { id: 902, .. }), "{error}");
    assert!(error.to_string().contains("another version 4"), "{error}");
    server.abort();
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_installation_asks_the_external_registry_and_starts_again_without_it() {
    let database = OwnDatabase::create().await;
    let (address, server) = stand_in(700).await;
    let mut settings = Settings { database: database.settings.clone(), ..Settings::default() };
    settings.http.schema_registry_url = address.into();
    assert!(!serde_json::to_string(&settings).unwrap().contains("secret"), "`config show` prints settings");
    install::apply_database(&reference::app(), &settings).await.unwrap();
    let client = database.connect().await;
    let lowest: i32 = client.query_one("select min(id) from throughline.schemas", &[]).await.unwrap().get(0);
    assert_eq!(lowest, 700, "the registry gives the ids");
    server.abort();
    let _ = server.await;
    install::apply_database(&reference::app(), &settings).await.unwrap();
    OrdersCodec::installed(&settings).await.unwrap();
    // Our own sequence begins at 1 and would, one day, give an id that this registry gave: what is new is
    // not registered by ourselves.
    register(&client, &schemas::catalogue().unwrap()).await.unwrap();
    let error = register(&client, &changed(false)).await.unwrap_err();
    assert!(matches!(error, SchemaIdsError::GivenElsewhere { version: 3, .. }), "{error}");

    let fresh = OwnDatabase::create().await;
    settings.database = fresh.settings.clone();
    let error = format!("{:#}", install::apply_database(&reference::app(), &settings).await.unwrap_err());
    assert!(error.contains("did not answer") && error.contains("schema_registry_url"), "{error}");
    fresh.remove().await;
    database.remove().await;
}
