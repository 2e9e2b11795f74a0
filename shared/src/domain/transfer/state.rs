//! What a decision needs to know of a transfer's past.

use serde::Serialize;

use super::events::Event;

/// A transfer as the rules see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Transfer {
    /// Nothing has happened yet.
    #[default]
    Unknown,
    /// The source is asked.
    Requested(Terms),
    /// The source has paid; the target is asked.
    Debited(Terms),
    /// The source gets its money back.
    Refunding {
        /// What was asked for.
        #[serde(flatten)]
        terms: Terms,
        /// Why an account refused.
        reason: String,
    },
    /// The target was paid.
    Completed(Terms),
    /// The source refused.
    Refused {
        /// What was asked for.
        #[serde(flatten)]
        terms: Terms,
        /// Why.
        reason: String,
    },
    /// The source has its money back.
    Compensated,
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
}

impl Transfer {
    /// The state after an event. Events are facts: nothing is checked here.
    pub fn evolve(&mut self, event: &Event) {
        *self = match (std::mem::take(self), event) {
            (_, Event::TransferRequested(requested)) => Self::Requested(Terms {
                from: requested.from.clone(),
                to: requested.to.clone(),
                amount_minor: requested.amount_minor,
                currency: requested.currency.clone(),
            }),
            (Self::Requested(terms), Event::TransferDebited(_)) => Self::Debited(terms),
            (Self::Debited(terms), Event::TransferCompleted(_)) => Self::Completed(terms),
            (Self::Debited(terms) | Self::Refused { terms, .. }, Event::RefundOrdered(ordered)) => {
                Self::Refunding { terms, reason: ordered.reason.clone() }
            }
            (Self::Requested(terms), Event::TransferRefused(refused)) => {
                Self::Refused { terms, reason: refused.reason.clone() }
            }
            (_, Event::TransferCompensated(_)) => Self::Compensated,
            (
                state,
                Event::TransferDebited(_)
                | Event::TransferCompleted(_)
                | Event::TransferRefused(_)
                | Event::RefundOrdered(_)
                | Event::TransferRetried(_),
            ) => state,
        };
    }
}
