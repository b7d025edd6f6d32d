//! Dead commands that an operator sent again: decided anew, once, under the id that they had.
//!
//! The permit is a row, written before the record is produced, and used up in the transaction that decides
//! it; a record is known by being the very one that the letter keeps. So nobody can have a command decided
//! twice by a header, and a second copy of the record is a duplicate like any other.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::engine::{BoundedContext, ids};
use crate::kafka::Record;

use super::batch::Batch;
use super::outcome::{IdScope, Outcome};
use super::retry::BatchFailure;
use super::session::Session;
use super::{Payload, Scope, load};

/// Open permits whose records may be in the batch. $1 SHA-256 of the batch's values.
const PERMITS: &str = "
    select r.letter, d.source_topic, d.key, d.value, d.header_names, d.header_values, d.command_id
    from throughline.replays r join throughline.dead_letters d on d.id = r.letter
    where d.kind = 'command' and sha256(coalesce(d.value, '')) = any($1::bytea[])
    order by r.letter";

/// The record of a letter, and its outcome's id.
struct Permit {
    letter: i64,
    topic: String,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    command_id: Option<Uuid>,
}

impl Permit {
    fn is_for(&self, record: &Record) -> bool {
        let same = |headers: &crate::kafka::RecordHeaders| {
            let kept = self.headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref()));
            headers.len() == self.headers.len() && headers.iter().eq(kept)
        };
        *self.topic == *record.source.topic
            && self.key == record.key
            && self.value == record.value
            && record.headers().is_some_and(same)
    }
}

/// Finds the records of open permits in the batch, gives them their ids back, and takes the outcomes that
/// they had out of the store and of `outcomes`.
pub(super) async fn honour<C: BoundedContext>(
    session: &Session,
    scope: &Scope<C>,
    batch: &mut Batch<Payload<C>>,
    outcomes: &mut HashMap<IdScope, Outcome>,
) -> Result<(), BatchFailure> {
    let digest = |record: &Record| Sha256::digest(record.value.as_deref().unwrap_or_default()).to_vec();
    let digests: Vec<Vec<u8>> = batch.live().map(|(_, command)| digest(&command.record)).collect();
    let rows =
        session.client.query(PERMITS, &[&digests]).await.map_err(BatchFailure::at("look for commands sent again"))?;
    let mut matched: HashSet<usize> = HashSet::new();
    let mut letters = Vec::new();
    for permit in rows.iter().map(permit) {
        let found = batch.live().find(|(index, command)| !matched.contains(index) && permit.is_for(&command.record));
        let Some((index, _)) = found else { continue };
        matched.insert(index);
        letters.push(permit.letter);
        let command = &mut batch.commands[index];
        let place = &command.record.source;
        let namespace = scope.topic_ids.namespace(&place.topic);
        // An id of its own stays; one that was made of its place is that of its first place.
        let derived = ids::command_id_of_record(&namespace, place.partition, command.record.offset);
        if let Some(first) = permit.command_id.filter(|_| command.command_id == derived) {
            if command.correlation_id == command.command_id.to_string() {
                command.correlation_id = first.to_string();
            }
            command.command_id = first;
        }
    }
    if letters.is_empty() {
        return Ok(());
    }
    let used: i64 = session
        .client
        .query_one("select throughline.use_replays($1, $2)", &[&scope.events.id, &letters])
        .await
        .map_err(BatchFailure::at("use up permits of commands sent again"))?
        .get(0);
    if used != letters.len() as i64 {
        return Err(BatchFailure::World("another processor met the same commands".into()));
    }
    tracing::info!(commands = letters.len(), "dead commands are decided anew");
    let scopes = || matched.iter().map(|index| batch.commands[*index].scope());
    scopes().for_each(|scope| drop(outcomes.remove(&scope)));
    let left = load::load_outcomes(session, scope.events.id, &load::Ids::at(scopes()))
        .await
        .map_err(BatchFailure::at("load outcomes of commands sent again"))?;
    outcomes.extend(left.iter().map(load::outcome));
    Ok(())
}

fn permit(row: &tokio_postgres::Row) -> Permit {
    let (names, values): (Option<Vec<Vec<u8>>>, Option<Vec<Option<Vec<u8>>>>) = (row.get(4), row.get(5));
    Permit {
        letter: row.get(0),
        topic: row.get(1),
        key: row.get(2),
        value: row.get(3),
        headers: names.unwrap_or_default().into_iter().zip(values.unwrap_or_default()).collect(),
        command_id: row.get(6),
    }
}
