//! A bank on Throughline: one context, and everything else is given.

mod account;

use std::process::ExitCode;

use throughline::prelude::*;

/// The context of accounts.
struct Bank;

impl PlainContext for Bank {
    type Aggregate = account::Account;

    const NAME: &'static str = "bank";
    const NAMESPACE: &'static str = "acme.bank";
    const STREAM_ID_FIELD: &'static str = "accountId";
    const SCHEMAS: Schemas = Schemas {
        published: &[
            Published { event_type: "Opened", version: 1, definition: include_str!("../schemas/Opened.v1.avsc") },
            Published { event_type: "Deposited", version: 1, definition: include_str!("../schemas/Deposited.v1.avsc") },
            Published { event_type: "Withdrawn", version: 1, definition: include_str!("../schemas/Withdrawn.v1.avsc") },
        ],
        upcasters: || Upcasters::new(&[]),
        lock: include_str!("../schemas/schemas.lock"),
    };
}

fn main() -> ExitCode {
    let bank = Context::of(Bank)
        .projection(StateTable::<Bank>::new("accounts", 1))
        .projection(HistoryTable::<Bank>::new("account_history", 1))
        .routes(|| {
            Routes::<Bank>::new()
                .command("/api/accounts", "Open")
                .command("/api/accounts/{accountId}/deposits", "Deposit")
                .command("/api/accounts/{accountId}/withdrawals", "Withdraw")
                .list("/api/accounts", "accounts")
                .state("/api/accounts/{accountId}", "accounts")
                .history("/api/accounts/{accountId}", "account_history")
                .done()
        });
    App::new("Acme").context(bank).main()
}
