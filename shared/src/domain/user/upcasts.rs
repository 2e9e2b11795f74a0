//! What earlier releases wrote, and what has become of it: each version converts into the next one. What is personal is still
//! sealed here: it is [mapped](Personal::map), which is done once it is open.
//!
//! These structs are as stored as their schemas; they are never changed, and never removed.

use super::events;
use crate::personal::Personal;

/// Versions as they were first.
pub mod v1 {
    use serde::{Deserialize, Serialize};

    use super::super::events::PostalAddress;
    use crate::personal::Personal;

    /// Before e-mail addresses were reserved.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct UserRegistered {
        /// Given names.
        pub given_name: Personal<String>,
        /// Family name.
        pub family_name: Personal<String>,
        /// E-mail address.
        pub email: Personal<String>,
        /// Where they live, if they have told.
        pub address: Personal<Option<PostalAddress>>,
    }

    /// Before e-mail addresses were reserved.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct EmailChanged {
        /// E-mail address.
        pub email: Personal<String>,
    }

    /// A registration, before names had parts.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct UserEnrolled {
        /// The whole name.
        pub name: Personal<String>,
        /// E-mail address.
        pub email: Personal<String>,
        /// Where they live, if they have told.
        pub address: Personal<Option<PostalAddress>>,
    }

    /// A change of name, before names had parts.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct UserRenamed {
        /// The whole name.
        pub name: Personal<String>,
    }
}

impl From<v1::UserRegistered> for events::UserRegistered {
    fn from(v1::UserRegistered { given_name, family_name, email, address }: v1::UserRegistered) -> Self {
        Self { given_name, family_name, email, address, reservation: Personal::Erased }
    }
}

impl From<v1::EmailChanged> for events::EmailChanged {
    fn from(v1::EmailChanged { email }: v1::EmailChanged) -> Self {
        Self { email, reservation: Personal::Erased }
    }
}

/// A name in one field became two.
impl From<v1::UserEnrolled> for events::Event {
    fn from(v1::UserEnrolled { name, email, address }: v1::UserEnrolled) -> Self {
        let (given_name, family_name) = parts(name);
        let reservation = Personal::Erased;
        Self::UserRegistered(events::UserRegistered { given_name, family_name, email, address, reservation })
    }
}

impl From<v1::UserRenamed> for events::Event {
    fn from(v1::UserRenamed { name }: v1::UserRenamed) -> Self {
        let (given_name, family_name) = parts(name);
        Self::NameChanged(events::NameChanged { given_name, family_name })
    }
}

/// The last word of a name is the family name, and what stands before it are given names, if anything does. No rule fits all
/// names of the world; who is called otherwise changes it.
fn parts(name: Personal<String>) -> (Personal<String>, Personal<String>) {
    fn split(name: &str) -> (&str, &str) {
        let name = name.trim();
        name.rsplit_once(char::is_whitespace).map_or(("", name), |(given, family)| (given.trim_end(), family))
    }
    (name.clone().map(|name| split(&name).0.to_owned()), name.map(|name| split(&name).1.to_owned()))
}
