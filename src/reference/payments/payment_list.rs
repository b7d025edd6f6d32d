//! `payment_list`: one row a payment, with its order and where it stands.

use std::collections::BTreeMap;

use throughline::engine::{Applied, Projection, ReadModel, Recorded, Rows};
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::domain::{Payment, PaymentEvent};
use throughline::engine::Aggregate as _;

/// The payment list.
pub(super) struct PaymentList;

impl Projection for PaymentList {
    type Event = PaymentEvent;

    fn read_model(&self) -> ReadModel {
        ReadModel {
            name: "payment-list",
            version: 1,
            ddl: "create table payment_list (
                 payment_id uuid primary key,
                 partition  int not null,
                 order_id   uuid not null,
                 status     text not null,
                 currency   text not null,
                 amount     numeric not null,
                 version    bigint not null,
                 updated_at timestamptz not null
             ) with (fillfactor = 85);
             comment on table payment_list is
                 'One row a payment; status requested, authorized, declined, captured, voided or refunded'",
            indexes: &["create index payment_list_by_order on payment_list (order_id)"],
            tables: &["payment_list"],
            views: &[],
        }
    }

    fn apply<'a>(&'a self, tx: &'a Transaction<'a>, batch: &'a [Recorded<PaymentEvent>]) -> Applied<'a> {
        Box::pin(async move {
            // The last event of each payment tells its whole row.
            let last: BTreeMap<Uuid, &Recorded<PaymentEvent>> = batch.iter().map(|one| (one.stream_id, one)).collect();
            let last: Vec<_> = last.into_values().collect();
            let status = |one: &&Recorded<PaymentEvent>| {
                let mut payment = Payment::default();
                payment.evolve(&one.event);
                payment.requested().map_or("", |(_, status)| status.as_str())
            };
            Rows::of(&last)
                .column("payment_id", Type::UUID_ARRAY, |one| one.stream_id)
                .column("partition", Type::INT4_ARRAY, |one| one.position.partition)
                .column("order_id", Type::UUID_ARRAY, |one| one.event.due().order_id)
                .column("status", Type::TEXT_ARRAY, status)
                .column("currency", Type::TEXT_ARRAY, |one| one.event.due().amount.currency().code())
                .column("amount", Type::NUMERIC_ARRAY, |one| one.event.due().amount.decimal())
                .column("version", Type::INT8_ARRAY, |one| one.version)
                .column("updated_at", Type::TIMESTAMPTZ_ARRAY, |one| one.recorded_at)
                .run(
                    tx,
                    "insert into payment_list (payment_id, partition, order_id, status, currency, amount, version, updated_at)
                     select * from {rows}
                     on conflict (payment_id) do update
                     set status = excluded.status, version = excluded.version, updated_at = excluded.updated_at",
                )
                .await
        })
    }
}
