//! What queries answer about bank accounts.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{docs, events::Event, values};
use crate::{
    domain::{
        Counted, Filter, Projection, Sort, Statement,
        views::{self, number},
    },
    envelope::EventMeta,
};

/// The projection `bank-accounts`.
#[derive(Debug)]
pub struct BankAccounts;

/// Whether an account can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It can.
    Open,
    /// Not any more.
    Closed,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Open, Self::Closed];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

/// A bank account as queries answer it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AccountView {
    /// The account's id.
    pub id: String,
    /// Who owns it.
    #[schema(schema_with = docs::owner)]
    pub owner: String,
    /// ISO 4217 code.
    #[schema(schema_with = docs::currency)]
    pub currency: String,
    /// Minor units.
    pub balance_minor: i64,
    /// Open or closed.
    #[schema(schema_with = docs::status)]
    pub status: Status,
    /// The last sequence that is in this view.
    pub version: u64,
    /// When it was opened.
    #[serde(serialize_with = "views::micros")]
    #[schema(value_type = String, format = DateTime)]
    pub opened_at: Timestamp,
    /// When the last event happened.
    #[serde(serialize_with = "views::micros")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl Projection for BankAccounts {
    type Event = Event;
    type View = AccountView;
    const NAME: &'static str = "bank-accounts";
    const VERSION: u32 = 1;
    const SORTS: &'static [Sort<AccountView>] = &[
        Sort { name: "balance_minor", key: |view| view.balance_minor },
        Sort { name: "updated_at", key: |view| view.updated_at.as_microsecond() },
        Sort { name: "opened_at", key: |view| view.opened_at.as_microsecond() },
        Sort { name: "id", key: |_| 0 },
    ];
    const FILTERS: &'static [Filter<AccountView>] = &[
        Filter { name: "owner", value: |view| &view.owner, accepts: values::is_owner, selective: true, fixed: true },
        Filter {
            name: "status",
            value: |view| view.status.name(),
            accepts: |text| Status::ALL.iter().any(|status| status.name() == text),
            selective: false,
            fixed: false,
        },
        Filter {
            name: "currency",
            value: |view| &view.currency,
            accepts: |text| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase()),
            selective: false,
            fixed: true,
        },
    ];

    const STATEMENT: Option<Statement<AccountView, Event>> = Some(Statement {
        currency: |view| &view.currency,
        balance_minor: |view| view.balance_minor,
        entry: |event| match event {
            Event::MoneyDeposited(deposited) => Some((deposited.amount_minor, deposited.reference.as_deref())),
            Event::MoneyWithdrawn(withdrawn) => Some((-withdrawn.amount_minor, withdrawn.reference.as_deref())),
            Event::AccountOpened(_) | Event::AccountClosed(_) | Event::TransferHeld(_) | Event::TransferReleased(_) => {
                None
            }
        },
    });

    fn fold(view: Option<AccountView>, id: &str, meta: &EventMeta, event: &Event) -> Result<AccountView, String> {
        let view = match (view, event) {
            (None, Event::AccountOpened(opened)) => AccountView {
                id: id.to_owned(),
                owner: opened.owner.clone(),
                currency: opened.currency.clone(),
                balance_minor: 0,
                status: Status::Open,
                version: 0,
                opened_at: meta.time,
                updated_at: meta.time,
            },
            (Some(view), Event::MoneyDeposited(deposited)) => moved(view, deposited.amount_minor)?,
            (Some(view), Event::MoneyWithdrawn(withdrawn)) => moved(view, -withdrawn.amount_minor)?,
            (Some(view), Event::AccountClosed(_)) => AccountView { status: Status::Closed, ..view },
            (Some(view), Event::TransferHeld(_) | Event::TransferReleased(_)) => view,
            (Some(_), Event::AccountOpened(_)) => return Err("an account was opened twice".into()),
            (None, _) => return Err("something happened to an account that was never opened".into()),
        };
        Ok(AccountView { version: meta.sequence, updated_at: meta.time, ..view })
    }

    fn count(event: &Event, after: &AccountView, counted: &mut Counted) {
        let currency = &after.currency;
        match event {
            Event::AccountOpened(_) => counted.add(&["accounts", "open"], 1),
            Event::AccountClosed(_) => {
                counted.add(&["accounts", "open"], -1);
                counted.add(&["accounts", "closed"], 1);
            }
            Event::MoneyDeposited(deposited) => {
                counted.add(&["currencies", currency, "deposited_minor"], deposited.amount_minor.into());
                counted.add(&["currencies", currency, "balance_minor"], deposited.amount_minor.into());
            }
            Event::MoneyWithdrawn(withdrawn) => {
                counted.add(&["currencies", currency, "withdrawn_minor"], withdrawn.amount_minor.into());
                counted.add(&["currencies", currency, "balance_minor"], -i128::from(withdrawn.amount_minor));
            }
            Event::TransferHeld(_) | Event::TransferReleased(_) => {}
        }
        counted.add(&["currencies", currency, "events"], 1);
    }

    fn stats(counters: &BTreeMap<String, i128>) -> Value {
        let accounts = |status| number(counters.get(&format!("accounts/{status}")).copied().unwrap_or(0));
        let mut currencies = Map::new();
        for key in counters.keys() {
            let Some(currency) = key.strip_prefix("currencies/").and_then(|rest| rest.split('/').next()) else {
                continue;
            };
            currencies.entry(currency).or_insert_with(|| {
                let of = |name| number(counters.get(&format!("currencies/{currency}/{name}")).copied().unwrap_or(0));
                json!({
                    "deposited_minor": of("deposited_minor"),
                    "withdrawn_minor": of("withdrawn_minor"),
                    "balance_minor": of("balance_minor"),
                    "events": of("events"),
                })
            });
        }
        json!({"accounts": {"open": accounts("open"), "closed": accounts("closed")}, "currencies": currencies})
    }

    fn version(view: &AccountView) -> u64 {
        view.version
    }
}

fn moved(view: AccountView, by_minor: i64) -> Result<AccountView, String> {
    let balance_minor = view.balance_minor.checked_add(by_minor).ok_or("the balance is no longer a number")?;
    Ok(AccountView { balance_minor, ..view })
}
