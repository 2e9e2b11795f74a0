//! What queries answer about owners: how many accounts each has, and the total per currency.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{BankAccount, docs, events::Event, values};
use crate::{
    domain::{Described, Grouping, views::number},
    envelope::EventMeta,
};

/// The projection `owners`.
#[derive(Debug)]
pub struct Owners;

/// What of an account must be known to place its next event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Owned {
    owner: String,
    currency: String,
}

/// What a partition has of an owner.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Holding {
    open: i64,
    closed: i64,
    balances_minor: BTreeMap<String, i64>,
}

impl Grouping for Owners {
    type Aggregate = BankAccount;
    type Member = Owned;
    type Part = Holding;
    const NAME: &'static str = "owners";
    const VERSION: u32 = 1;

    fn member(before: Option<Owned>, _: &str, _: &EventMeta, event: &Event) -> Result<Owned, String> {
        match (before, event) {
            (None, Event::AccountOpened(opened)) => {
                Ok(Owned { owner: opened.owner.clone(), currency: opened.currency.clone() })
            }
            (Some(_), Event::AccountOpened(_)) => Err("an account was opened twice".into()),
            (Some(owned), _) => Ok(owned),
            (None, _) => Err("something happened to an account that was never opened".into()),
        }
    }

    fn key(owned: &Owned) -> &str {
        &owned.owner
    }

    fn fold(mut part: Holding, owned: &Owned, event: &Event) -> Result<Holding, String> {
        let by_minor = match event {
            Event::AccountOpened(_) => {
                part.open += 1;
                0
            }
            Event::AccountClosed(_) => {
                part.open -= 1;
                part.closed += 1;
                0
            }
            Event::MoneyDeposited(deposited) => deposited.amount_minor,
            Event::MoneyWithdrawn(withdrawn) => -withdrawn.amount_minor,
            Event::TransferHeld(_) | Event::TransferReleased(_) => 0,
        };
        let balance = part.balances_minor.entry(owned.currency.clone()).or_default();
        *balance = balance.checked_add(by_minor).ok_or("the total is no longer a number")?;
        Ok(part)
    }

    fn is_key(text: &str) -> bool {
        values::is_owner(text)
    }

    fn view(owner: &str, parts: Vec<Holding>) -> Value {
        let (mut open, mut closed, mut balances) = (0, 0, BTreeMap::<String, i128>::new());
        for part in parts {
            open += part.open;
            closed += part.closed;
            for (currency, balance) in part.balances_minor {
                *balances.entry(currency).or_default() += i128::from(balance);
            }
        }
        let currencies: BTreeMap<String, Value> = balances
            .into_iter()
            .map(|(currency, balance)| (currency, json!({"balance_minor": number(balance)})))
            .collect();
        json!({"owner": owner, "accounts": {"open": open, "closed": closed}, "currencies": currencies})
    }

    fn docs() -> Described {
        docs::owner_view()
    }
}
