//! What happens to users. These names are the stored format: see `schemas/events`; they never change.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{upcasts::v1, values::Address};
use crate::{personal::Personal, records};

records! {
    /// A fact about one user.
    pub enum Event in "millrace.user.events" {
        /// There is one.
        UserRegistered {
            v1::UserRegistered = "schemas/events/UserRegistered.v1.avsc",
            UserRegistered = "schemas/events/UserRegistered.v2.avsc",
        },
        /// Another name.
        NameChanged { NameChanged = "schemas/events/NameChanged.v1.avsc" },
        /// Another e-mail address.
        EmailChanged {
            v1::EmailChanged = "schemas/events/EmailChanged.v1.avsc",
            EmailChanged = "schemas/events/EmailChanged.v2.avsc",
        },
        /// Another address.
        AddressChanged { AddressChanged = "schemas/events/AddressChanged.v1.avsc" },
        /// Suspended.
        UserDeactivated { UserDeactivated = "schemas/events/UserDeactivated.v1.avsc" },
        /// Taken up again.
        UserReactivated { UserReactivated = "schemas/events/UserReactivated.v1.avsc" },
        /// Forgotten: nothing comes after it.
        UserErased { UserErased = "schemas/events/UserErased.v1.avsc" },
        retired UserEnrolled { v1::UserEnrolled = "schemas/events/UserEnrolled.v1.avsc" },
        retired UserRenamed { v1::UserRenamed = "schemas/events/UserRenamed.v1.avsc" },
    }
}

/// A user was registered. Personal fields are null once the user is erased.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UserRegistered {
    /// Given names.
    #[schema(value_type = Option<String>, required)]
    pub given_name: Personal<String>,
    /// Family name.
    #[schema(value_type = Option<String>, required)]
    pub family_name: Personal<String>,
    /// E-mail address.
    #[schema(value_type = Option<String>, required)]
    pub email: Personal<String>,
    /// Where they live, if they have told.
    #[schema(value_type = Option<PostalAddress>, inline, required)]
    pub address: Personal<Option<PostalAddress>>,
    /// Id of the e-mail's reservation; null as well where the address was never reserved.
    #[schema(value_type = Option<String>, required)]
    pub reservation: Personal<Option<String>>,
}

/// A user's name was changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NameChanged {
    /// Given names.
    #[schema(value_type = Option<String>, required)]
    pub given_name: Personal<String>,
    /// Family name.
    #[schema(value_type = Option<String>, required)]
    pub family_name: Personal<String>,
}

/// A user's e-mail address was changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EmailChanged {
    /// E-mail address.
    #[schema(value_type = Option<String>, required)]
    pub email: Personal<String>,
    /// Id of its reservation; null as well where the address was never reserved.
    #[schema(value_type = Option<String>, required)]
    pub reservation: Personal<Option<String>>,
}

/// A user's address was changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AddressChanged {
    /// Where they live.
    #[schema(value_type = Option<PostalAddress>, inline, required)]
    pub address: Personal<PostalAddress>,
}

/// A user was suspended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UserDeactivated {}

/// A user was taken up again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UserReactivated {}

/// A user was forgotten.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UserErased {
    /// Whether they were active until then.
    pub was_active: bool,
}

/// Where somebody lives.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PostalAddress {
    /// Street and number.
    pub street: String,
    /// As the country writes it.
    pub postal_code: String,
    /// City.
    pub city: String,
    /// ISO 3166-1 code.
    pub country: String,
}

impl std::fmt::Debug for PostalAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PostalAddress(…)")
    }
}

impl From<Address> for PostalAddress {
    fn from(Address { street, postal_code, city, country }: Address) -> Self {
        Self { street: street.into(), postal_code: postal_code.into(), city: city.into(), country: country.into() }
    }
}
