//! Digests of read tables: equal rows give equal digests, in whatever order they were written.
//!
//! Per table and partition: a row count and the sum of row hashes. PostgreSQL computes both, by
//! value: `1.0` and `1.00` are one number. Column types need a hash function, as all common ones have.

use std::collections::BTreeMap;

use tokio_postgres::GenericClient;

use crate::store::StoreError;

/// Rows and sum of row hashes, by table and partition.
pub type Digests = BTreeMap<(String, i32), (i64, String)>;

/// The digests of `tables` in the schema `generation`.
pub async fn digests(client: &impl GenericClient, tables: &[&str], generation: &str) -> Result<Digests, StoreError> {
    let mut digests = Digests::new();
    for table in tables {
        let statement = format!(
            "select partition, count(*), sum(hash_record_extended(t, 0)::numeric)::text
             from {generation}.{table} t group by partition"
        );
        for row in client.query(&statement, &[]).await.map_err(StoreError::at("compute digests"))? {
            digests.insert(((*table).to_owned(), row.get(0)), (row.get(1), row.get(2)));
        }
    }
    Ok(digests)
}

/// Where two generations differ, for people; empty when they are equal.
pub fn differences(live: &Digests, next: &Digests) -> Vec<String> {
    let keys: std::collections::BTreeSet<_> = live.keys().chain(next.keys()).collect();
    let rows = |digests: &Digests, key| digests.get(key).map_or(0, |(rows, _)| *rows);
    keys.into_iter()
        .filter(|key| live.get(*key) != next.get(*key))
        .map(|key| {
            let (old, new) = (rows(live, key), rows(next, key));
            let what = if old == new {
                format!("{old} rows in both, with other values")
            } else {
                format!("{old} rows live, {new} rebuilt")
            };
            format!("{} partition {}: {what}", key.0, key.1)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_table_and_partition() {
        let digests = |rows: i64, sum: &str| Digests::from([(("t".to_owned(), 2), (rows, sum.to_owned()))]);
        assert!(differences(&digests(3, "9"), &digests(3, "9")).is_empty());
        assert_eq!(
            differences(&digests(3, "9"), &digests(3, "8")),
            ["t partition 2: 3 rows in both, with other values"]
        );
        assert_eq!(differences(&digests(3, "9"), &Digests::new()), ["t partition 2: 3 rows live, 0 rebuilt"]);
    }
}
