//! A personal field, and what can be done with it without knowing its type.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, ser::Error as _};

use super::Lock;

/// A personal field of an event or of a snapshot.
///
/// In Avro it is `bytes`: the JSON of the value, sealed; empty when it is erased. In JSON it is the value, or null when it is
/// not known. `Debug` never shows it.
#[derive(Clone, PartialEq)]
pub enum Personal<T> {
    /// As domains see it.
    Open(T),
    /// As it is written.
    Sealed(Vec<u8>),
    /// Its key was destroyed.
    Erased,
}

impl<T> Personal<T> {
    /// The value, where it is known.
    pub fn get(&self) -> Option<&T> {
        match self {
            Self::Open(value) => Some(value),
            Self::Sealed(_) | Self::Erased => None,
        }
    }
}

/// Why a field can't be sealed or opened. It never quotes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A fault of ours.
    #[error("there is no key for a personal field")]
    NoKey,
    /// A fault of ours.
    #[error("a personal field can't be written as JSON")]
    Unwritable,
    /// What lies there was written otherwise than by us, by a later release, or for another aggregate.
    #[error("a personal field does not open: it was changed, belongs to another aggregate, or is of a later release")]
    NotOurs,
}

/// A personal field without its type.
pub trait Secret {
    /// Whether it would be lost, or told, if it were written as it is.
    fn is_open(&self) -> bool;

    /// Seals an open field, for the place that it belongs to.
    ///
    /// # Errors
    /// See [`Error`].
    fn seal(&mut self, key: Option<&Lock>, place: &str) -> Result<(), Error>;

    /// Opens a sealed field. Without the key that sealed it, it is erased: a key is only ever missing where it was
    /// destroyed, which is for callers to see to.
    ///
    /// # Errors
    /// See [`Error`].
    fn open(&mut self, key: Option<&Lock>, place: &str) -> Result<(), Error>;
}

impl<T: Serialize + DeserializeOwned> Secret for Personal<T> {
    fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    fn seal(&mut self, key: Option<&Lock>, place: &str) -> Result<(), Error> {
        if let Self::Open(value) = self {
            let json = serde_json::to_vec(value).map_err(|_| Error::Unwritable)?;
            *self = Self::Sealed(key.ok_or(Error::NoKey)?.seal(&json, place));
        }
        Ok(())
    }

    fn open(&mut self, key: Option<&Lock>, place: &str) -> Result<(), Error> {
        if let Self::Sealed(bytes) = self {
            let opened = key.map(|key| key.open(bytes, place)).transpose()?.flatten();
            *self = match opened {
                Some(json) => Self::Open(serde_json::from_slice(&json).map_err(|_| Error::NotOurs)?),
                None => Self::Erased,
            };
        }
        Ok(())
    }
}

impl<T> fmt::Debug for Personal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open(_) => "Open(…)",
            Self::Sealed(_) => "Sealed(…)",
            Self::Erased => "Erased",
        })
    }
}

impl<T: Serialize> Serialize for Personal<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return self.get().serialize(serializer);
        }
        match self {
            Self::Open(_) => Err(S::Error::custom("a personal field is to be sealed before it is written")),
            Self::Sealed(bytes) => apache_avro::serde::bytes::serialize(bytes, serializer),
            Self::Erased => apache_avro::serde::bytes::serialize(&[], serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Personal<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return Ok(Option::deserialize(deserializer)?.map_or(Self::Erased, Self::Open));
        }
        let bytes = apache_avro::serde::bytes::deserialize(deserializer)?;
        Ok(if bytes.is_empty() { Self::Erased } else { Self::Sealed(bytes) })
    }
}
