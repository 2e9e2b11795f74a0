//! The keys of people in Redis, and what they open.
//!
//! Views hold personal data in clear, since lists are filtered by it; a history holds it sealed, as the log does, and the
//! key lies beside it in `{…}:keys`, encrypted under a master key: `version of its schema (1) | Avro datum`. The script call
//! that erases a view takes the key away as well, so that the past shows the person as erased from then on.

use crate::{
    codec::Codec,
    domain::Aggregate,
    personal::{self, DataKey, KeyError, KeyRecord, MasterKeys},
    records::Records,
    registry,
};

/// Opens personal data with keys as Redis has them.
pub struct Opener {
    master: MasterKeys,
    codec: Codec<KeyRecord>,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opener")
    }
}

/// Why an event can't be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The person's key can't be used at present: a master key is missing.
    #[error("a person's key is encrypted with master key {0}, which MILLRACE_MASTER_KEYS lacks")]
    Missing(String),
    /// It can't be used ever.
    #[error("a person's key {0}")]
    Key(&'static str),
    /// The event can't.
    #[error("{0}")]
    Event(String),
}

impl Opener {
    /// With these master keys.
    ///
    /// # Errors
    /// When our schema can't be used.
    pub fn new(master: MasterKeys) -> Result<Self, registry::Error> {
        Ok(Self { master, codec: Codec::datums()? })
    }

    /// A key as Redis keeps it.
    ///
    /// # Errors
    /// When it does not fit its schema: a fault of ours.
    pub fn packed(&self, key: &KeyRecord) -> Result<Vec<u8>, apache_avro::Error> {
        let mut packed = vec![(KeyRecord::TYPES[key.index()].versions.len() - 1) as u8];
        self.codec.encode_datum(key, &mut packed)?;
        Ok(packed)
    }

    /// Opens the personal fields of an event; without a key they are erased.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open<A: Aggregate>(&self, event: &mut A::Event, packed: Option<&[u8]>, id: &str) -> Result<(), Error> {
        let key = packed.map(|packed| self.unwrap(packed, &personal::place::<A>(id))).transpose()?;
        personal::open_event::<A>(event, key.as_ref(), id).map_err(|error| Error::Event(error.to_string()))
    }

    /// Whether a key is encrypted otherwise than new ones are.
    pub fn is_outdated(&self, packed: &[u8]) -> bool {
        self.record(packed).is_some_and(|record| self.master.is_outdated(&record))
    }

    fn record(&self, packed: &[u8]) -> Option<KeyRecord> {
        let (version, datum) = packed.split_first()?;
        // There is one record.
        self.codec.decode_datum(0, usize::from(*version), datum)
    }

    fn unwrap(&self, packed: &[u8], place: &str) -> Result<DataKey, Error> {
        let record = self.record(packed).ok_or(Error::Key("is damaged, or of a later release"))?;
        self.master.unwrap(&record, place).map_err(|error| match error {
            KeyError::Missing(name) => Error::Missing(name),
            KeyError::Refused(_) | KeyError::Malformed => Error::Key("was changed, or belongs to somebody else"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::user::{EmailChanged, Event, UserAccount},
        personal::Personal,
    };

    const OLD: &str = "old:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const NEW: &str = "new:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

    fn opener(keys: &str) -> Opener {
        Opener::new(MasterKeys::parse(keys).unwrap()).unwrap()
    }

    #[test]
    fn g14_a_history_opens_with_its_persons_key_and_without_it_is_erased() {
        let (master, key) = (MasterKeys::parse(OLD).unwrap(), DataKey::generate());
        let packed = opener(OLD).packed(&master.wrap(&key, "user/u-1")).unwrap();
        let mut sealed = Event::EmailChanged(EmailChanged {
            email: Personal::Open("ada@example.org".into()),
            reservation: Personal::Open(None),
        });
        personal::seal_event::<UserAccount>(&mut sealed, Some(&key), "u-1").unwrap();
        let open = |opener: &Opener, packed: Option<&[u8]>, id: &str| {
            let mut event = sealed.clone();
            opener.open::<UserAccount>(&mut event, packed, id).map(|()| match event {
                Event::EmailChanged(changed) => changed.email.get().cloned(),
                other => panic!("{other:?}"),
            })
        };
        let both = opener(&format!("{NEW},{OLD}"));
        assert_eq!(open(&both, Some(&packed), "u-1"), Ok(Some("ada@example.org".into())));
        assert_eq!(open(&both, None, "u-1"), Ok(None));
        // Neither is ever taken for an erasure.
        assert_eq!(open(&opener(NEW), Some(&packed), "u-1"), Err(Error::Missing("old".into())));
        for (packed, id) in [(&packed[..], "u-2"), (&packed[..20], "u-1"), (&[], "u-1"), (&[9], "u-1")] {
            assert!(matches!(open(&both, Some(packed), id), Err(Error::Key(_))), "{packed:?}");
        }
    }
}
