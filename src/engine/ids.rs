//! Identity and place: how an id is read, event ids, fallback command ids, positions, and the partition of a key.
//!
//! One reading for every door: body, key, header, path and command line. The scope of a command id is its context
//! and its stream; what is derived from one carries that scope, or two streams would share an id.

use uuid::Uuid;

/// Where an event stands in its destination topic: a partition and a dense sequence number in it.
///
/// `seq` starts at 1 and has no holes; commit order is `seq` order (design decision D4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// Kafka partition of the events topic.
    pub partition: i32,
    /// Sequence number within the partition, from 1.
    pub seq: i64,
}

/// Name space of the ids that we derive. Never change it: replays must give the same ids.
const NAMESPACE: Uuid = Uuid::from_u128(0x8d5c_7b1e_52f4_5f0b_9d43_6a1f_0e27_c3b9);

/// Why a text is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdFault {
    /// Anything else, other spellings of a UUID among them: without hyphens, in braces, as a URN.
    #[error("must be a UUID such as \"0198c0de-7a3e-7000-8000-000000000001\"")]
    Malformed,
    /// The nil UUID is what a forgotten field holds: strangers would share it, so it names nothing.
    #[error("must not be the nil UUID, which names nothing")]
    Nil,
}

/// Reads an id of a command or a stream: hyphenated text in either case, and not nil.
pub fn parse_id(text: &str) -> Result<Uuid, IdFault> {
    let id = parse_uuid(text).ok_or(IdFault::Malformed)?;
    if id.is_nil() { Err(IdFault::Nil) } else { Ok(id) }
}

/// Reads a UUID of somebody else's books, such as a product's: the same spelling, and nil is theirs to judge.
pub fn parse_uuid(text: &str) -> Option<Uuid> {
    // No other spelling has this length.
    (text.len() == uuid::fmt::Hyphenated::LENGTH).then(|| Uuid::try_parse(text).ok()).flatten()
}

/// The stream that a record's key names. Only the text that [`destination_partition`] is computed from will do:
/// another spelling of the same id is another key to Kafka, and goes to another partition.
pub fn parse_key(key: &[u8]) -> Option<Uuid> {
    let id = parse_id(std::str::from_utf8(key).ok()?).ok()?;
    (!key.iter().any(u8::is_ascii_uppercase)).then_some(id)
}

/// The id of the event that `command_id` made version `version` of a stream (UUID version 5, RFC 9562).
///
/// A version is given once, so no two events share an id, whatever a command id is used for: for several streams, in
/// two contexts, or once more after its outcome was forgotten. Stored events keep the id that they were stored with;
/// readers take it from there and never compute it.
pub fn event_id(context: &str, stream_id: Uuid, version: i64, command_id: Uuid) -> Uuid {
    derived("event", context, stream_id, &[&version.to_be_bytes(), command_id.as_bytes()])
}

/// The id of the record that tells what became of `command_id` in one stream: the same each time it is told.
pub fn result_id(context: &str, stream_id: Uuid, command_id: Uuid) -> Uuid {
    derived("result", context, stream_id, &[command_id.as_bytes()])
}

/// The id of the command that `cause` made an instance of a process send as its `ordinal`-th, from 0.
pub fn process_command_id(process: &str, instance: Uuid, cause: Uuid, ordinal: u32) -> Uuid {
    derived("process-command", process, instance, &[cause.as_bytes(), &ordinal.to_be_bytes()])
}

/// The id of a deadline that `cause` made an instance of a process set: what it causes is told by it.
pub fn deadline_id(process: &str, instance: Uuid, cause: Uuid, name: &str) -> Uuid {
    derived("deadline", process, instance, &[cause.as_bytes(), name.as_bytes()])
}

/// The names of one `kind` differ from each other in their parts, and from those of another kind in how they begin.
fn derived(kind: &str, context: &str, stream_id: Uuid, parts: &[&[u8]]) -> Uuid {
    let mut name = Vec::with_capacity(96);
    name.extend_from_slice(kind.as_bytes());
    name.push(b'/');
    name.extend_from_slice(context.as_bytes());
    // No context's name holds a NUL, and what follows is of fixed length, but for a name at the end.
    name.push(0);
    name.extend_from_slice(stream_id.as_bytes());
    parts.iter().for_each(|part| name.extend_from_slice(part));
    Uuid::new_v5(&NAMESPACE, &name)
}

