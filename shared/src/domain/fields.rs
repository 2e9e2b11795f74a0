//! The fields of a JSON body, taken one by one, so that a caller is told everything that is wrong at once.

use std::{collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor},
};
use serde_json::Value;

use crate::problem::FieldError;

/// Errors of one kind that are told, at most.
const MAX_ERRORS: usize = 20;

/// Why an HTTP body is no command.
#[derive(Debug, PartialEq)]
pub enum CommandError {
    /// The path names no command.
    Unknown,
    /// The body is not what the command needs.
    Malformed(Vec<FieldError>),
}

/// A JSON object that is being taken apart.
#[derive(Debug)]
pub struct Fields {
    rest: Vec<(String, Value)>,
    errors: Vec<FieldError>,
}

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// When it is no JSON object, or names a field twice.
    pub fn parse(body: &[u8]) -> Result<Self, CommandError> {
        let whole = |detail: String| CommandError::Malformed(vec![FieldError::new("", detail)]);
        let Pairs(rest) = serde_json::from_slice(body).map_err(|error| whole(format!("not a JSON object: {error}")))?;
        let mut seen = HashSet::new();
        let doubled: Vec<FieldError> = rest
            .iter()
            .filter(|(name, _)| !seen.insert(name.as_str()))
            .take(MAX_ERRORS)
            .map(|(name, _)| FieldError::new(pointer(name), "the field is there twice"))
            .collect();
        if doubled.is_empty() { Ok(Self { rest, errors: Vec::new() }) } else { Err(CommandError::Malformed(doubled)) }
    }

    /// Takes a field that must be there.
    pub fn required<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        match self.take(name) {
            Some(value) => self.convert(name, value),
            None => {
                self.errors.push(FieldError::new(pointer(name), "the field is missing"));
                None
            }
        }
    }

    /// Takes a field that may be absent or null.
    pub fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let value = self.take(name).filter(|value| !value.is_null())?;
        self.convert(name, value)
    }

    /// Makes the command of what was taken; every field must have been asked for and found good.
    pub fn finish<T>(mut self, command: Option<T>) -> Result<T, CommandError> {
        let unknown = self.rest.iter().map(|(name, _)| FieldError::new(pointer(name), "there is no such field"));
        self.errors.extend(unknown.take(MAX_ERRORS));
        match command {
            Some(command) if self.errors.is_empty() => Ok(command),
            _ => Err(CommandError::Malformed(self.errors)),
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.rest.iter().position(|(field, _)| field == name)?;
        Some(self.rest.swap_remove(at).1)
    }

    fn convert<T: DeserializeOwned>(&mut self, name: &str, value: Value) -> Option<T> {
        match T::deserialize(value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.errors.push(FieldError::new(pointer(name), error.to_string()));
                None
            }
        }
    }
}

/// RFC 6901; a hostile name is cut, so that the answer stays small.
fn pointer(name: &str) -> String {
    let name: String = name.chars().take(64).collect();
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// An object's fields in order, doubled ones included.
struct Pairs(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Pairs, M::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors<T: fmt::Debug>(result: Result<T, CommandError>) -> Vec<String> {
        match result.unwrap_err() {
            CommandError::Malformed(errors) => {
                errors.into_iter().map(|e| format!("{} {}", e.pointer, e.detail)).collect()
            }
            CommandError::Unknown => panic!("an unknown command"),
        }
    }

    #[test]
    fn g13_everything_that_is_wrong_is_said_at_once() {
        let mut fields = Fields::parse(br#"{"a": "x", "c/d": 1}"#).unwrap();
        let a: Option<i64> = fields.required("a");
        let b: Option<i64> = fields.required("b");
        let all = errors(fields.finish(a.zip(b)));
        assert_eq!(all.len(), 3);
        assert!(all[0].starts_with("/a invalid type: string"), "{all:?}");
        assert_eq!(all[1], "/b the field is missing");
        assert_eq!(all[2], "/c~1d there is no such field");
    }

    #[test]
    fn g13_a_body_must_be_one_object_without_doubles() {
        for body in ["", "[]", "1", "{", "{} {}", "null", "\u{feff}{}"] {
            assert!(Fields::parse(body.as_bytes()).is_err(), "{body}");
        }
        assert_eq!(errors(Fields::parse(br#"{"a": 1, "a": 1}"#)), ["/a the field is there twice"]);
    }
}
