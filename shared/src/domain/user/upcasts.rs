//! What earlier releases wrote, and what has become of it: each version converts into the next one.
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