/// The command id of a record that carries none: stable across redelivery of the same record.
pub fn command_id_of_record(topic: &str, partition: i32, offset: i64) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("{topic}/{partition}/{offset}").as_bytes())
}

/// The id that an idempotency key fixes within the scope of one caller.
pub fn id_of_idempotency_key(caller: &str, purpose: &str, key: &str) -> Uuid {
    // Length prefixes keep ("ab","c") and ("a","bc") apart.
    let name = format!("{}:{caller}{}:{purpose}{key}", caller.len(), purpose.len());
    Uuid::new_v5(&NAMESPACE, name.as_bytes())
}

/// The correlation id of a command whose sender chose its command id and named none.
pub fn correlation_id_of_command(command_id: Uuid) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("correlation/{command_id}").as_bytes())
}

/// The partition of `stream_id` among `partitions`, as Kafka's Java default partitioner computes it
/// for the id's text form: `toPositive(murmur2(key)) mod N`.
pub fn destination_partition(stream_id: Uuid, partitions: i32) -> i32 {
    let mut text = [0u8; uuid::fmt::Hyphenated::LENGTH];
    stream_id.hyphenated().encode_lower(&mut text);
    ((murmur2(&text) & 0x7fff_ffff) % partitions as u32) as i32
}

/// Kafka's variant of MurmurHash2 (`org.apache.kafka.common.utils.Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let tail = words.remainder();
    if !tail.is_empty() {
        for (shift, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * shift);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of Apache Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn murmur2_equals_kafkas() {
        let vectors: [(&[u8], i32); 7] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
            (b"", 275_646_681),
        ];
        for (key, expected) in vectors {
            assert_eq!(murmur2(key) as i32, expected, "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn derived_ids_are_stable_and_distinct() {
        let id = Uuid::from_u128;
        assert_eq!(event_id("bank", id(1), 1, id(7)), event_id("bank", id(1), 1, id(7)));
        let ids = [
            event_id("bank", id(1), 1, id(7)),
            event_id("bank", id(1), 2, id(7)),
            event_id("bank", id(2), 1, id(7)),
            event_id("payments", id(1), 1, id(7)),
            event_id("bank", id(1), 1, id(8)),
            result_id("bank", id(1), id(7)),
            result_id("bank", id(2), id(7)),
            result_id("payments", id(1), id(7)),
            process_command_id("bank", id(1), id(7), 0),
            process_command_id("bank", id(1), id(7), 1),
            process_command_id("bank", id(1), id(8), 0),
            process_command_id("bank", id(2), id(7), 0),
            process_command_id("other", id(1), id(7), 0),
            deadline_id("bank", id(1), id(7), "answer"),
            deadline_id("bank", id(1), id(7), "answers"),
        ];
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "{ids:?}");
        assert_ne!(id_of_idempotency_key("ab", "c", "k"), id_of_idempotency_key("a", "bc", "k"));
        assert_ne!(command_id_of_record("t", 1, 11), command_id_of_record("t", 11, 1));
    }
    #[test]
    fn an_id_has_one_spelling_and_a_key_one_text() {
        const ID: &str = "0198c0de-7a3e-7000-8000-00000000000a";
        let id = Uuid::try_parse(ID).unwrap();
        let upper = ID.to_uppercase();
        assert_eq!((parse_id(ID), parse_id(&upper)), (Ok(id), Ok(id)));
        assert_eq!((parse_key(ID.as_bytes()), parse_key(upper.as_bytes())), (Some(id), None));
        for other in [&id.simple().to_string(), &id.urn().to_string(), &id.braced().to_string(), "", "x", &ID[1..]] {
            assert_eq!(parse_id(other), Err(IdFault::Malformed), "{other}");
            assert_eq!(parse_key(other.as_bytes()), None, "{other}");
        }
        for spaced in [format!(" {ID}"), format!("{ID}\n"), format!("{ID}\0")] {
            assert_eq!(parse_id(&spaced), Err(IdFault::Malformed), "{spaced:?}");
        }
        let nil = Uuid::nil().to_string();
        assert_eq!((parse_id(&nil), parse_key(nil.as_bytes())), (Err(IdFault::Nil), None));
        assert_eq!(parse_uuid(&nil), Some(Uuid::nil()));
        assert_eq!(parse_key(&[0xff; 36]), None);
    }
}
