//! A personal field, and what can be done with it without knowing its type.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, ser::Error as _};

use super::Lock;

/// A personal field of an event or of a snapshot.
///
/// In Avro it is `bytes`: the JSON of the value, sealed; empty when it is erased. In JSON it is the value, or null when it is
/// not known. `Debug` never shows it.
#[derive(Clone)]
pub enum Personal<T> {
    /// As domains see it.
    Open(T),
    /// As it is written.
    Sealed(Vec<u8>),
    /// As an earlier record has it, and what that becomes once it is open: it is read, and never written again.
    Earlier(Vec<u8>, Convert<T>),
    /// Its key was destroyed.
    Erased,
}

/// Makes a value of the JSON of another one; `None` when that is none.
type Convert<T> = Arc<dyn Fn(&[u8]) -> Option<T> + Send + Sync>;

impl<T: DeserializeOwned + 'static> Personal<T> {
    /// For upcasts, which come before anything is opened: what becomes of the value when it is.
    pub fn map<U: 'static>(self, into: fn(T) -> U) -> Personal<U> {
        match self {
            Self::Open(value) => Personal::Open(into(value)),
            Self::Sealed(bytes) => Personal::Earlier(bytes, Arc::new(move |json| parse(json).map(into))),
            Self::Earlier(bytes, convert) => Personal::Earlier(bytes, Arc::new(move |json| convert(json).map(into))),
            Self::Erased => Personal::Erased,
        }
    }
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    serde_json::from_slice(json).ok()
}

impl<T> Personal<T> {
    /// The value, where it is known.
    pub fn get(&self) -> Option<&T> {
        match self {
            Self::Open(value) => Some(value),
            Self::Sealed(_) | Self::Earlier(..) | Self::Erased => None,
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
        let (bytes, convert) = match &*self {
            Self::Sealed(bytes) => (bytes, None),
            Self::Earlier(bytes, convert) => (bytes, Some(convert)),
            Self::Open(_) | Self::Erased => return Ok(()),
        };
        *self = match key.map(|key| key.open(bytes, place)).transpose()?.flatten() {
            Some(json) => Self::Open(convert.map_or_else(|| parse(&json), |by| by(&json)).ok_or(Error::NotOurs)?),
            None => Self::Erased,
        };
        Ok(())
    }
}

impl<T: PartialEq> PartialEq for Personal<T> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Open(ours), Self::Open(theirs)) => ours == theirs,
            (Self::Sealed(ours), Self::Sealed(theirs)) | (Self::Earlier(ours, _), Self::Earlier(theirs, _)) => {
                ours == theirs
            }
            (Self::Erased, Self::Erased) => true,
            _ => false,
        }
    }
}

impl<T> fmt::Debug for Personal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open(_) => "Open(…)",
            Self::Sealed(_) | Self::Earlier(..) => "Sealed(…)",
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
            Self::Earlier(..) => Err(S::Error::custom("a personal field of an earlier record is not to be written")),
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
