//! Projections with a fault of one's choosing, around a real one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reference::orders::domain::OrderEvent;
use throughline::engine::{Applied, Projection, ProjectionError, ReadModel, Recorded};
use tokio_postgres::Transaction;
use uuid::Uuid;

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    Refuse,
    Panic,
    /// Waits for a minute without using the database.
    Wait,
    /// Holds its thread for this long.
    Block(Duration),
    Constraint,
    /// Asks for a row that is not there.
    Missing,
    /// Whatever the server says to this.
    Sql(&'static str),
}

/// Fails on every event of one stream, from a version on, while `broken`.
pub struct Faulty {
    pub inner: Arc<dyn Projection<Event = OrderEvent>>,
    pub stream: Uuid,
    pub from_version: i64,
    pub fault: Fault,
    pub broken: Arc<AtomicBool>,
    pub version: i32,
}

impl Projection for Faulty {
    type Event = OrderEvent;

    fn read_model(&self) -> ReadModel {
        ReadModel { version: self.version, ..self.inner.read_model() }
    }

    fn apply<'a>(&'a self, tx: &'a Transaction<'a>, batch: &'a [Recorded<OrderEvent>]) -> Applied<'a> {
        Box::pin(async move {
            let hit = batch.iter().any(|e| e.stream_id == self.stream && e.version >= self.from_version);
            if hit && self.broken.load(Ordering::Acquire) {
                match self.fault {
                    Fault::Refuse => return Err(ProjectionError::Event("no such thing".into())),
                    Fault::Panic => panic!("a bug"),
                    Fault::Wait => tokio::time::sleep(Duration::from_secs(60)).await,
                    Fault::Block(time) => std::thread::sleep(time),
                    Fault::Missing => drop(tx.query_one("select 1 where false", &[]).await?),
                    Fault::Sql(sql) => tx.batch_execute(sql).await?,
                    Fault::Constraint => {
                        tx.batch_execute("insert into order_list (order_id) values (null)").await?;
                    }
                }
            }
            self.inner.apply(tx, batch).await
        })
    }
}
