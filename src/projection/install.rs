//! Makes a projection's role and, the first time, its live tables. Run by `throughline db apply`.
//!
//! Tables of another version are left alone: they change by a rebuild, on command, never by a start.

use tokio_postgres::{Client, Transaction};

use crate::engine::ReadModel;
use crate::store::{DatabaseRole, StoreError, roles};

/// What [`install`] found or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Installed {
    /// The tables were made.
    Created,
    /// They were there, in this version.
    Current,
    /// They are there in another version: the projection waits for a rebuild.
    NeedsRebuild { live: i32, program: i32 },
}

/// Installs `model`. Idempotent; safe beside another's. `client` is the owner's.
pub async fn install(client: &mut Client, model: ReadModel) -> Result<Installed, StoreError> {
    let role = DatabaseRole::Projector(model.name).name().unwrap_or_default();
    roles::ensure(client, &role, Some("throughline_projector")).await?;
    let tx = client.transaction().await.map_err(StoreError::at("begin an installation"))?;
    tx.execute("select pg_advisory_xact_lock(hashtext('throughline.install'))", &[])
        .await
        .map_err(StoreError::at("lock installations"))?;
    let live = tx
        .query_opt("select version from throughline.projections where name = $1", &[&model.name])
        .await
        .map_err(StoreError::at("look for an installed projection"))?
        .map(|row| row.get::<_, i32>(0));
    let installed = match live {
        Some(live) if live == model.version => Installed::Current,
        Some(live) => Installed::NeedsRebuild { live, program: model.version },
        None => {
            create_tables(&tx, model, super::LIVE, &role).await?;
            create_indexes(&tx, model, super::LIVE).await?;
            tx.execute(
                "insert into throughline.projections (name, version, relations) values ($1, $2, $3)",
                &[&model.name, &model.version, &relations(model)],
            )
            .await
            .map_err(StoreError::at("register a projection"))?;
            Installed::Created
        }
    };
    tx.commit().await.map_err(StoreError::at("commit an installation"))?;
    Ok(installed)
}

/// The tables and views of `model` in the schema `generation`, with the rights on them.
pub(super) async fn create_tables(
    tx: &Transaction<'_>,
    model: ReadModel,
    generation: &str,
    role: &str,
) -> Result<(), StoreError> {
    let mut sql = format!("set local search_path = {generation}, pg_catalog;\n{};\n", model.ddl);
    for table in model.tables {
        sql.push_str(&format!(
            "grant select, insert, update, delete on {generation}.{table} to {role};
             grant select on {generation}.{table} to throughline_reader;\n"
        ));
    }
    for view in model.views {
        sql.push_str(&format!("grant select on {generation}.{view} to throughline_reader, {role};\n"));
    }
    tx.batch_execute(&sql).await.map_err(StoreError::at("create a projection's tables"))
}

/// Names of its tables and views.
pub(super) fn relations(model: ReadModel) -> Vec<&'static str> {
    [model.tables, model.views].concat()
}

/// The secondary indexes.
pub(super) async fn create_indexes(tx: &Transaction<'_>, model: ReadModel, generation: &str) -> Result<(), StoreError> {
    let sql = format!("set local search_path = {generation}, pg_catalog;\n{};", model.indexes.join(";\n"));
    tx.batch_execute(&sql).await.map_err(StoreError::at("create a projection's indexes"))
}
