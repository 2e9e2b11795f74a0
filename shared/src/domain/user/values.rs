//! What commands are made of. A value that exists is valid: it was checked when it was read. None of it shows itself in logs.

use std::fmt;

use icu_normalizer::ComposingNormalizerBorrowed;
use serde::{Deserialize, Serialize};

pub(super) const MAX_LINE_CHARACTERS: usize = 200;
/// As RFC 5321 bounds a path.
pub(super) const MAX_EMAIL_BYTES: usize = 254;
const MAX_LOCAL_PART_BYTES: usize = 64;

/// A name, or a line of an address: 1 to 200 characters, no control characters.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Line(String);

impl TryFrom<String> for Line {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let fits = (1..=MAX_LINE_CHARACTERS).contains(&text.chars().count());
        if fits && !text.chars().any(char::is_control) {
            return Ok(Self(text));
        }
        Err(format!("must be 1 to {MAX_LINE_CHARACTERS} characters without control characters"))
    }
}

/// An e-mail address, as it was given.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Email(String);

impl TryFrom<String> for Email {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if is_email(&text) { Ok(Self(text)) } else { Err("must be an e-mail address".to_owned()) }
    }
}

impl Email {
    /// The same for all spellings that mean the same mailbox: without regard to case, with characters composed one way, the
    /// host as DNS has it.
    pub fn normalised(&self) -> String {
        let (local, host) = self.0.split_once('@').unwrap_or((&self.0, ""));
        let composed = ComposingNormalizerBorrowed::new_nfkc();
        let host = idna::domain_to_ascii(host).unwrap_or_else(|_| host.to_lowercase());
        format!("{}@{host}", composed.normalize(&local.to_lowercase()).to_lowercase())
    }
}

/// Whether a text can be an e-mail address: visible characters, one `@`, a name of a host behind it. Whether anybody reads
/// what is sent there, no check can tell.
pub fn is_email(text: &str) -> bool {
    let Some((local, host)) = text.split_once('@') else { return false };
    let is_label = |label: &str| {
        let allowed = |c: char| c.is_alphanumeric() || c == '-';
        (1..=63).contains(&label.len())
            && label.chars().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= MAX_EMAIL_BYTES
        && (1..=MAX_LOCAL_PART_BYTES).contains(&local.len())
        && !local.chars().any(|c| c.is_whitespace() || c.is_control() || "\"(),:;<>[\\]".contains(c))
        && host.contains('.')
        && host.split('.').all(is_label)
}

/// A country: two upper-case letters, as ISO 3166-1 has them.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Country(String);

impl TryFrom<String> for Country {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_code = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_uppercase());
        if is_code { Ok(Self(text)) } else { Err("must be a country's two letters in upper case, e.g. DE".to_owned()) }
    }
}

/// Where somebody lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// Street and number.
    pub street: Line,
    /// As the country writes it.
    pub postal_code: Line,
    /// City.
    pub city: Line,
    /// Country.
    pub country: Country,
}

/// Written as what they wrap, and never shown.
macro_rules! text {
    ($($value:ident),+) => { $(
        impl Serialize for $value {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl From<$value> for String {
            fn from(value: $value) -> Self {
                value.0
            }
        }

        impl fmt::Debug for $value {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($value), "(…)"))
            }
        }
    )+ };
}
text!(Line, Email, Country);
