//! Dead letters: what could not be handled, kept whole with its reason.

use tokio_postgres::GenericClient;

use super::StoreError;

/// A record to park. Byte values are as they were on the topic.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// `command` or `event`.
    pub kind: &'static str,
    /// The consumer group that gave up on it.
    pub consumer: String,
    pub source_topic: String,
    pub source_partition: i32,
    pub source_offset: Option<i64>,
    /// The event's sequence number; none for commands.
    pub seq: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub headers: serde_json::Value,
    pub value: Option<Vec<u8>>,
    /// Stable, upper snake case.
    pub reason_code: String,
    pub reason: String,
}

/// Parks `letters` in one statement. A record already parked by the same consumer is left as it is.
pub async fn park(client: &impl GenericClient, letters: &[DeadLetter]) -> Result<(), StoreError> {
    if letters.is_empty() {
        return Ok(());
    }
    fn column<'a, T>(letters: &'a [DeadLetter], pick: impl Fn(&'a DeadLetter) -> T) -> Vec<T> {
        letters.iter().map(pick).collect()
    }
    client
        .execute(
            "insert into throughline.dead_letters (kind, consumer, source_topic, source_partition, source_offset, seq,
                                                   key, headers, value, reason_code, reason)
             select * from unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::bigint[],
                                  $7::bytea[], $8::jsonb[], $9::bytea[], $10::text[], $11::text[])
             on conflict do nothing",
            &[
                &column(letters, |l| l.kind),
                &column(letters, |l| l.consumer.as_str()),
                &column(letters, |l| l.source_topic.as_str()),
                &column(letters, |l| l.source_partition),
                &column(letters, |l| l.source_offset),
                &column(letters, |l| l.seq),
                &column(letters, |l| l.key.as_deref()),
                &column(letters, |l| &l.headers),
                &column(letters, |l| l.value.as_deref()),
                &column(letters, |l| l.reason_code.as_str()),
                &column(letters, |l| l.reason.as_str()),
            ],
        )
        .await
        .map_err(StoreError::at("park dead letters"))?;
    Ok(())
}
