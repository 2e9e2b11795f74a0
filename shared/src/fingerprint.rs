//! The fingerprint of a command: what decides whether a repeated command id names the same command.
//!
//! It covers the command's name and its field values, not their bytes: an absent optional field equals null, spelling
//! and order in JSON don't count, and a later release that adds an optional field still recognises yesterday's
//! commands. So it is taken from the typed value, by serde, and not from Avro or JSON.

use serde::{Serialize, ser};

use crate::{domain::Aggregate, personal::HashSecret, records::Records};

/// 128 bits of BLAKE3 over name and fields, or of HMAC-SHA-256 where they are personal. SHA-256 took three times as long
/// where the CPU has no instructions for it: a tenth of what a writer's thread did.
pub type Fingerprint = [u8; 16];

/// The fingerprint of a command.
///
/// # Errors
/// When the value is of a shape that no Avro record has (e.g. a map with keys that are no strings).
pub fn fingerprint(name: &str, command: &impl Serialize) -> Result<Fingerprint, Error> {
    Ok(short(*blake3::hash(&hashed(name, command)?).as_bytes()))
}

/// The fingerprint of a command of a type: with personal data it is keyed, or outcomes would tell who guesses what was in
/// the command.
///
/// # Errors
/// As [`fingerprint`], and when there is no secret where one is needed.
pub fn fingerprint_of<A: Aggregate>(command: &A::Command, secret: Option<&HashSecret>) -> Result<Fingerprint, Error> {
    if !A::IS_PERSONAL {
        return fingerprint(command.name(), command);
    }
    let secret = secret.ok_or_else(|| Error("there is no secret for the fingerprint of personal data".to_owned()))?;
    Ok(short(secret.hash("fingerprint", &hashed(command.name(), command)?)))
}

fn hashed(name: &str, command: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(128);
    Sink(&mut bytes).text(name);
    command.serialize(Sink(&mut bytes))?;
    Ok(bytes)
}

fn short(digest: [u8; 32]) -> Fingerprint {
    std::array::from_fn(|at| digest[at])
}

/// A value that can't be fingerprinted.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl ser::Error for Error {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Writes each value with a tag and, where its length varies, its length, so that no two values share their bytes.
struct Sink<'a>(&'a mut Vec<u8>);

const NONE: u8 = b'-';

impl Sink<'_> {
    fn tagged(&mut self, tag: u8, bytes: &[u8]) {
        self.0.push(tag);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.tagged(b's', &(text.len() as u64).to_be_bytes());
        self.0.extend_from_slice(text.as_bytes());
    }
}

impl<'a> ser::Serializer for Sink<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Nested<'a>;
    type SerializeTuple = Nested<'a>;
    type SerializeTupleStruct = Nested<'a>;
    type SerializeTupleVariant = ser::Impossible<(), Error>;
    type SerializeMap = ser::Impossible<(), Error>;
    type SerializeStruct = Nested<'a>;
    type SerializeStructVariant = ser::Impossible<(), Error>;

    fn serialize_bool(mut self, value: bool) -> Result<(), Error> {
        self.tagged(b'b', &[u8::from(value)]);
        Ok(())
    }
    fn serialize_i8(self, value: i8) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }
    fn serialize_i16(self, value: i16) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }
    fn serialize_i32(self, value: i32) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }
    fn serialize_i64(mut self, value: i64) -> Result<(), Error> {
        self.tagged(b'i', &value.to_be_bytes());
        Ok(())
    }
    fn serialize_u8(self, value: u8) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }
    fn serialize_u16(self, value: u16) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }
    fn serialize_u32(self, value: u32) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }
    fn serialize_u64(mut self, value: u64) -> Result<(), Error> {
        self.tagged(b'u', &value.to_be_bytes());
        Ok(())
    }
    fn serialize_f32(self, value: f32) -> Result<(), Error> {
        self.serialize_f64(value.into())
    }
    fn serialize_f64(mut self, value: f64) -> Result<(), Error> {
        self.tagged(b'f', &value.to_bits().to_be_bytes());
        Ok(())
    }
    fn serialize_char(self, value: char) -> Result<(), Error> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }
    fn serialize_str(mut self, value: &str) -> Result<(), Error> {
        self.text(value);
        Ok(())
    }
    fn serialize_bytes(mut self, value: &[u8]) -> Result<(), Error> {
        self.tagged(b'x', &(value.len() as u64).to_be_bytes());
        self.0.extend_from_slice(value);
        Ok(())
    }
    fn serialize_none(self) -> Result<(), Error> {
        self.0.push(NONE);
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), Error> {
        self.serialize_none()
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        self.serialize_none()
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Error> {
        self.serialize_str(variant)
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        mut self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.text(variant);
        value.serialize(self)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Nested<'a>, Error> {
        Nested::begin(self.0, b'[')
    }
    fn serialize_tuple(self, _: usize) -> Result<Nested<'a>, Error> {
        Nested::begin(self.0, b'[')
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Nested<'a>, Error> {
        Nested::begin(self.0, b'[')
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Error> {
        Err(ser::Error::custom("tuple variants are no Avro values"))
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, Error> {
        Err(ser::Error::custom("commands have no maps"))
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Nested<'a>, Error> {
        Nested::begin(self.0, b'{')
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Error> {
        Err(ser::Error::custom("struct variants are no Avro values"))
    }
    fn is_human_readable(&self) -> bool {
        false
    }
}

struct Nested<'a>(&'a mut Vec<u8>);

impl<'a> Nested<'a> {
    fn begin(bytes: &'a mut Vec<u8>, tag: u8) -> Result<Self, Error> {
        bytes.push(tag);
        Ok(Self(bytes))
    }

    fn end(self) -> Result<(), Error> {
        self.0.push(b'.');
        Ok(())
    }
}

macro_rules! sequence_like {
    ($($trait:ident :: $method:ident),+) => { $(
        impl ser::$trait for Nested<'_> {
            type Ok = ();
            type Error = Error;
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                value.serialize(Sink(self.0))
            }
            fn end(self) -> Result<(), Error> {
                Nested::end(self)
            }
        }
    )+ };
}
sequence_like!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field
);

