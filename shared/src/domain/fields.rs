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

/// A JSON object that is being taken apart. `Debug` shows none of its values: they may be personal.
pub struct Fields {
    rest: Vec<(String, Value)>,
    errors: Vec<FieldError>,
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.rest.iter().map(|(name, _)| name)).finish()
    }
}

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// When it is no JSON object, or names a field twice.
    pub fn parse(body: &[u8]) -> Result<Self, CommandError> {
        let whole = |detail: String| CommandError::Malformed(vec![FieldError::new("", detail)]);
        let Pairs(rest) = serde_json::from_slice(body).map_err(|error| {
            whole(if error.is_data() { "must be a JSON object".to_owned() } else { format!("is no JSON: {error}") })
        })?;
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
        let given = kind(&value);
        match T::deserialize(value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.errors.push(FieldError::new(pointer(name), in_words_of_json(&error, given)));
                None
            }
        }
    }
}

/// What a value is to somebody who thinks in JSON.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction or exponent",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A value's own words (`must be …`) as they are; for a wrong type serde speaks of Rust's.
fn in_words_of_json(error: &serde_json::Error, given: &str) -> String {
    let text = error.to_string();
    let Some((what, expected)) = text.split_once(", expected ") else { return text };
    let expected = match expected {
        "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64" => "a whole number",
        "f32" | "f64" => "a number",
        "a sequence" => "an array",
        "a map" => "an object",
        expected if expected.starts_with("struct ") => "an object",
        expected => expected,
    };
    if what.starts_with("invalid type: ") {
        format!("must be {expected}, not {given}")
    } else if what.starts_with("invalid value: integer") {
        "is out of range".to_owned()
    } else {
        text
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
        assert_eq!(all[0], "/a must be a whole number, not a string");
        assert_eq!(all[1], "/b the field is missing");
        assert_eq!(all[2], "/c~1d there is no such field");
    }

    #[test]
    fn g13_a_wrong_type_is_told_in_words_of_json() {
        #[derive(Debug, Deserialize)]
        struct Address {
            #[allow(dead_code, reason = "only read")]
            city: String,
        }
        fn told<T: DeserializeOwned + fmt::Debug>(value: &str) -> String {
            let mut fields = Fields::parse(format!("{{\"a\": {value}}}").as_bytes()).unwrap();
            let a: Option<T> = fields.required("a");
            errors(fields.finish(a)).remove(0)
        }
        assert_eq!(told::<i64>("10.0"), "/a must be a whole number, not a number with a fraction or exponent");
        assert_eq!(told::<i64>("null"), "/a must be a whole number, not null");
        assert_eq!(told::<i64>("9223372036854775808"), "/a is out of range");
        assert_eq!(told::<u32>("-1"), "/a is out of range");
        assert_eq!(told::<String>("7"), "/a must be a string, not a number");
        assert_eq!(told::<bool>("{}"), "/a must be a boolean, not an object");
        assert_eq!(told::<Vec<i64>>("true"), "/a must be an array, not a boolean");
        assert_eq!(told::<Address>("\"Bonn\""), "/a must be an object, not a string");
    }

    #[test]
    fn g13_a_body_must_be_one_object_without_doubles() {
        for body in ["", "[]", "1", "{", "{} {}", "null", "\u{feff}{}"] {
            assert!(Fields::parse(body.as_bytes()).is_err(), "{body}");
        }
        assert_eq!(errors(Fields::parse(br#"{"a": 1, "a": 1}"#)), ["/a the field is there twice"]);
    }
}
