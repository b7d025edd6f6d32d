//! One read of read tables: the wait for the caller's own writes before it, and how fresh it was after.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use jiff::Timestamp;
use tokio_postgres::Statement;
use utoipa::IntoParams;

use super::extract::header;
use super::problem::{NOT_FOUND, NOT_SHOWN_YET, Problem};
use super::stands::{self, Standing};
use super::{Api, consistency};
use crate::engine::Position;
use crate::presence::Stand;
use crate::store::Pooled;

/// Sent with a read, answered by a decided write.
pub const CONSISTENCY_TOKEN: HeaderName = HeaderName::from_static("consistency-token");
/// `met` or `not-met`, where a token was sent.
pub const CONSISTENCY: HeaderName = HeaderName::from_static("consistency");
/// When the newest event that the answer contains was recorded.
pub const AS_OF: HeaderName = HeaderName::from_static("as-of");
/// `partition:seq` of the newest events that the answer contains.
pub const AS_OF_POSITIONS: HeaderName = HeaderName::from_static("as-of-positions");
/// Partitions that the answer should contain and that stand, so that it may lack what was decided since; absent where
/// all go on.
pub const PROJECTION_STANDING: HeaderName = HeaderName::from_static("projection-standing");

/// Headers of every read, for the document.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
pub struct ReadHeaders {
    /// What a decided write answered: the read waits, up to a deadline, until it shows that write,
    /// and tells by the answer header `Consistency` whether it does. Several may be joined by commas.
    #[param(
        rename = "Consistency-Token",
        required = false,
        nullable = false,
        pattern = r"^[0-9a-f]{1,8}-[0-9a-f]{1,16}-[0-9a-f]{8}$"
    )]
    pub consistency_token: Option<String>,
}

/// A read that may begin: its writes are visible, or the wait for them ran out.
pub struct Read {
    /// In the reader's role. Prepare, then run [`Read::as_of`] joined with the read itself.
    pub client: Pooled,
    met: Option<bool>,
    projection: &'static str,
    checkpoint: Statement,
    /// What of the projection stands; none where all goes on.
    standing: Option<Arc<Standing>>,
}

/// How far the projection had come when the read began.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AsOf {
    /// The only one that counts; none for all.
    partition: Option<i32>,
    positions: Vec<Position>,
    last_event_at: Option<Timestamp>,
}

/// A table that is behind has waited for its writes already: soon is worth a try.
const NOT_SHOWN_RETRY_SECONDS: u64 = 1;

impl Api {
    /// Waits for the request's consistency tokens on `projection`, then takes a connection.
    pub async fn begin_read(&self, headers: &HeaderMap, projection: &'static str) -> Result<Read, Problem> {
        let met = match header(headers, CONSISTENCY_TOKEN.as_str())? {
            None => None,
            Some(text) => {
                let positions = consistency::decode(
                    text,
                    self.names.context(),
                    &self.contexts,
                    self.settings.topics.event_partitions,
                )?;
                Some(self.checkpoints.passed(projection, &positions, self.consistency_wait()).await)
            }
        };
        let client = self.database.client().await?;
        let checkpoint = client
            .prepare_cached(
                "select partition, seq, last_event_at from throughline.checkpoints
                 where projection = $1 and generation = 'read' and ($2::int is null or partition = $2)
                 order by partition",
            )
            .await?;
        Ok(Read { client, met, projection, checkpoint, standing: self.stands.of(projection) })
    }
}

impl Read {
    /// Where the projection stands: on `partition`, or on all of them. Join it with the read, this
    /// one first: it then runs before, and never claims more than the read shows.
    pub async fn as_of(&self, partition: Option<i32>) -> Result<AsOf, Problem> {
        let rows = self.client.query(&self.checkpoint, &[&self.projection, &partition]).await?;
        let mut as_of = AsOf { partition, ..AsOf::default() };
        for row in &rows {
            as_of.positions.push(Position { partition: row.get(0), seq: row.get(1) });
            as_of.last_event_at = as_of.last_event_at.max(row.get(2));
        }
        Ok(as_of)
    }

    /// The answer where the read found nothing: that there is nothing, as `detail` says, or that nobody can say so
    /// here, since `partition`, or one of them all, stands, or is not yet where the request's token is.
    pub fn missing(&self, partition: Option<i32>, detail: impl Into<String>) -> Problem {
        match (self.standing_of(partition).next(), self.met) {
            (Some(stand), _) => stands::problem(stand),
            (None, Some(false)) => {
                let detail = "the read table is behind the write that the consistency token names";
                Problem::new(NOT_SHOWN_YET, detail).retry_after(NOT_SHOWN_RETRY_SECONDS)
            }
            (None, _) => Problem::new(NOT_FOUND, detail),
        }
    }

    fn standing_of(&self, partition: Option<i32>) -> impl Iterator<Item = &Stand> {
        let all = self.standing.iter().flat_map(|standing| standing.values());
        all.filter(move |stand| partition.is_none_or(|partition| partition == stand.partition))
    }

    /// Puts the freshness on the answer.
    pub fn stamp(&self, as_of: &AsOf, response: &mut Response) {
        let headers = response.headers_mut();
        if let Some(at) = as_of.last_event_at
            && let Ok(value) = HeaderValue::from_str(&at.to_string())
        {
            headers.insert(AS_OF, value);
        }
        let positions: Vec<String> = as_of.positions.iter().map(|p| format!("{}:{}", p.partition, p.seq)).collect();
        if let Ok(value) = HeaderValue::from_str(&positions.join(",")) {
            headers.insert(AS_OF_POSITIONS, value);
        }
        let standing: Vec<String> =
            self.standing_of(as_of.partition).map(|stand| stand.partition.to_string()).collect();
        if !standing.is_empty()
            && let Ok(value) = HeaderValue::from_str(&standing.join(","))
        {
            headers.insert(PROJECTION_STANDING, value);
        }
        if let Some(met) = self.met {
            headers.insert(CONSISTENCY, HeaderValue::from_static(if met { "met" } else { "not-met" }));
        }
    }
}
