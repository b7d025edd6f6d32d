//! Each published result is an outcome of the store, word for word; and what an outcome names, happened.
//!
//! Outcomes are kept for a while only; older results are passed over. PostgreSQL is authoritative for the outcome.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::{Client, GenericClient, Row};
use uuid::Uuid;

use super::{Finding, Subject};
use crate::kafka::{Record, TopicPartition, headers};
use crate::store::commands::{self, StoredOutcome};
use crate::store::{Destination, StoreError};

/// Since when outcomes are kept: the time of the oldest partition that is there. None where there is none.
pub(super) async fn kept_since(client: &impl GenericClient) -> Result<Option<Timestamp>, StoreError> {
    let row = client
        .query_one(
            "select min((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \\(''([^'']+)''\\)'))[1]::timestamptz)
             from pg_inherits i join pg_class c on c.oid = i.inhrelid
             where i.inhparent = 'throughline.commands'::regclass",
            &[],
        )
        .await
        .map_err(StoreError::at("ask since when outcomes are kept"))?;
    Ok(row.get(0))
}

/// Holds records of a results topic against the outcomes; `reached` is the last sequence number met.
pub(super) async fn check(
    client: &Client,
    subject: &Subject,
    place: &TopicPartition,
    records: &[Record],
    (reached, kept): (&mut Option<i64>, Timestamp),
) -> Result<Vec<Finding>, StoreError> {
    let mut findings = Vec::new();
    let mut find = |seq: Option<i64>, stream_id: Option<Uuid>, what: String| {
        findings.push(Finding { topic: place.topic.to_string(), partition: place.partition, seq, stream_id, what });
    };
    let mut published: Vec<(Option<i64>, Uuid, Value)> = Vec::new();
    for record in records {
        let seq = headers::seq_of(record);
        match (seq, *reached) {
            (None, _) => {
                let what =
                    format!("offset {}: a record without a sequence number: the relay did not write it", record.offset);
                find(None, None, what);
                continue;
            }
            (Some(seq), Some(last)) if seq > last + 1 => {
                let what = format!(
                    "offset {}: the topic goes from seq {last} to {seq}: those between are missing",
                    record.offset
                );
                find(Some(last + 1), None, what);
            }
            _ => {}
        }
        *reached = seq.max(*reached);
        let value: Option<Value> = record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
        let id = value.as_ref().and_then(|value| value["commandId"].as_str()?.parse().ok());
        match (value, id) {
            (Some(value), Some(id)) => published.push((seq, id, value)),
            _ => find(seq, None, format!("offset {}: it is no result of a command", record.offset)),
        }
    }
    published.retain(|(_, _, value)| {
        let decided = value["decidedAt"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
        decided.is_none_or(|at| at >= kept)
    });
    let ids: Vec<Uuid> = published.iter().map(|(_, id, _)| *id).collect();
    let mut stored: HashMap<Uuid, Vec<StoredOutcome>> = HashMap::new();
    for outcome in commands::outcomes(client, &subject.names.events(), &ids).await? {
        stored.entry(outcome.command_id).or_default().push(outcome);
    }
    let anew = decided_anew(client, &ids).await?;
    for (seq, id, value) in published {
        let outcomes = stored.get(&id).map(Vec::as_slice).unwrap_or_default();
        let field = subject.stream_id_field;
        // An operator had it decided anew: what was told before was true then.
        if outcomes.iter().any(|outcome| outcome.to_json(field) == value) || anew.contains(&id) && !outcomes.is_empty()
        {
            continue;
        }
        let stream = value[field].as_str().and_then(|text| text.parse().ok());
        let of_stream = outcomes.iter().find(|outcome| outcome.stream() == stream);
        let what = match of_stream {
            None => format!("the topic tells the result of command {id}, which has no outcome in the store"),
            Some(outcome) => format!("the topic tells {value} of command {id}, the store {}", outcome.to_json(field)),
        };
        find(seq, stream, what);
    }
    Ok(findings)
}

/// Those of `ids` that an operator sent again.
async fn decided_anew(client: &impl GenericClient, ids: &[Uuid]) -> Result<HashSet<Uuid>, StoreError> {
    let rows = client
        .query(
            "select distinct command_id from throughline.dead_letters
             where kind = 'command' and command_id = any($1) and status = 'replayed'",
            &[&ids],
        )
        .await
        .map_err(StoreError::at("look for commands that were sent again"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Accepted commands whose last event is not there, of one partition.
pub(super) async fn without_event(
    client: &impl GenericClient,
    destination: &Destination,
    partition: i32,
    last_seq: i64,
) -> Result<(i64, Vec<Finding>), StoreError> {
    let rows = client
        .query(
            "with held as materialized (
                 select c.command_id, c.stream_id, c.seq, e.command_id is null as lacks
                 from throughline.commands c
                 left join throughline.events e on e.partition = $1 and e.topic = $2 and e.seq = c.seq
                      and e.command_id = c.command_id and e.stream_id = c.stream_id
                 where c.partition = $1 and c.topic = $2 and c.seq is not null and c.seq <= $3)
             (select count(*), null::bigint, null::uuid, null::uuid from held)
             union all
             (select 0, seq, stream_id, command_id from held where lacks order by seq limit 20)",
            &[&partition, &destination.id, &last_seq],
        )
        .await
        .map_err(StoreError::at("hold outcomes against events"))?;
    let checked = rows.iter().map(|row| row.get::<_, i64>(0)).max().unwrap_or_default();
    let lacking = |row: &Row| {
        let command: Uuid = row.get(3);
        let what = format!("command {command} was accepted, and the event that its outcome names is not its own");
        Finding { topic: destination.name.clone(), partition, seq: row.get(1), stream_id: row.get(2), what }
    };
    let findings = rows.iter().filter(|row| row.get::<_, Option<i64>>(1).is_some()).map(lacking).collect();
    Ok((checked, findings))
}
