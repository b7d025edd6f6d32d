//! Databases of earlier releases, brought up to date with what they hold. Each test applies the steps before one
//! of ours, writes what that release wrote, applies the rest, and looks at what it means then.

#[path = "../harness/mod.rs"]
mod harness;

mod events;
mod ids;
mod letters;
mod sequences;
mod time;

use harness::Harness;
use sha2::{Digest, Sha256};
use throughline::store::migrate;
use tokio_postgres::Client;

/// A database as the release left it whose last step was the one before `number`; migrating goes on from there.
async fn before(name: &str, number: i32) -> (Harness, Client) {
    let harness = Harness::bare(name).await;
    let client = harness.client().await;
    client
        .batch_execute(
            "create schema throughline;
             create table throughline.migrations (
                 number int primary key, name text not null, sha256 text not null,
                 applied_at timestamptz not null default now());
             do $$ declare wanted text; begin
                 foreach wanted in array array['writer', 'relay', 'projector', 'reader', 'maintenance', 'presence', 'process'] loop
                     begin
                         execute format('create role throughline_%s nologin', wanted);
                     exception when duplicate_object or unique_violation then null;
                     end;
                 end loop;
             end $$",
        )
        .await
        .expect("a table of migrations");
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../store/migrations");
    for migration in migrate::MIGRATIONS.iter().filter(|migration| migration.number < number) {
        let prefix = format!("{:04}_", migration.number);
        let file = std::fs::read_dir(&directory)
            .expect("the steps")
            .map(|entry| entry.expect("a file").path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
            .expect("a step's file");
        let sql = std::fs::read_to_string(file).expect("a step");
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{}: {error:?}", migration.name));
        let sha256: String = Sha256::digest(&sql).iter().map(|byte| format!("{byte:02x}")).collect();
        let done = "insert into throughline.migrations (number, name, sha256) values ($1, $2, $3)";
        client.execute(done, &[&migration.number, &migration.name, &sha256]).await.expect("recorded");
    }
    (harness, client)
}

/// Applies what lacks.
async fn migrated(client: &mut Client) {
    migrate::apply(client).await.unwrap_or_else(|error| panic!("{error}: {error:?}"));
}

/// One column of text, one line a row.
async fn lines(client: &Client, sql: &str) -> Vec<String> {
    client
        .query(sql, &[])
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
        .iter()
        .map(|row| row.get::<_, Option<String>>(0).unwrap_or_else(|| "null".to_owned()))
        .collect()
}

/// The error code of what must fail.
async fn refused(client: &Client, sql: &str) -> String {
    let error = client.batch_execute(sql).await.expect_err(sql);
    error.code().map(|code| code.code().to_owned()).unwrap_or_default()
}
