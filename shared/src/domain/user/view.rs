//! What queries answer about users.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    docs,
    events::{Event, PostalAddress, UserRegistered},
    values::is_email,
};
use crate::{
    domain::{Counted, Filter, Projection, Sort, views},
    envelope::EventMeta,
};

/// The projection `users`.
#[derive(Debug)]
pub struct Users;

/// Whether a user can be worked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Registered.
    Active,
    /// Suspended.
    Inactive,
    /// Forgotten.
    Erased,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Active, Self::Inactive, Self::Erased];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Erased => "erased",
        }
    }
}

/// A user as queries answer it. Personal fields are null once the user is erased; `Debug` never shows them.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UserView {
    /// The user's id.
    pub id: String,
    /// Given names.
    #[schema(required)]
    pub given_name: Option<String>,
    /// Family name.
    #[schema(required)]
    pub family_name: Option<String>,
    /// E-mail address.
    #[schema(required)]
    pub email: Option<String>,
    /// Where they live, if they have told.
    #[schema(inline, required)]
    pub address: Option<PostalAddress>,
    /// Whether they can be worked with.
    #[schema(schema_with = docs::status)]
    pub status: Status,
    /// The last sequence that is in this view.
    pub version: u64,
    /// When they were registered.
    #[serde(serialize_with = "views::micros")]
    #[schema(value_type = String, format = DateTime)]
    pub registered_at: Timestamp,
    /// When the last event happened.
    #[serde(serialize_with = "views::micros")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

impl std::fmt::Debug for UserView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, status, version, .. } = self;
        write!(f, "UserView({id}, {status:?}, version {version}, …)")
    }
}

impl Projection for Users {
    type Event = Event;
    type View = UserView;
    const NAME: &'static str = "users";
    const VERSION: u32 = 1;
    const SORTS: &'static [Sort<UserView>] = &[
        Sort { name: "registered_at", key: |view| view.registered_at.as_microsecond() },
        Sort { name: "updated_at", key: |view| view.updated_at.as_microsecond() },
        Sort { name: "id", key: |_| 0 },
    ];
    const FILTERS: &'static [Filter<UserView>] = &[
        Filter {
            name: "email",
            value: |view| view.email.as_deref().unwrap_or_default(),
            accepts: is_email,
            selective: true,
            fixed: false,
        },
        Filter {
            name: "status",
            value: |view| view.status.name(),
            accepts: |text| Status::ALL.iter().any(|status| status.name() == text),
            selective: false,
            fixed: false,
        },
    ];

    fn fold(view: Option<UserView>, id: &str, meta: &EventMeta, event: &Event) -> Result<UserView, String> {
        let view = match (view, event) {
            (None, Event::UserRegistered(registered)) => new(id, meta, registered),
            (None, _) => return Err("something happened to a user who was never registered".into()),
            (Some(_), Event::UserRegistered(_)) => return Err("a user was registered twice".into()),
            (Some(view), Event::NameChanged(changed)) => UserView {
                given_name: changed.given_name.get().cloned(),
                family_name: changed.family_name.get().cloned(),
                ..view
            },
            (Some(view), Event::EmailChanged(changed)) => UserView { email: changed.email.get().cloned(), ..view },
            (Some(view), Event::AddressChanged(changed)) => {
                UserView { address: changed.address.get().cloned(), ..view }
            }
            (Some(view), Event::UserDeactivated(_)) => UserView { status: Status::Inactive, ..view },
            (Some(view), Event::UserReactivated(_)) => UserView { status: Status::Active, ..view },
            (Some(view), Event::UserErased(_)) => UserView {
                given_name: None,
                family_name: None,
                email: None,
                address: None,
                status: Status::Erased,
                ..view
            },
        };
        Ok(UserView { version: meta.sequence, updated_at: meta.time, ..view })
    }

    fn count(event: &Event, _after: &UserView, counted: &mut Counted) {
        let mut add = |status: Status, by| counted.add(&["users", status.name()], by);
        match event {
            Event::UserRegistered(_) => add(Status::Active, 1),
            Event::UserDeactivated(_) => {
                add(Status::Active, -1);
                add(Status::Inactive, 1);
            }
            Event::UserReactivated(_) => {
                add(Status::Inactive, -1);
                add(Status::Active, 1);
            }
            Event::UserErased(erased) => {
                add(if erased.was_active { Status::Active } else { Status::Inactive }, -1);
                add(Status::Erased, 1);
            }
            Event::NameChanged(_) | Event::EmailChanged(_) | Event::AddressChanged(_) => {}
        }
    }

    fn stats(counters: &BTreeMap<String, i128>) -> Value {
        let of =
            |status: &Status| views::number(counters.get(&format!("users/{}", status.name())).copied().unwrap_or(0));
        let users: Map<String, Value> =
            Status::ALL.iter().map(|status| (status.name().to_owned(), of(status))).collect();
        json!({"users": users})
    }

    fn version(view: &UserView) -> u64 {
        view.version
    }
}

fn new(id: &str, meta: &EventMeta, registered: &UserRegistered) -> UserView {
    UserView {
        id: id.to_owned(),
        given_name: registered.given_name.get().cloned(),
        family_name: registered.family_name.get().cloned(),
        email: registered.email.get().cloned(),
        address: registered.address.get().cloned().flatten(),
        status: Status::Active,
        version: meta.sequence,
        registered_at: meta.time,
        updated_at: meta.time,
    }
}
