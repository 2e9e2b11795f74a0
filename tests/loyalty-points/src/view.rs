//! What queries answer.

use std::collections::BTreeMap;

use millrace_shared::{
    domain::{Counted, Filter, Projection, Sort},
    envelope::{EventMeta, rfc3339_micros},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::events::Event;

/// The projection `loyalty-points`.
#[derive(Debug)]
pub struct LoyaltyPointsViews;

/// A member's points as queries answer them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PointsView {
    /// The member's id.
    pub id: String,
    /// Points that can be spent.
    pub points: i64,
    /// All that were ever earned.
    pub earned: i64,
    /// What the last ones were spent on.
    #[schema(required)]
    pub last_reward: Option<String>,
    /// The last sequence that is in this view.
    pub version: u64,
    /// When the last event happened.
    pub updated_at: String,
}

impl Projection for LoyaltyPointsViews {
    type Event = Event;
    type View = PointsView;
    const NAME: &'static str = "loyalty-points";
    const VERSION: u32 = 1;
    const SORTS: &'static [Sort<PointsView>] =
        &[Sort { name: "points", key: |view| view.points }, Sort { name: "id", key: |_| 0 }];
    const FILTERS: &'static [Filter<PointsView>] = &[];

    fn fold(view: Option<PointsView>, id: &str, meta: &EventMeta, event: &Event) -> Result<PointsView, String> {
        let mut view = view.unwrap_or_else(|| PointsView {
            id: id.to_owned(),
            points: 0,
            earned: 0,
            last_reward: None,
            version: 0,
            updated_at: String::new(),
        });
        match event {
            Event::PointsEarned(earned) => {
                view.points += earned.points;
                view.earned += earned.points;
            }
            Event::PointsRedeemed(redeemed) => {
                view.points -= redeemed.points;
                view.last_reward = Some(redeemed.reward.clone());
            }
            Event::PointsExpired(expired) => view.points -= expired.points,
        }
        Ok(PointsView { version: meta.sequence, updated_at: rfc3339_micros(meta.time), ..view })
    }

    fn count(event: &Event, after: &PointsView, counted: &mut Counted) {
        if after.version == 1 {
            counted.add(&["members"], 1);
        }
        let (name, points) = match event {
            Event::PointsEarned(earned) => ("earned", earned.points),
            Event::PointsRedeemed(redeemed) => ("redeemed", redeemed.points),
            Event::PointsExpired(expired) => ("expired", expired.points),
        };
        counted.add(&[name], points.into());
    }

    fn stats(counters: &BTreeMap<String, i128>) -> Value {
        let of = |name| counters.get(name).copied().unwrap_or(0) as i64;
        json!({"members": of("members"), "earned": of("earned"), "redeemed": of("redeemed"), "expired": of("expired")})
    }

    fn version(view: &PointsView) -> u64 {
        view.version
    }
}