impl ser::SerializeStruct for Nested<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Error> {
        let before = self.0.len();
        Sink(self.0).text(key);
        let value_at = self.0.len();
        value.serialize(Sink(self.0))?;
        if self.0[value_at..] == [NONE] {
            self.0.truncate(before);
        }
        Ok(())
    }

    fn end(self) -> Result<(), Error> {
        Nested::end(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Deposit {
        amount_minor: i64,
        reference: Option<&'static str>,
    }

    #[derive(Serialize)]
    struct DepositWithChannel {
        amount_minor: i64,
        channel: Option<&'static str>,
        reference: Option<&'static str>,
    }

    #[test]
    fn differs_by_name_and_by_value() {
        let a = fingerprint("Deposit", &Deposit { amount_minor: 1, reference: None }).unwrap();
        let b = fingerprint("Withdraw", &Deposit { amount_minor: 1, reference: None }).unwrap();
        let c = fingerprint("Deposit", &Deposit { amount_minor: 1, reference: Some("") }).unwrap();
        let d = fingerprint("Deposit", &Deposit { amount_minor: 2, reference: None }).unwrap();
        assert!(a != b && a != c && a != d && c != d);
    }

    #[test]
    fn a_new_optional_field_that_is_absent_changes_nothing() {
        let old = fingerprint("Deposit", &Deposit { amount_minor: 7, reference: Some("r") }).unwrap();
        let new = DepositWithChannel { amount_minor: 7, channel: None, reference: Some("r") };
        assert_eq!(old, fingerprint("Deposit", &new).unwrap());
    }

    #[test]
    fn of_personal_data_it_is_keyed() {
        use crate::domain::user::{ChangeEmail, Command, UserAccount};
        let of = |email: &str, secret: Option<&HashSecret>| {
            let command =
                Command::ChangeEmail(ChangeEmail { email: email.to_owned().try_into().unwrap(), reservation: None });
            fingerprint_of::<UserAccount>(&command, secret)
        };
        let [a, b] = ["a secret of 16 c", "b secret of 16 c"].map(|text| HashSecret::new(text).unwrap());
        let it = of("ada@example.org", Some(&a)).unwrap();
        assert_eq!(it, of("ada@example.org", Some(&a)).unwrap());
        assert_ne!(it, of("ada@example.com", Some(&a)).unwrap());
        assert_ne!(it, of("ada@example.org", Some(&b)).unwrap());
        assert!(of("ada@example.org", None).is_err());
        assert!(HashSecret::new("short").is_err());
    }

    /// Stored outcomes outlive releases, so the value is pinned, and of what it is taken.
    #[test]
    fn is_stable_across_releases() {
        let it = fingerprint("Deposit", &Deposit { amount_minor: 10_000, reference: Some("salary") }).unwrap();
        let hex: String = it.iter().map(|b| format!("{b:02x}")).collect();
        let mut bytes = b"s\0\0\0\0\0\0\0\x07Deposit{".to_vec();
        bytes.extend(b"s\0\0\0\0\0\0\0\x0camount_minori\0\0\0\0\0\0\x27\x10");
        bytes.extend(b"s\0\0\0\0\0\0\0\x09references\0\0\0\0\0\0\0\x06salary.");
        assert_eq!(hex, blake3::hash(&bytes).to_hex()[..32]);
        assert_eq!(hex, "545b9651206faf6e0697818abd773c8c");
    }
}
