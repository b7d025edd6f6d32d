//! Rows on their way into a table: one description, sent as arrays or, where there are many, by COPY.
//!
//! Columns are encoded once, as PostgreSQL's binary arrays; a row of a binary COPY is made of the
//! very same bytes. So both ways write the same rows, and an author chooses neither.

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::{SinkExt as _, pin_mut};
use tokio_postgres::Transaction;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

use super::projection::ProjectionError;

/// From so many rows on, COPY is cheaper than a statement over arrays, its round trips included.
const COPY_ROWS_MIN: usize = 1_000;
/// Bytes handed to the connection at a time.
const COPY_BLOCK_BYTES: usize = 256 * 1024;
/// Of a binary array of one dimension: dimensions, flags, element type, length, lower bound.
const ARRAY_HEADER_BYTES: usize = 20;
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COPY_END: i16 = -1;

/// Some items, and the columns that each of them fills.
pub struct Rows<'a, T> {
    items: &'a [T],
    columns: Vec<Column>,
    failed: Option<String>,
}

#[derive(Debug)]
struct Column {
    name: &'static str,
    array: Type,
    encoded: BytesMut,
}

impl<'a, T> Rows<'a, T> {
    /// One row an item.
    pub fn of(items: &'a [T]) -> Self {
        Self { items, columns: Vec::new(), failed: None }
    }

    /// Adds a column. `array` is the array type of exactly the table's column type.
    #[must_use]
    pub fn column<V: ToSql + Sync>(mut self, name: &'static str, array: Type, pick: impl Fn(&'a T) -> V) -> Self {
        if !self.items.is_empty() {
            let values: Vec<V> = self.items.iter().map(pick).collect();
            let mut encoded = BytesMut::new();
            if let Err(error) = values.to_sql_checked(&array, &mut encoded) {
                self.failed.get_or_insert_with(|| format!("column {name} takes no {array}: {error}"));
            }
            self.columns.push(Column { name, array, encoded });
        }
        self
    }

    /// Inserts the rows into `table`, which holds none of them yet.
    pub async fn insert_into(self, tx: &Transaction<'_>, table: &str) -> Result<(), ProjectionError> {
        if self.items.len() >= COPY_ROWS_MIN {
            return self.copy_into(tx, table).await;
        }
        let statement = format!("insert into {table} ({}) select * from {{rows}}", self.names());
        self.run(tx, &statement).await
    }

    /// Runs one statement over all rows: `{rows}` in it stands for a table expression `c` with the
    /// columns added. Without items nothing is run.
    pub async fn run(self, tx: &Transaction<'_>, statement: &str) -> Result<(), ProjectionError> {
        self.sound()?;
        if self.items.is_empty() {
            return Ok(());
        }
        let places: Vec<String> = (1..=self.columns.len()).map(|place| format!("${place}")).collect();
        let rows = format!("unnest({}) c ({})", places.join(", "), self.names());
        let parameters: Vec<(&(dyn ToSql + Sync), Type)> =
            self.columns.iter().map(|column| (column as &(dyn ToSql + Sync), column.array.clone())).collect();
        tx.execute_typed(&statement.replace("{rows}", &rows), &parameters).await?;
        Ok(())
    }

    async fn copy_into(self, tx: &Transaction<'_>, table: &str) -> Result<(), ProjectionError> {
        self.sound()?;
        let sink =
            tx.copy_in::<_, Bytes>(&format!("copy {table} ({}) from stdin (format binary)", self.names())).await?;
        pin_mut!(sink);
        let mut rest: Vec<&[u8]> = self.columns.iter().map(|column| &column.encoded[ARRAY_HEADER_BYTES..]).collect();
        let mut block = BytesMut::with_capacity(COPY_BLOCK_BYTES + COPY_BLOCK_BYTES / 8);
        block.put_slice(COPY_HEADER);
        for _ in self.items {
            block.put_i16(rest.len() as i16);
            for column in &mut rest {
                let (value, others) = column.split_at(value_bytes(column));
                block.put_slice(value);
                *column = others;
            }
            if block.len() >= COPY_BLOCK_BYTES {
                sink.send(block.split().freeze()).await?;
                block.reserve(COPY_BLOCK_BYTES + COPY_BLOCK_BYTES / 8);
            }
        }
        block.put_i16(COPY_END);
        sink.send(block.freeze()).await?;
        sink.finish().await?;
        Ok(())
    }

    fn names(&self) -> String {
        self.columns.iter().map(|column| column.name).collect::<Vec<_>>().join(", ")
    }

    fn sound(&self) -> Result<(), ProjectionError> {
        self.failed.clone().map_or(Ok(()), |reason| Err(ProjectionError::Event(reason)))
    }
}

/// Length of the first value with its length prefix; a null is a prefix alone.
fn value_bytes(column: &[u8]) -> usize {
    match column.split_first_chunk::<4>() {
        Some((prefix, _)) => 4 + usize::try_from(i32::from_be_bytes(*prefix)).unwrap_or(0),
        None => 0,
    }
}

/// The array, as it was encoded.
impl ToSql for Column {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_slice(&self.encoded);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Binary
    }

    to_sql_checked!();
}
