//! Identity and place: event ids, fallback command ids, positions, and the partition of a key.

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

/// The id of the `ordinal`-th event (from 0) that `command_id` decided (UUID version 5, RFC 9562).
pub fn event_id(command_id: Uuid, ordinal: usize) -> Uuid {
    let mut name = [0u8; 24];
    name[..16].copy_from_slice(command_id.as_bytes());
    name[16..].copy_from_slice(&(ordinal as u64).to_be_bytes());
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
        let command = Uuid::from_u128(7);
        assert_eq!(event_id(command, 0), event_id(command, 0));
        assert_ne!(event_id(command, 0), event_id(command, 1));
        assert_ne!(id_of_idempotency_key("ab", "c", "k"), id_of_idempotency_key("a", "bc", "k"));
        assert_ne!(command_id_of_record("t", 1, 11), command_id_of_record("t", 11, 1));
    }
}
