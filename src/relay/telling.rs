//! What the relay's partitions are doing, told for people and probes.
//!
//! Found out from the loop's own state at each turn, so that no way through the loop can forget to tell; said
//! when it changes. Standing is told where the alarm is raised.

use std::time::Duration;

use super::partition::{Partition, Phase};
use super::publishing_loop::PublishingLoop;
use crate::health::PartitionState;

impl PublishingLoop {
    /// Tells what changed since the last turn. What keeps everything waiting for longer than Kafka may be silent
    /// makes every partition stand that has no reason of its own.
    pub(super) fn tell(&mut self) {
        let patience = Duration::from_millis(self.settings.relay.silence_ms);
        if let Some(away) = self.spell.away().filter(|away| away.since.elapsed() >= patience) {
            for (key, ours) in self.partitions.iter_mut().filter(|(_, ours)| ours.alarm.is_none()) {
                ours.told = Some(PartitionState::Standing);
                self.told.standing(&ours.target.topic, key.partition, &away.reason, None);
            }
            return;
        }
        for (key, ours) in &mut self.partitions {
            let now = doing(ours);
            if ours.told == now {
                continue;
            }
            ours.told = now;
            match now {
                Some(PartitionState::Running) => self.told.running(&ours.target.topic, key.partition),
                Some(_) => self.told.claimed(&ours.target.topic, key.partition),
                None => {}
            }
        }
    }
}

/// None while an alarm says more.
fn doing(ours: &Partition) -> Option<PartitionState> {
    match ours.state {
        _ if ours.alarm.is_some() => None,
        Phase::Streaming => Some(PartitionState::Running),
        Phase::Unaligned { .. } | Phase::Aligning | Phase::Halted { .. } | Phase::Lost { .. } => {
            Some(PartitionState::Claimed)
        }
    }
}

/// An alarm's text ends in the next step: what is wrong, and what helps.
pub(super) fn reason_and_cure(text: &str) -> (&str, Option<&str>) {
    let begins = |(at, _): &(usize, &str)| text[at + 2..].starts_with(|c: char| c.is_uppercase() || c == '`');
    match text.match_indices(". ").find(begins) {
        Some((at, _)) => (&text[..at], Some(&text[at + 2..])),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_told_as_reason_and_cure() {
        let cases = [
            (
                "seq 3 has 1.5 MB. Raise it, and restart. Then wait",
                "seq 3 has 1.5 MB",
                Some("Raise it, and restart. Then wait"),
            ),
            ("no answer from 127.0.0.1. `dev up` helps", "no answer from 127.0.0.1", Some("`dev up` helps")),
            ("nothing to do about it", "nothing to do about it", None),
        ];
        for (text, reason, cure) in cases {
            assert_eq!(reason_and_cure(text), (reason, cure));
        }
    }
}
