//! An account: what may be asked of it, what happens to it, and its rules. Pure: told everything, asks nobody.

use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use throughline::prelude::*;

/// What may be asked. Amounts are whole cents.
#[derive(Debug, Clone, Serialize, Deserialize, Validate, JsonSchema)]
#[serde(deny_unknown_fields, rename_all_fields = "camelCase")]
pub enum AccountCommand {
    Open {
        #[garde(length(min = 1, max = 100))]
        owner: String,
    },
    Deposit {
        #[garde(range(min = 1, max = 1_000_000_000))]
        cents: i64,
    },
    Withdraw {
        #[garde(range(min = 1, max = 1_000_000_000))]
        cents: i64,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all_fields = "camelCase")]
pub enum AccountEvent {
    Opened { owner: String },
    Deposited { cents: i64 },
    Withdrawn { cents: i64 },
}

/// The state that the events come to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Account {
    pub owner: Option<String>,
    pub cents: i64,
}

impl Aggregate for Account {
    type Command = AccountCommand;
    type Event = AccountEvent;

    const SNAPSHOT_VERSION: i16 = 1;

    fn decide(&self, command: &AccountCommand) -> Decision<AccountEvent> {
        match command {
            AccountCommand::Open { .. } if self.owner.is_some() => {
                Err(Refusal::new("ACCOUNT_ALREADY_OPEN", "the account is open"))
            }
            AccountCommand::Open { owner } => Ok(vec![AccountEvent::Opened { owner: owner.clone() }]),
            _ if self.owner.is_none() => Err(Refusal::new("ACCOUNT_NOT_FOUND", "no such account; open it first")),
            AccountCommand::Deposit { cents } => Ok(vec![AccountEvent::Deposited { cents: *cents }]),
            AccountCommand::Withdraw { cents } if *cents > self.cents => {
                Err(Refusal::new("INSUFFICIENT_FUNDS", format!("the account holds {} cents", self.cents)))
            }
            AccountCommand::Withdraw { cents } => Ok(vec![AccountEvent::Withdrawn { cents: *cents }]),
        }
    }

    fn evolve(&mut self, event: &AccountEvent) {
        match event {
            AccountEvent::Opened { owner } => self.owner = Some(owner.clone()),
            AccountEvent::Deposited { cents } => self.cents += cents,
            AccountEvent::Withdrawn { cents } => self.cents -= cents,
        }
    }
}

#[cfg(test)]
mod tests {
    use throughline::testing::{conforms, given};

    use super::*;

    #[test]
    fn it_conforms() {
        let open = || AccountCommand::Open { owner: "ann".into() };
        let cents = 500;
        let paid = [open(), open(), AccountCommand::Deposit { cents }, AccountCommand::Withdraw { cents }];
        conforms::<crate::Bank>([paid.to_vec(), vec![AccountCommand::Withdraw { cents }]]);
    }

    #[test]
    fn nobody_withdraws_more_than_there_is() {
        let opened = || AccountEvent::Opened { owner: "ann".into() };
        let paid_in = || AccountEvent::Deposited { cents: 500 };
        let withdraw = |cents| AccountCommand::Withdraw { cents };
        given::<Account>([opened(), paid_in()]).when(&withdraw(500)).then([AccountEvent::Withdrawn { cents: 500 }]);
        given::<Account>([opened(), paid_in()]).when(&withdraw(501)).then_refused("INSUFFICIENT_FUNDS");
        given::<Account>([]).when(&withdraw(1)).then_refused("ACCOUNT_NOT_FOUND");
    }
}
