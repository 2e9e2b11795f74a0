//! What commands are made of. A value that exists is valid: it was checked when it was read.

use serde::{Deserialize, Serialize};

/// Largest amount of one command, in minor units.
pub const MAX_AMOUNT_MINOR: i64 = 1_000_000_000_000_000;
/// Largest balance, in minor units: below 2^53, so that JavaScript reads it exactly.
pub const MAX_BALANCE_MINOR: i64 = 9_000_000_000_000_000;
pub(super) const MAX_OWNER_CHARACTERS: usize = 200;
pub(super) const MAX_REFERENCE_CHARACTERS: usize = 140;
pub(super) const MAX_CHANNEL_BYTES: usize = 40;

/// An amount of money in minor units (cents), 1 to 10^15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "i64")]
pub struct Amount(i64);

impl Amount {
    /// Minor units.
    pub fn minor(self) -> i64 {
        self.0
    }
}

impl TryFrom<i64> for Amount {
    type Error = String;

    fn try_from(minor: i64) -> Result<Self, String> {
        if (1..=MAX_AMOUNT_MINOR).contains(&minor) {
            Ok(Self(minor))
        } else {
            Err(format!("must be a whole number of minor units from 1 to {MAX_AMOUNT_MINOR}"))
        }
    }
}

/// Who owns an account: 1 to 200 characters, no control characters.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Owner(String);

impl TryFrom<String> for Owner {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if is_owner(&text) {
            return Ok(Self(text));
        }
        Err(format!("must be 1 to {MAX_OWNER_CHARACTERS} characters without control characters"))
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        owner.0
    }
}

/// Whether a text can be an owner.
pub fn is_owner(text: &str) -> bool {
    (1..=MAX_OWNER_CHARACTERS).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// What a payment is for: up to 140 characters.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Reference(String);

impl TryFrom<String> for Reference {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.chars().count() <= MAX_REFERENCE_CHARACTERS {
            return Ok(Self(text));
        }
        Err(format!("must be at most {MAX_REFERENCE_CHARACTERS} characters"))
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.0
    }
}

/// By which way money comes, such as `branch` or `card`: 1 to 40 of `a-z 0-9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Channel(String);

impl TryFrom<String> for Channel {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        if (1..=MAX_CHANNEL_BYTES).contains(&text.len()) && text.bytes().all(allowed) {
            return Ok(Self(text));
        }
        Err(format!("must be 1 to {MAX_CHANNEL_BYTES} of a-z 0-9 . _ -"))
    }
}

impl From<Channel> for String {
    fn from(channel: Channel) -> Self {
        channel.0
    }
}

/// An active ISO 4217 currency, by its upper-case code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Currency(iso_currency::Currency);

impl Currency {
    /// The code, e.g. `EUR`.
    pub fn code(self) -> &'static str {
        self.0.code()
    }
}

/// The code of a currency that may have been superseded since; the account that has it is old.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct CurrencyCode([u8; 3]);

impl CurrencyCode {
    /// The code, e.g. `EUR`; `???` when what was given was none.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("???")
    }
}

impl From<&str> for CurrencyCode {
    fn from(code: &str) -> Self {
        Self(code.as_bytes().try_into().unwrap_or(*b"???"))
    }
}

impl From<String> for CurrencyCode {
    fn from(code: String) -> Self {
        Self::from(code.as_str())
    }
}

impl std::fmt::Debug for CurrencyCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for CurrencyCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl std::str::FromStr for Currency {
    type Err = String;

    fn from_str(code: &str) -> Result<Self, String> {
        iso_currency::Currency::from_code(code)
            .filter(|currency| currency.code() == code && currency.is_superseded().is_none())
            .map(Self)
            .ok_or_else(|| "must be an active ISO 4217 code in upper case, e.g. EUR".to_owned())
    }
}

impl Serialize for Currency {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = String::deserialize(deserializer)?;
        code.parse().map_err(serde::de::Error::custom)
    }
}

/// Avro knows no newtypes, and serde's `transparent` does not go with `try_from`: so each is written as what it wraps.
macro_rules! serialize_as_inner {
    ($($value:ident),+) => { $(
        impl Serialize for $value {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.serialize(serializer)
            }
        }
    )+ };
}
serialize_as_inner!(Amount, Owner, Reference, Channel);
