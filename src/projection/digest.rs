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

/// The digest of one partition of a table in `schema`: rows and sum of row hashes.
pub(super) async fn of_partition(
    client: &impl GenericClient,
    table: &str,
    schema: &str,
    partition: i32,
) -> Result<(i64, Option<String>), StoreError> {
    let statement = format!(
        "select count(*), sum(hash_record_extended(t, 0)::numeric)::text from {schema}.{table} t where partition = $1"
    );
    let row = client.query_one(&statement, &[&partition]).await.map_err(StoreError::at("compute a digest"))?;
    Ok((row.get(0), row.get(1)))
}

/// Where two generations differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub table: String,
    pub partition: i32,
    live_rows: i64,
    next_rows: i64,
    /// Why, where that is known.
    pub reason: Option<String>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { table, partition, live_rows, next_rows, reason } = self;
        write!(f, "{table} partition {partition}: ")?;
        if live_rows == next_rows {
            write!(f, "{live_rows} rows in both, with other values")?;
        } else {
            write!(f, "{live_rows} rows live, {next_rows} rebuilt")?;
        }
        match reason {
            Some(reason) => write!(f, " ({reason})"),
            None => write!(f, " (no known reason)"),
        }
    }
}

/// Where two generations differ; none when they are equal. `reason` tells why a partition may.
pub fn differences(live: &Digests, next: &Digests, reason: impl Fn(i32) -> Option<String>) -> Vec<Difference> {
    let keys: std::collections::BTreeSet<_> = live.keys().chain(next.keys()).collect();
    let rows = |digests: &Digests, key| digests.get(key).map_or(0, |(rows, _)| *rows);
    keys.into_iter()
        .filter(|key| live.get(*key) != next.get(*key))
        .map(|key| Difference {
            table: key.0.clone(),
            partition: key.1,
            live_rows: rows(live, key),
            next_rows: rows(next, key),
            reason: reason(key.1),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_table_partition_and_reason() {
        let digests = |rows: i64, sum: &str| Digests::from([(("t".to_owned(), 2), (rows, sum.to_owned()))]);
        let told = |live: &Digests, next: &Digests, reason: Option<&str>| -> Vec<String> {
            differences(live, next, |_| reason.map(str::to_owned)).iter().map(ToString::to_string).collect()
        };
        assert!(told(&digests(3, "9"), &digests(3, "9"), None).is_empty());
        assert_eq!(
            told(&digests(3, "9"), &digests(3, "8"), None),
            ["t partition 2: 3 rows in both, with other values (no known reason)"]
        );
        assert_eq!(
            told(&digests(3, "9"), &Digests::new(), Some("a skip")),
            ["t partition 2: 3 rows live, 0 rebuilt (a skip)"]
        );
    }
}
