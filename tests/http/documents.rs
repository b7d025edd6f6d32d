//! The document, its pages, the admin port, the registry, and who may come in.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use crate::harness::{Harness, eventually};
use crate::server::{Answer, Server, an_order, free_address};

#[tokio::test(flavor = "multi_thread")]
async fn the_document_tells_every_route_and_its_pages_are_served_from_here() {
    let harness = Harness::new("http_documents").await;
    let server = Server::start(&harness, &["api"]).await;
    let document = server.read("/openapi.json").await;
    assert_eq!(document.status, 200);
    assert!(document.text("openapi").starts_with("3.1"), "{:?}", document.body["openapi"]);
    let paths: BTreeSet<&str> = document.body["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    for path in [
        "/api/orders",
        "/api/orders/sync",
        "/api/orders/{orderId}",
        "/api/orders/{orderId}/history",
        "/api/orders/{orderId}/events",
        "/api/orders/{orderId}/payments/sync",
        "/api/commands/{commandId}",
        "/api/customers/{customerId}",
        "/api/sales/daily",
    ] {
        assert!(paths.contains(path), "{path} of {paths:?}");
    }
    for (path, item) in document.body["paths"].as_object().unwrap() {
        let path = path.replace("{orderId}", &uuid::Uuid::nil().to_string());
        let path = path.replace("{commandId}", &uuid::Uuid::nil().to_string()).replace("{customerId}", "nobody");
        for method in item.as_object().unwrap().keys() {
            let method = method.to_uppercase().parse().unwrap();
            let answer = Answer::of(server.request(method, &path).send().await.unwrap()).await;
            let routed = answer.text("code") != "METHOD_NOT_ALLOWED"
                && answer.text("detail") != "no route has this path; GET /openapi.json lists them";
            assert!(routed, "{path}: {answer:?}");
            let documented = item
                .as_object()
                .unwrap()
                .values()
                .any(|operation| operation["responses"].get(answer.status.to_string()).is_some());
            assert!(documented, "{path} answers {} without saying so", answer.status);
        }
    }
    let docs = server.get("/docs/").send().await.unwrap();
    assert_eq!(docs.status(), 200);
    assert!(!docs.text().await.unwrap().contains("//unpkg"), "the page works offline");
    let page = server.get("/problems/QUEUE_FULL").send().await.unwrap();
    assert_eq!(
        (page.status().as_u16(), &page.headers()["content-type"]),
        (200, &"text/html; charset=utf-8".parse().unwrap())
    );
    assert_eq!(server.get("/problems/ORDER_NOT_PAID").send().await.unwrap().status(), 200);
    server.read("/problems/NO_SUCH").await.is_problem(404, "NOT_FOUND");
    let subjects = server.read("/subjects").await;
    assert!(
        subjects.body.as_array().unwrap().iter().any(|s| s.as_str().unwrap().ends_with("OrderPlaced")),
        "{subjects:?}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_tells_health_and_metrics() {
    let harness = Harness::new("http_admin").await;
    let server = Server::start(&harness, &["api"]).await;
    let get =
        async |path: &str| Answer::of(server.client.get(format!("{}{path}", server.admin)).send().await.unwrap()).await;
    for path in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(get(path).await.status, 200, "{path}");
    }
    let verbose = get("/readyz?verbose").await;
    assert!(
        verbose.body["checks"].as_array().unwrap().iter().any(|check| check["name"] == "api orders"),
        "{verbose:?}"
    );
    server.read("/nowhere").await;
    let metrics = get("/metrics").await;
    let text = metrics.body.as_str().unwrap();
    for name in ["throughline_http_requests_total", "throughline_admission_queue_commands"] {
        assert!(text.contains(name), "{name}");
    }
    get("/nowhere").await.is_problem(404, "NOT_FOUND");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_open_what_they_are_for_and_the_principal_goes_with_the_command() {
    let mut harness = Harness::bare("http_keys_file").await;
    let file = std::env::temp_dir().join(format!("throughline-keys-{}", uuid::Uuid::new_v4()));
    let line = |id: &str, scopes: &str| {
        let hex: String = Sha256::digest(format!("secret-{id}")).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{id} {hex} {scopes}\n")
    };
    std::fs::write(&file, line("shop", "commands:write,read") + &line("viewer", "read")).unwrap();
    harness.settings.http.auth.api_keys_file = Some(file.clone());
    harness.install().await;
    let server = Server::whole(&harness).await;
    server.read("/api/orders").await.is_problem(401, "UNAUTHENTICATED");
    assert_eq!(server.read("/openapi.json").await.status, 200);
    let with = async |key: &str, write: bool| {
        let request = if write { server.post("/api/orders/sync", &an_order()) } else { server.get("/api/orders") };
        Answer::of(request.header("Authorization", format!("Bearer {key}")).send().await.unwrap()).await
    };
    with("tk_shop_wrong", false).await.is_problem(401, "UNAUTHENTICATED");
    assert_eq!(with("tk_viewer_secret-viewer", false).await.status, 200);
    with("tk_viewer_secret-viewer", true).await.is_problem(403, "FORBIDDEN");
    assert_eq!(with("tk_shop_secret-shop", true).await.status, 201);
    // The registry's stock clients send Basic: the key in two parts, or whole as the password of anybody.
    let basic = async |path: &str, user: &str, password: &str| {
        Answer::of(server.get(path).basic_auth(user, Some(password)).send().await.unwrap()).await
    };
    for path in ["/subjects", "/schemas/types", "/config", "/mode"] {
        assert_eq!(basic(path, "viewer", "secret-viewer").await.status, 200, "{path}");
        assert_eq!(basic(path, "anybody", "tk_viewer_secret-viewer").await.status, 200, "{path}");
        let refused = basic(path, "viewer", "secret-shop").await;
        refused.is_problem(401, "UNAUTHENTICATED");
        assert!(refused.header("www-authenticate").starts_with("Basic realm=\"throughline\""), "{refused:?}");
        assert!(refused.header("www-authenticate").ends_with(", Bearer"), "{refused:?}");
    }
    let elsewhere = basic("/api/orders", "viewer", "secret-viewer").await;
    elsewhere.is_problem(401, "UNAUTHENTICATED");
    assert_eq!(elsewhere.header("www-authenticate"), "Bearer", "browsers send Basic unasked");
    // Who is asked for may call us whatever they like.
    let named = server.get("/openapi.json").header("Host", "shop.example").send().await.unwrap();
    assert_eq!(named.status(), 200);
    let probed =
        server.client.get(format!("{}/livez", server.admin)).header("Host", "shop.example").send().await.unwrap();
    assert_eq!(probed.status(), 421, "nobody is asked on the admin port");
    let row = harness.client().await.query_one("select principal from throughline.events", &[]).await.unwrap();
    assert_eq!(row.get::<_, Option<String>>(0).as_deref(), Some("key:shop"));
    server.stop().await;
    std::fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_makes_it_https() {
    let mut harness = Harness::bare("http_tls").await;
    let file =
        |name: &str| Some(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/http/tls").join(name));
    harness.settings.http.tls_certificate_file = file("localhost.crt");
    harness.settings.http.tls_key_file = file("localhost.key");
    harness.install().await;
    let server = Server::start(&harness, &["api"]).await;
    assert!(server.base.starts_with("https://"));
    assert_eq!(server.send("/api/orders", &an_order()).await.status, 202);
    let plain = server.base.replace("https://", "http://");
    assert!(server.client.get(format!("{plain}/openapi.json")).send().await.is_err(), "no plain text on that port");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listens_beyond_loopback_unasked() {
    let harness = Harness::new("http_open").await;
    let mut settings = harness.settings.clone();
    settings.http.listen = ([0, 0, 0, 0], free_address().port()).into();
    settings.http.admin_listen = free_address();
    let lifecycle = throughline::app::lifecycle::Lifecycle::embedded();
    let roles = throughline::app::roles::parse(&crate::harness::orders(), &["api".to_owned()]).unwrap();
    let error = throughline::app::roles::start(&crate::harness::orders(), &roles, &settings, &lifecycle)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("no authentication is configured"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loses_its_database_says_so_and_lives() {
    let harness = Harness::new("http_lost").await;
    let server = Server::start(&harness, &["api"]).await;
    let database = harness.settings.database.url.expose().rsplit('/').next().unwrap().to_owned();
    let owner = harness.client().await;
    // Every session of the server is ended; new ones are let in again.
    let ended = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and pid <> pg_backend_pid()";
    owner.query(ended, &[&database]).await.unwrap();
    eventually("reads are answered again", || async {
        let answer = server.read("/api/orders").await;
        assert!([200, 503].contains(&answer.status), "{answer:?}");
        (answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(server.client.get(format!("{}/livez", server.admin)).send().await.unwrap().status(), 200);
    server.stop().await;
}
