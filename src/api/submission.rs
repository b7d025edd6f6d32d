//! One command from request to answer: rate, idempotency, admission, hand-over, and the wait.
//!
//! There is one path: a call that waits for the outcome takes the same way as one that does not,
//! and then waits. PostgreSQL's outcome row is the answer; nothing here guesses it.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::envelope::RequestEnvelope;
use super::handover::CommandRecord;
use super::problem::{COMMAND_FAILED, COMMAND_ID_REUSED, Problem, RATE_LIMITED, VERSION_MISMATCH};
use super::{Api, correlation};
use crate::engine::ids::correlation_id_of_command;
use crate::engine::{Fingerprint, destination_partition, fingerprint};
use crate::store::commands::{self, StoredOutcome};

/// A command whose shape was checked.
#[derive(Debug)]
pub struct Submission<'a> {
    pub command_id: Uuid,
    pub stream_id: Uuid,
    /// The value of the record, as its context writes commands.
    pub value: &'a [u8],
    /// Of what the command means: this is compared when its id comes again.
    pub fingerprint: Fingerprint,
    /// Whether the caller chose the command id, by key or in the body: then it may have been decided.
    pub repeatable: bool,
    /// How long to wait for the outcome; none = not at all.
    pub wait: Option<Duration>,
}

/// What became of a submission.
#[derive(Debug)]
pub enum Submitted {
    /// Kafka holds it; the outcome is not known yet. With the correlation id that it travels under.
    Accepted { correlation_id: String },
    /// It was decided, and not refused.
    Decided(Box<StoredOutcome>),
}

impl Api {
    /// Hands a command over and, where asked, waits for its outcome. A refusal is a problem.
    pub async fn submit(&self, envelope: &RequestEnvelope, submission: Submission<'_>) -> Result<Submitted, Problem> {
        let Submission { command_id, stream_id, value, .. } = submission;
        self.rates.take(&envelope.caller.id).map_err(|seconds| {
            metrics::counter!("throughline_http_rate_limited_total").increment(1);
            Problem::new(RATE_LIMITED, "this caller sends more commands a second than it may").retry_after(seconds)
        })?;
        if submission.repeatable {
            // Before the look, so that also its problems carry the id.
            correlation::adopt(&correlation_id_of_command(command_id).to_string());
            if let Some(outcome) = self.decided_before(&submission).await? {
                check_payload(&outcome, &submission)?;
                correlation::adopt(&outcome.correlation_id);
                return match submission.wait {
                    // The first try was answered 202, and so is its repetition.
                    None => Ok(Submitted::Accepted { correlation_id: outcome.correlation_id }),
                    Some(_) => conclude(outcome, envelope),
                };
            }
        }
        let waiter = submission.wait.and_then(|wait| Some((wait, self.outcomes.register(command_id, stream_id)?)));
        let correlation_id = correlation::current();
        let permit = self.admission.admit(envelope.lane, stream_id, value.len()).await?;
        let handed_at = Instant::now();
        let record = CommandRecord {
            stream_id,
            command_id,
            value,
            correlation_id: &correlation_id,
            causation_id: envelope.causation_id.as_deref(),
            traceparent: envelope.traceparent.as_deref(),
            principal: envelope.caller.principal.as_deref(),
        };
        self.handover.hand_over(permit, record).await?;
        crate::crash_point!("api.handed_over");
        let Some((wait, waiter)) = waiter else { return Ok(Submitted::Accepted { correlation_id }) };
        let Some(outcome) = waiter.wait(wait.saturating_sub(handed_at.elapsed())).await else {
            return Ok(Submitted::Accepted { correlation_id });
        };
        crate::crash_point!("api.decided");
        check_payload(&outcome, &submission)?;
        metrics::histogram!("throughline_http_sync_seconds").record(handed_at.elapsed());
        conclude(outcome, envelope)
    }

    /// The outcome of an earlier try. Accepting needs no database: where it is away, the command is
    /// handed over again, and the processor sees that it is the same.
    async fn decided_before(&self, submission: &Submission<'_>) -> Result<Option<StoredOutcome>, Problem> {
        let decided = self.decided(submission.command_id, submission.stream_id).await;
        if submission.wait.is_some() { decided } else { Ok(decided.unwrap_or_default()) }
    }

    /// The outcome of a command in its stream, if it was decided.
    pub async fn decided(&self, command_id: Uuid, stream_id: Uuid) -> Result<Option<StoredOutcome>, Problem> {
        let client = self.database.client().await?;
        let partition = destination_partition(stream_id, self.settings.topics.event_partitions);
        Ok(commands::of_stream(&client, &self.names.events(), partition, stream_id, command_id).await?)
    }

    /// What became of a command id in whatever streams of the context, earliest first.
    pub(super) async fn decided_anywhere(&self, command_id: Uuid) -> Result<Vec<StoredOutcome>, Problem> {
        let client = self.database.client().await?;
        Ok(commands::outcomes(&client, &self.names.events(), &[command_id]).await?)
    }
}

fn check_payload(outcome: &StoredOutcome, submission: &Submission<'_>) -> Result<(), Problem> {
    // Outcomes of earlier releases keep the fingerprint of the bytes that this server sent.
    if outcome.payload_hash == submission.fingerprint || outcome.payload_hash == fingerprint(submission.value) {
        return Ok(());
    }
    let detail = format!("command {} was decided with another payload", outcome.command_id);
    Err(Problem::new(COMMAND_ID_REUSED, detail).with_command(outcome.command_id))
}

fn conclude(outcome: StoredOutcome, envelope: &RequestEnvelope) -> Result<Submitted, Problem> {
    if outcome.accepted {
        return Ok(Submitted::Decided(Box::new(outcome)));
    }
    let code = outcome.code.as_deref().unwrap_or("REFUSED");
    let reason = outcome.reason.clone().unwrap_or_default();
    let problem = match code {
        "VERSION_MISMATCH" if envelope.expected_version.is_some() => Problem::new(VERSION_MISMATCH, reason),
        "INVALID_COMMAND" => Problem::new(super::problem::INVALID_COMMAND, reason),
        "COMMAND_ID_REUSED" => Problem::new(COMMAND_ID_REUSED, reason),
        "COMMAND_FAILED" => Problem::new(COMMAND_FAILED, reason),
        code => Problem::refusal(code, reason),
    };
    let problem = match outcome.version {
        Some(version) => problem.with_header(axum::http::header::ETAG, &format!("\"{version}\"")),
        None => problem,
    };
    Err(problem.with_command(outcome.command_id))
}
