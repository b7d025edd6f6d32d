//! A stretch of one partition of the store: sequence numbers and versions without holes, and outcomes that agree.
//!
//! Three questions to PostgreSQL, each about at most so many events as the caller says. Knows no Kafka.

use tokio_postgres::types::ToSql;
use tokio_postgres::{GenericClient, Row};
use uuid::Uuid;

use super::Finding;
use crate::store::events::Span;
use crate::store::{Destination, StoreError};

/// Events that one call looks at, at most.
pub(super) const EVENTS_MAX: i64 = 5_000;
/// Findings of one question, at most.
const FOUND_MAX: i64 = 20;

/// What is wrong in a stretch.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub sequence: Vec<Finding>,
    pub versions: Vec<Finding>,
    pub outcomes: Vec<Finding>,
}

impl Found {
    /// All of it.
    pub fn all(self) -> Vec<Finding> {
        [self.sequence, self.versions, self.outcomes].concat()
    }
}

/// Holds the events behind `span.after`, up to `span.upto`, which the store says to have.
pub(super) async fn check(
    client: &impl GenericClient,
    destination: &Destination,
    span: Span,
) -> Result<Found, StoreError> {
    Ok(Found {
        sequence: sequence(client, destination, span).await?,
        versions: versions(client, destination, span).await?,
        outcomes: outcomes(client, destination, span).await?,
    })
}

fn finding(destination: &Destination, span: Span, seq: i64, stream_id: Option<Uuid>, what: String) -> Finding {
    Finding { topic: destination.name.clone(), partition: span.partition, seq: Some(seq), stream_id, what }
}

/// Every number is there, once.
async fn sequence(
    client: &impl GenericClient,
    destination: &Destination,
    span: Span,
) -> Result<Vec<Finding>, StoreError> {
    let counted = client
        .query_one(
            "select count(*) from throughline.events
             where partition = $1 and topic = $2 and seq > $3 and seq <= $4",
            &[&span.partition, &destination.id, &span.after, &span.upto],
        )
        .await
        .map_err(StoreError::at("count events"))?;
    // The primary key lets none come twice.
    if counted.get::<_, i64>(0) == span.upto - span.after {
        return Ok(Vec::new());
    }
    let rows = client
        .query(
            "select missing from generate_series($3::bigint + 1, $4::bigint) missing
             where not exists (select from throughline.events e
                               where e.partition = $1 and e.topic = $2 and e.seq = missing)
             order by 1 limit $5",
            &[&span.partition, &destination.id, &span.after, &span.upto, &FOUND_MAX],
        )
        .await
        .map_err(StoreError::at("look for missing events"))?;
    let missing = |row: &Row| finding(destination, span, row.get(0), None, "the store lacks the event".into());
    Ok(rows.iter().map(missing).collect())
}

/// Each version of a stream follows the one before, in the order of the sequence.
async fn versions(
    client: &impl GenericClient,
    destination: &Destination,
    span: Span,
) -> Result<Vec<Finding>, StoreError> {
    let rows = client
        .query(
            "select e.seq, e.stream_id, e.version from throughline.events e
             where e.partition = $1 and e.topic = $2 and e.seq > $3 and e.seq <= $4 and e.version <> 1
               and not exists (select from throughline.events p
                               where p.partition = $1 and p.topic = $2 and p.stream_id = e.stream_id
                                 and p.version = e.version - 1 and p.seq < e.seq)
             order by e.seq limit $5",
            &[&span.partition, &destination.id, &span.after, &span.upto, &FOUND_MAX],
        )
        .await
        .map_err(StoreError::at("look for holes in streams"))?;
    let hole = |row: &Row| {
        let version: i64 = row.get(2);
        let what =
            format!("it is version {version} of its stream, and version {} does not come before it", version - 1);
        finding(destination, span, row.get(0), Some(row.get(1)), what)
    };
    Ok(rows.iter().map(hole).collect())
}

/// Each event's command was accepted, and each accepted command's last event is the one that its outcome names.
/// Outcomes are kept for a while only: older events are passed over.
async fn outcomes(
    client: &impl GenericClient,
    destination: &Destination,
    span: Span,
) -> Result<Vec<Finding>, StoreError> {
    let kept = "(select coalesce(min((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \\(''([^'']+)''\\)'))[1]::timestamptz), 'infinity')
                 from pg_inherits i join pg_class c on c.oid = i.inhrelid
                 where i.inhparent = 'throughline.commands'::regclass)";
    let statement = format!(
        "with of_commands as materialized (
             select e.command_id, e.stream_id, max(e.seq) as seq, max(e.version) as version
             from throughline.events e
             where e.partition = $1 and e.topic = $2 and e.seq > $3 and e.seq <= $4 and e.recorded_at >= {kept}
             group by e.command_id, e.stream_id)
         select e.seq, e.stream_id, e.command_id, c.accepted, c.seq, c.version
         from of_commands e
         left join lateral (
             select * from throughline.commands c
             where c.partition = $1 and c.topic = $2 and c.command_id = e.command_id and c.stream_id = e.stream_id
             order by c.accepted desc, c.decided_at limit 1) c on true
         where c.accepted is not true
            or (coalesce(c.seq, 0) <= $4 and (c.seq, c.version) is distinct from (e.seq, e.version))
            -- The last event of such a command is beyond the stretch: it must be its own.
            or (c.seq > $4 and not exists (select from throughline.events n
                                           where n.partition = $1 and n.topic = $2 and n.seq = c.seq
                                             and n.command_id = e.command_id and n.stream_id = e.stream_id))
         order by e.seq limit $5"
    );
    let parameters: [&(dyn ToSql + Sync); 5] = [&span.partition, &destination.id, &span.after, &span.upto, &FOUND_MAX];
    let rows = client.query(&statement, &parameters).await.map_err(StoreError::at("hold events against outcomes"))?;
    let told = |row: &Row| {
        let (seq, stream, command): (i64, Uuid, Uuid) = (row.get(0), row.get(1), row.get(2));
        let outcome: (Option<bool>, Option<i64>, Option<i64>) = (row.get(3), row.get(4), row.get(5));
        let number = |number: Option<i64>| number.map_or_else(|| "none".to_owned(), |number| number.to_string());
        let what = match outcome {
            (None, ..) => format!("its command {command} has no outcome"),
            (Some(false), ..) => format!("its command {command} is refused by its outcome"),
            (Some(true), last, version) => format!(
                "it is the last of its command {command}, whose outcome names seq {} and version {}",
                number(last),
                number(version)
            ),
        };
        finding(destination, span, seq, Some(stream), what)
    };
    Ok(rows.iter().map(told).collect())
}
