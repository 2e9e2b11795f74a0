//! What happens to standing orders. These names are the stored format: see `schemas/events`; they never change.
//!
//! An event holds all that the process needs to go on from it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{docs, state::Every};
use crate::records;

records! {
    /// A fact about one standing order.
    pub enum Event in "millrace.standing_order.events" {
        /// It was placed.
        StandingOrderPlaced { StandingOrderPlaced = "schemas/events/StandingOrderPlaced.v1.avsc" },
        /// A transfer is requested.
        StandingOrderExecuted { StandingOrderExecuted = "schemas/events/StandingOrderExecuted.v1.avsc" },
        /// No more follow.
        StandingOrderCancelled { StandingOrderCancelled = "schemas/events/StandingOrderCancelled.v1.avsc" },
    }
}

/// Money is to be moved again and again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StandingOrderPlaced {
    /// Id of the account that pays.
    pub from: String,
    /// Id of the account that is paid.
    pub to: String,
    /// How much each time, in minor units.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// What for.
    #[schema(required)]
    pub reference: Option<String>,
    /// How long from one transfer to the next.
    #[schema(schema_with = docs::every)]
    pub every: Every,
    /// When the first one is due.
    #[schema(value_type = String, format = DateTime)]
    pub first_at: Timestamp,
}

/// A transfer is requested, and the next one is due later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StandingOrderExecuted {
    /// 1 for the first one.
    pub number: u32,
    /// Id of the account that pays.
    pub from: String,
    /// Id of the account that is paid.
    pub to: String,
    /// How much, in minor units.
    pub amount_minor: i64,
    /// ISO 4217 code.
    pub currency: String,
    /// What for.
    #[schema(required)]
    pub reference: Option<String>,
    /// When the next one is due; null at the end of all days.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    pub next_at: Option<Timestamp>,
}

/// No more transfers follow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StandingOrderCancelled {}
