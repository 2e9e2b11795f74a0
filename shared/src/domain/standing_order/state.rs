//! What a decision needs to know of a standing order's past.

use jiff::{Span, Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};

use super::events::Event;

/// How long from one transfer to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Every {
    /// For trying it out.
    Minute,
    /// At the same time in UTC.
    Day,
    /// On the same day, or the month's last.
    Month,
}

/// A standing order as the rules see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Order {
    /// Nothing has happened yet.
    #[default]
    Unknown,
    /// Transfers are requested.
    Active {
        /// What was asked for.
        #[serde(flatten)]
        terms: Terms,
        /// Transfers requested so far.
        executed: u32,
    },
    /// No more follow.
    Cancelled,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Terms {
    /// Id of the account that pays.
    pub from: String,
    /// Id of the account that is paid.
    pub to: String,
    /// Minor units.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// What for.
    pub reference: Option<String>,
    /// How long from one to the next.
    pub every: Every,
    /// When the first one is due.
    pub first_at: Timestamp,
}

impl Terms {
    /// When a transfer is due, 1 for the first one; `None` beyond the last day that there is.
    pub fn due(&self, number: u32) -> Option<Timestamp> {
        let times = i64::from(number) - 1;
        let span = match self.every {
            Every::Minute => Span::new().try_minutes(times),
            Every::Day => Span::new().try_days(times),
            // Each counted from the first one: a short month must not shorten those after it.
            Every::Month => Span::new().try_months(times),
        };
        let first = self.first_at.to_zoned(TimeZone::UTC);
        first.checked_add(span.ok()?).ok().map(|due| due.timestamp())
    }
}

impl Order {
    /// The state after an event. Events are facts: nothing is checked here.
    pub fn evolve(&mut self, event: &Event) {
        *self = match (std::mem::take(self), event) {
            (_, Event::StandingOrderPlaced(placed)) => Self::Active {
                terms: Terms {
                    from: placed.from.clone(),
                    to: placed.to.clone(),
                    amount_minor: placed.amount_minor,
                    currency: placed.currency.clone(),
                    reference: placed.reference.clone(),
                    every: placed.every,
                    first_at: placed.first_at,
                },
                executed: 0,
            },
            (Self::Active { terms, .. }, Event::StandingOrderExecuted(executed)) => {
                Self::Active { terms, executed: executed.number }
            }
            (_, Event::StandingOrderCancelled(_)) => Self::Cancelled,
            (state, Event::StandingOrderExecuted(_)) => state,
        };
    }
}
