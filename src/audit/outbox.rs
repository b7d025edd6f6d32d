//! The staging log: what is committed and not published is in it, whole, and the counters are where the events are.
//!
//! One question a destination partition, of one snapshot. Knows no Kafka.

use tokio_postgres::GenericClient;
use uuid::Uuid;

use super::Finding;
use crate::store::{Destination, StoreError};

/// A destination partition of one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub partition: i32,
    /// The last sequence number that was given.
    pub last_seq: i64,
    /// The relay's watermark.
    pub published: i64,
}

/// How far each partition of a destination is.
pub(super) async fn marks(client: &impl GenericClient, destination: &Destination) -> Result<Vec<Mark>, StoreError> {
    let rows = client
        .query(
            "select c.partition, c.last_seq, coalesce(l.published, 0)
             from throughline.counters c left join throughline.relay_leases l using (partition, topic)
             where c.topic = $1 order by c.partition",
            &[&destination.id],
        )
        .await
        .map_err(StoreError::at("read how far a destination is"))?;
    Ok(rows.iter().map(|row| Mark { partition: row.get(0), last_seq: row.get(1), published: row.get(2) }).collect())
}

/// Holds one partition; `has_events` tells the events topic from that of results. Returns rows that wait, too.
pub(super) async fn check(
    client: &impl GenericClient,
    destination: &Destination,
    mark: Mark,
    has_events: bool,
) -> Result<(i64, Vec<Finding>), StoreError> {
    let mut findings = Vec::new();
    let mut find = |seq: Option<i64>, stream_id: Option<Uuid>, what: String| {
        findings.push(Finding { topic: destination.name.clone(), partition: mark.partition, seq, stream_id, what });
    };
    if mark.published > mark.last_seq {
        let what = format!(
            "{} is marked as published, and the store has given numbers up to {} only: it was set back",
            mark.published, mark.last_seq
        );
        find(Some(mark.published), None, what);
    }
    if has_events {
        let row = client
            .query_one(
                "select coalesce(max(seq), 0) from throughline.events where partition = $1 and topic = $2",
                &[&mark.partition, &destination.id],
            )
            .await
            .map_err(StoreError::at("look for the last event"))?;
        let last: i64 = row.get(0);
        if last != mark.last_seq {
            let what = format!("the counter is at {}, and the last event is {last}", mark.last_seq);
            find(Some(last), None, what);
        }
    }
    let row = client
        .query_one(
            "select count(distinct seq), count(*) from throughline.outbox
             where partition = $1 and topic = $2 and seq > $3 and seq <= $4",
            &[&mark.partition, &destination.id, &mark.published, &mark.last_seq],
        )
        .await
        .map_err(StoreError::at("count what waits in the outbox"))?;
    let (waiting, rows): (i64, i64) = (row.get(0), row.get(1));
    let due = (mark.last_seq - mark.published).max(0);
    if waiting != due || rows != waiting {
        let what = format!("{due} numbers are not published yet, and the outbox has {rows} rows of {waiting} of them");
        find(Some(mark.published + 1), None, what);
    }
    if has_events {
        let rows = client
            .query(
                "select o.seq, o.subject from throughline.outbox o
                 left join throughline.events e on e.partition = $1 and e.topic = $2 and e.seq = o.seq
                 where o.partition = $1 and o.topic = $2 and o.seq > $3
                   and (e.payload, e.event_id, e.stream_id, e.version)
                       is distinct from (o.value, o.message_id, o.subject, o.stream_version)
                 order by o.seq limit 20",
                &[&mark.partition, &destination.id, &mark.published],
            )
            .await
            .map_err(StoreError::at("hold the outbox against the events"))?;
        for row in &rows {
            find(Some(row.get(0)), Some(row.get(1)), "its row in the outbox is not the event".to_owned());
        }
    }
    Ok((waiting, findings))
}
