//! Places in the history of a topic, as `--from` names them, and the spans that begin there.

use std::str::FromStr;

use super::WrongUsage;
use crate::store::Destination;
use crate::store::events::Span;

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Beginning,
    End,
    /// With this sequence number.
    At {
        partition: i32,
        seq: i64,
    },
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "say beginning, end, or PARTITION:SEQ such as 3:1200".to_owned();
        match text {
            "beginning" => Ok(Self::Beginning),
            "end" => Ok(Self::End),
            place => {
                let (partition, seq) = place.split_once(':').ok_or_else(wrong)?;
                let (partition, seq) =
                    (partition.parse().map_err(|_| wrong())?, seq.parse::<i64>().map_err(|_| wrong())?);
                if partition < 0 || seq < 1 { Err(wrong()) } else { Ok(Self::At { partition, seq }) }
            }
        }
    }
}

/// The spans that `from` names, up to `upto` (by partition).
///
/// # Errors
/// A partition that is not there, or named twice, or a place beside `beginning` or `end`.
pub(super) fn spans(from: &[Place], destination: &Destination, last: &[i64], upto: i64) -> anyhow::Result<Vec<Span>> {
    if let [only @ (Place::Beginning | Place::End)] = from {
        let after = |partition: usize| if *only == Place::End { last[partition] } else { 0 };
        return Ok((0..last.len())
            .map(|partition| Span { partition: partition as i32, after: after(partition), upto })
            .collect());
    }
    let mut spans: Vec<Span> = Vec::new();
    for one in from {
        let Place::At { partition, seq } = *one else {
            return Err(WrongUsage("--from takes beginning or end alone, or places PARTITION:SEQ".into()).into());
        };
        if partition >= destination.partitions {
            anyhow::bail!(
                "{} has partitions 0 to {}; there is no {partition}",
                destination.name,
                destination.partitions - 1
            );
        }
        if spans.iter().any(|span| span.partition == partition) {
            return Err(WrongUsage(format!("--from names partition {partition} twice")).into());
        }
        spans.push(Span { partition, after: seq - 1, upto });
    }
    Ok(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_word_or_a_partition_and_a_number() {
        assert_eq!("beginning".parse(), Ok(Place::Beginning));
        assert_eq!("3:1200".parse(), Ok(Place::At { partition: 3, seq: 1200 }));
        for wrong in ["", "3", "3:", "3:0", "-1:4", "a:b", "End"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn spans_come_from_one_word_or_from_places() {
        let destination = Destination { id: 1, name: "t".into(), partitions: 2 };
        let span = |partition, after| Span { partition, after, upto: 9 };
        let of = |from: &[Place]| spans(from, &destination, &[5, 7], 9);
        assert_eq!(of(&[Place::Beginning]).unwrap(), [span(0, 0), span(1, 0)]);
        assert_eq!(of(&[Place::End]).unwrap(), [span(0, 5), span(1, 7)]);
        let place = Place::At { partition: 1, seq: 3 };
        assert_eq!(of(&[place]).unwrap(), [span(1, 2)]);
        for wrong in [&[place, place][..], &[Place::End, place], &[Place::Beginning, Place::End]] {
            assert!(of(wrong).unwrap_err().is::<WrongUsage>(), "{wrong:?}");
        }
        assert!(
            !of(&[Place::At { partition: 2, seq: 1 }]).unwrap_err().is::<WrongUsage>(),
            "another store may have it"
        );
    }
}
