//! Roles of the cluster: made once, by whoever comes first.
//!
//! Other databases of the cluster, and parallel runs, make the same ones. Advisory locks end at the
//! database, so nothing but the unique index of the catalogue serializes them. Each step is therefore
//! a transaction of its own: within one, a session that had to wait for another's `create role` goes
//! on believing that the role does not exist.

use tokio_postgres::Client;

use super::StoreError;

/// Makes `role`, without login, a member of `member_of` where that is given, and lets the current
/// user take it. Idempotent. The names are the program's own.
pub async fn ensure(client: &Client, role: &str, member_of: Option<&str>) -> Result<(), StoreError> {
    let create = format!(
        "do $$ begin
             if not exists (select from pg_roles where rolname = '{role}') then
                 create role {role} nologin;
             end if;
         exception when duplicate_object or unique_violation then null;
         end $$"
    );
    client.batch_execute(&create).await.map_err(StoreError::at("create a role"))?;
    let memberships = member_of.map(|group| (group, role.to_owned())).into_iter();
    for (group, member) in memberships.chain([(role, "current_user".to_owned())]) {
        let subject = if member == "current_user" { member.clone() } else { format!("'{member}'") };
        let grant = format!(
            "do $$ begin
                 if not pg_has_role({subject}, '{group}', 'member') then
                     grant {group} to {member};
                 end if;
             exception when unique_violation then null;
             end $$"
        );
        client.batch_execute(&grant).await.map_err(StoreError::at("grant a role"))?;
    }
    Ok(())
}
