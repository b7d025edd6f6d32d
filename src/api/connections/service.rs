//! Who comes in at a port's gate, and which of its requests are in hand.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::connect_info::IntoMakeServiceWithConnectInfo;
use axum::http::Request;
use axum::response::Response;
use futures_util::future::BoxFuture;
use hyper::body::{Frame, SizeHint};
use tower::Service;

use super::{Connection, Gate, InHand};

/// Makes the service of each connection that the gate lets in.
pub(in crate::api) struct Doorkeeper {
    gate: Arc<Gate>,
    routes: IntoMakeServiceWithConnectInfo<Router, SocketAddr>,
}

impl Doorkeeper {
    /// Lets connections to `router` in by `gate`.
    pub(in crate::api) fn new(gate: Arc<Gate>, router: Router) -> Self {
        Self { gate, routes: router.into_make_service_with_connect_info() }
    }
}

/// The port is full.
#[derive(Debug, thiserror::Error)]
#[error("as many connections are open as may, and all are in use")]
pub(in crate::api) struct Full;

type Routes = <IntoMakeServiceWithConnectInfo<Router, SocketAddr> as Service<SocketAddr>>::Response;

impl Service<SocketAddr> for Doorkeeper {
    type Response = Counting<Routes>;
    type Error = Full;
    type Future = BoxFuture<'static, Result<Self::Response, Full>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Full>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: SocketAddr) -> Self::Future {
        let (gate, routes) = (self.gate.clone(), self.routes.call(address));
        Box::pin(async move {
            let connection = gate.admit().await.ok_or(Full)?;
            let Ok(inner) = routes.await;
            Ok(Counting { inner, connection })
        })
    }
}

/// A service that tells its connection which requests are in hand.
#[derive(Clone)]
pub(in crate::api) struct Counting<S> {
    inner: S,
    pub(super) connection: Arc<Connection>,
}

impl<S, B> Service<Request<B>> for Counting<S>
where
    S: Service<Request<B>, Response = Response>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let in_hand = self.connection.begin(request.version());
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| Body::new(Answer { body, _in_hand: in_hand }))) })
    }
}

/// The body of an answer: the request is in hand until it was sent or given up.
struct Answer {
    body: Body,
    _in_hand: InHand,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
