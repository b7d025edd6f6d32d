//! Who is asked to authorise a payment: the bank's side. A real one takes the place of the one for development.

use std::time::Duration;

use futures_util::future::BoxFuture;
use uuid::Uuid;

use crate::orders::domain::Money;

/// What is asked of a gateway. Asked twice under one payment id, it answers the same and holds the amount once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub payment_id: Uuid,
    pub amount: Money,
    pub token: String,
}

/// What a gateway answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Under this name of its own.
    Authorized(String),
    /// For this reason.
    Declined(String),
}

/// A payment gateway.
pub trait Gateway: Send + Sync + 'static {
    /// Asks to hold an amount. It may take as long as it likes; whoever asks gives up some time.
    fn authorize<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, anyhow::Result<Answer>>;
}

/// The gateway for development: the token says what becomes of it.
pub struct Development;

/// Time that `tok_slow` takes.
const SLOW: Duration = Duration::from_secs(2);

impl Gateway for Development {
    fn authorize<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, anyhow::Result<Answer>> {
        Box::pin(async move {
            match request.token.as_str() {
                "tok_approve" => {}
                "tok_slow" => tokio::time::sleep(SLOW).await,
                "tok_silent" => std::future::pending().await,
                "tok_decline" => return Ok(Answer::Declined("the card was declined".into())),
                other => return Ok(Answer::Declined(format!("the token {other:?} is not known"))),
            }
            Ok(Answer::Authorized(format!("dev-{}", request.payment_id)))
        })
    }
}
