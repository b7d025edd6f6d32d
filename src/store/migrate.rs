//! Migrations: numbered SQL files, applied once each, in order, under one lock.

use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use super::{StoreError, roles};

/// One numbered step. Never edited once released: add another.
pub struct Migration {
    pub number: i32,
    pub name: &'static str,
    sql: &'static str,
}

/// All steps of this program, ascending.
pub const MIGRATIONS: &[Migration] = &[
    Migration { number: 1, name: "store", sql: include_str!("migrations/0001_store.sql") },
    Migration { number: 2, name: "roles", sql: include_str!("migrations/0002_roles.sql") },
    Migration { number: 3, name: "relay", sql: include_str!("migrations/0003_relay.sql") },
    Migration { number: 4, name: "projections", sql: include_str!("migrations/0004_projections.sql") },
    Migration { number: 5, name: "event headers", sql: include_str!("migrations/0005_event_headers.sql") },
    Migration { number: 6, name: "generations", sql: include_str!("migrations/0006_generations.sql") },
    Migration { number: 7, name: "one at a time", sql: include_str!("migrations/0007_one_at_a_time.sql") },
    Migration { number: 8, name: "time", sql: include_str!("migrations/0008_time.sql") },
    Migration { number: 9, name: "any bytes", sql: include_str!("migrations/0009_any_bytes.sql") },
    Migration { number: 10, name: "presence", sql: include_str!("migrations/0010_presence.sql") },
    Migration {
        number: 11,
        name: "projection sequences",
        sql: include_str!("migrations/0011_projection_sequences.sql"),
    },
    Migration { number: 12, name: "ids", sql: include_str!("migrations/0012_ids.sql") },
    Migration { number: 15, name: "events by partition", sql: include_str!("migrations/0015_events_by_partition.sql") },
    Migration { number: 16, name: "read side told", sql: include_str!("migrations/0016_read_side_told.sql") },
    Migration { number: 17, name: "pieces and gaps", sql: include_str!("migrations/0017_pieces_and_gaps.sql") },
    Migration { number: 18, name: "processes", sql: include_str!("migrations/0018_processes.sql") },
    Migration { number: 19, name: "audits", sql: include_str!("migrations/0019_audits.sql") },
];

/// Group roles that the steps give rights to.
const ROLES: [&str; 8] = [
    "throughline_writer",
    "throughline_relay",
    "throughline_projector",
    "throughline_reader",
    "throughline_maintenance",
    "throughline_presence",
    "throughline_process",
    "throughline_auditor",
];

/// Serializes migrating processes of one database. Any constant would do; never change it.
const LOCK: i64 = 0x7468_726f_7567_686c;

/// Applies what is missing, each step in its own transaction. Returns the names applied.
///
/// # Errors
/// A database that holds a step this program does not know (it is newer), or one whose text
/// differs, is left alone and explained.
pub async fn apply(client: &mut Client) -> Result<Vec<&'static str>, StoreError> {
    check_encoding(client).await?;
    for role in ROLES {
        roles::ensure(client, role, None).await?;
    }
    client
        .batch_execute(&format!("select pg_advisory_lock({LOCK})"))
        .await
        .map_err(StoreError::at("lock migrations"))?;
    let applied = apply_locked(client).await;
    client
        .batch_execute(&format!("select pg_advisory_unlock({LOCK})"))
        .await
        .map_err(StoreError::at("unlock migrations"))?;
    applied
}

async fn apply_locked(client: &mut Client) -> Result<Vec<&'static str>, StoreError> {
    client
        .batch_execute(
            "create schema if not exists throughline;
             create table if not exists throughline.migrations (
                 number int primary key, name text not null, sha256 text not null,
                 applied_at timestamptz not null default now())",
        )
        .await
        .map_err(StoreError::at("create the table of migrations"))?;
    let mut applied = Vec::new();
    for migration in missing(client).await? {
        let transaction = client.transaction().await.map_err(StoreError::at("begin a migration"))?;
        transaction.batch_execute(migration.sql).await.map_err(StoreError::at(migration.name))?;
        transaction
            .execute(
                "insert into throughline.migrations (number, name, sha256) values ($1, $2, $3)",
                &[&migration.number, &migration.name, &fingerprint(migration)],
            )
            .await
            .map_err(StoreError::at("record a migration"))?;
        transaction.commit().await.map_err(StoreError::at("commit a migration"))?;
        applied.push(migration.name);
    }
    Ok(applied)
}

/// The steps that the database lacks; an error where it holds a step that this program lacks.
pub async fn missing(client: &Client) -> Result<Vec<&'static Migration>, StoreError> {
    let known: bool = client
        .query_one("select to_regclass('throughline.migrations') is not null", &[])
        .await
        .map_err(StoreError::at("look for migrations"))?
        .get(0);
    if !known {
        return Ok(MIGRATIONS.iter().collect());
    }
    let rows = client
        .query("select number, name, sha256 from throughline.migrations order by number", &[])
        .await
        .map_err(StoreError::at("read migrations"))?;
    let mut missing: Vec<&'static Migration> = MIGRATIONS.iter().collect();
    for row in rows {
        let (number, name, sha256): (i32, String, String) = (row.get(0), row.get(1), row.get(2));
        let Some(index) = missing.iter().position(|migration| migration.number == number) else {
            return Err(StoreError::Schema(format!(
                "the database was migrated by a newer version of this program: it holds migration {number} \
                 ({name}), this program knows {} at most. Run that version, or a newer one.",
                MIGRATIONS.last().map_or(0, |last| last.number)
            )));
        };
        let migration = missing.remove(index);
        if fingerprint(migration) != sha256 {
            return Err(StoreError::Schema(format!(
                "migration {number} ({name}) of this program differs from the one that the database holds. \
                 A released migration is never edited: restore it and add another step."
            )));
        }
    }
    Ok(missing)
}

/// Texts of events and commands are Unicode: a database of another encoding would refuse some of them, or
/// (SQL_ASCII) keep whatever bytes it is given.
async fn check_encoding(client: &Client) -> Result<(), StoreError> {
    let statement = "select datname, pg_encoding_to_char(encoding) from pg_database where datname = current_database()";
    let row = client.query_one(statement, &[]).await.map_err(StoreError::at("read the database's encoding"))?;
    let (database, encoding): (String, String) = (row.get(0), row.get(1));
    if encoding == "UTF8" {
        return Ok(());
    }
    Err(StoreError::Schema(format!(
        "the database {database} has the encoding {encoding}, and texts are kept in UTF8 only. An encoding is fixed at \
         creation: `create database {database} encoding 'UTF8' template template0`, under another name where this one \
         is in use, and point DATABASE_URL at it."
    )))
}

/// Fails unless the encoding fits and every step is applied, and says what to run.
pub async fn check(client: &Client) -> Result<(), StoreError> {
    check_encoding(client).await?;
    let missing = missing(client).await?;
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|migration| migration.name).collect();
    Err(StoreError::Schema(format!(
        "the database lacks {} migration(s): {}. Run `throughline db apply`.",
        names.len(),
        names.join(", ")
    )))
}

fn fingerprint(migration: &Migration) -> String {
    Sha256::digest(migration.sql.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
