//! The document of the API, made from the routes themselves, and the pages that go with it.
//!
//! Routes and document agree by construction: a context registers both in one step. Answers that
//! every route may give are added here, so that no route repeats them.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::HeaderValue;
use axum::http::header::CACHE_CONTROL;
use axum::middleware::map_response;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use super::Scope;
use super::problem::{self, KINDS, Kind, PROBLEM_JSON, Problem, ProblemBody};

/// The routes as a plain router, and a router with `/openapi.json`, `/docs` and `/problems/{code}`.
pub(super) fn with_documents(
    title: &str,
    routes: OpenApiRouter,
    refusals: Vec<&'static Kind>,
    secured: bool,
) -> (Router, Router) {
    let (routes, document) = document(title, routes, secured);
    let refusals: Arc<[&Kind]> = refusals.into();
    let page = move |Path(code): Path<String>| async move { problem_page(&code, &refusals) };
    let documents = Router::from(SwaggerUi::new("/docs").url("/openapi.json", document));
    // The same for everybody until the next release.
    let documents = documents.route("/problems/{code}", get(page)).layer(map_response(async |mut answer: Response| {
        if answer.status().is_success() {
            answer.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("max-age=300"));
        }
        answer
    }));
    (routes, documents)
}

/// Splits the routes from their document and completes it.
pub(super) fn document(title: &str, routes: OpenApiRouter, secured: bool) -> (Router, OpenApi) {
    let info = InfoBuilder::new()
        .title(title)
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Commands in, queries out. A command is accepted (202) once Kafka holds it and decided exactly once in \
             effect; `Prefer: wait=N` and the `/sync` routes wait for the decision. Reads come from read tables and \
             tell how fresh they are; a `Consistency-Token` makes a read see a given write. Beside them the schema \
             registry's read API is served (`/subjects`, `/schemas`, `/config`, `/mode`), with the paths, shapes and \
             error codes that its stock clients know; it takes an API key also as Basic authentication, with the key's id \
             as user and its secret as password, or with the whole key as password.",
        ))
        .build();
    let base = OpenApiBuilder::new().info(info).build();
    let (routes, mut document) = OpenApiRouter::with_openapi(base).merge(routes).split_for_parts();
    complete(&mut document, secured);
    (routes, document)
}

fn complete(document: &mut OpenApi, secured: bool) {
    let components = document.components.get_or_insert_default();
    components.schemas.insert("Problem".into(), <ProblemBody as utoipa::PartialSchema>::schema());
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("An API key `tk_ID_SECRET`, or a JWT"))
        .build();
    let key = ApiKey::Header(ApiKeyValue::with_description("X-API-Key", "An API key `tk_ID_SECRET`"));
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    components.add_security_scheme("apiKey", SecurityScheme::ApiKey(key));
    for item in document.paths.paths.values_mut() {
        for (operation, writes) in operations(item) {
            add_shared_answers(operation, writes, secured);
            if secured {
                let scope = if writes { Scope::CommandsWrite } else { Scope::Read };
                let bearer = SecurityRequirement::new("bearer", [scope.name()]);
                operation.security = Some(vec![bearer, SecurityRequirement::new("apiKey", [scope.name()])]);
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&mut Operation, bool)> {
    let reads = item.get.as_mut().into_iter().map(|operation| (operation, false));
    let writes = [&mut item.post, &mut item.put, &mut item.delete, &mut item.patch];
    reads.chain(writes.into_iter().filter_map(Option::as_mut).map(|operation| (operation, true)))
}

/// What any request may be answered, whatever its route does.
fn add_shared_answers(operation: &mut Operation, writes: bool, secured: bool) {
    let mut shared = vec![(problem::INVALID_REQUEST, "A parameter or header is malformed")];
    shared.push((problem::OVERLOADED, "Not now: see `code` and `Retry-After`"));
    if secured {
        shared.push((problem::UNAUTHENTICATED, "Who calls is not known"));
        shared.push((problem::FORBIDDEN, "The caller lacks the scope"));
    } else {
        shared.push((problem::HOST_NOT_ALLOWED, "The request is addressed to another host"));
    }
    if writes {
        shared.push((problem::BODY_TIMEOUT, "The body did not come in time"));
        shared.push((problem::PAYLOAD_TOO_LARGE, "The body is too large"));
        shared.push((problem::UNSUPPORTED_MEDIA_TYPE, "The body is not application/json"));
        shared.push((problem::RATE_LIMITED, "The caller sends more than its share: see `Retry-After`"));
    }
    for (kind, description) in shared {
        let status = kind.status.as_u16().to_string();
        operation.responses.responses.entry(status).or_insert_with(|| RefOr::T(problem_response(description)));
    }
}

fn problem_response(description: &str) -> utoipa::openapi::Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    ResponseBuilder::new().description(description).content(PROBLEM_JSON, content).build()
}

/// The page that a problem's `type` refers to. Text is ours, never input.
fn problem_page(code: &str, refusals: &[&'static Kind]) -> Response {
    let Some(kind) = KINDS.iter().chain(refusals.iter().copied()).find(|kind| kind.code == code) else {
        return Problem::new(problem::NOT_FOUND, "no problem has this code").into_response();
    };
    let (status, title) = (kind.status.as_u16(), kind.title);
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{code}</title>\
         <h1>{code}</h1><p>{title} (HTTP {status}).</p><p>{}</p></html>",
        kind.remedy
    );
    Html(page).into_response()
}
