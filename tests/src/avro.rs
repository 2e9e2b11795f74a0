//! Avro in the Confluent wire format, and the registry, as any other program would use them.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex},
};

use apache_avro::{
    Schema, reader::datum::GenericDatumReader, types::Value as AvroValue, writer::datum::GenericDatumWriter,
};
use serde_json::{Value, json};

use crate::{
    Stack,
    http::{get, post},
};

/// The registry's Confluent-compatible API.
#[derive(Debug)]
pub struct Registry {
    url: String,
    schemas: Mutex<HashMap<u32, Arc<Schema>>>,
}

/// A decoded value.
#[derive(Clone, Debug, PartialEq)]
pub struct Datum {
    /// Full name of the record.
    pub record: String,
    /// Its fields.
    pub fields: Value,
}

impl Registry {
    /// The one of the shared stack.
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<Registry> =
            LazyLock::new(|| Registry { url: Stack::shared().registry.clone(), schemas: Mutex::default() });
        &SHARED
    }

    /// Registers a schema under any subject and returns its id.
    #[track_caller]
    pub fn register(&self, subject: &str, schema: &Value) -> u32 {
        let url = format!("{}/subjects/{subject}/versions", self.url);
        let answer = post(&url).json(&json!({"schema": schema.to_string()})).send();
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["id"].as_u64().and_then(|id| u32::try_from(id).ok()).expect("ids are small numbers")
    }

    /// What the registry answers at a path of its API.
    #[track_caller]
    pub fn ask(&self, path: &str) -> Value {
        let answer = get(&format!("{}{path}", self.url)).send();
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    /// The schema of an id.
    #[track_caller]
    pub fn schema(&self, id: u32) -> Arc<Schema> {
        if let Some(schema) = self.schemas.lock().expect("no test fails in here").get(&id) {
            return Arc::clone(schema);
        }
        let answer = self.ask(&format!("/schemas/ids/{id}"));
        let text = answer["schema"].as_str().expect("an answer holds a schema");
        let schema = Arc::new(Schema::parse_str(text).expect("the schema is valid"));
        self.schemas.lock().expect("no test fails in here").insert(id, Arc::clone(&schema));
        schema
    }

    /// Decodes a value by the schema that it names; every byte must belong to it.
    #[track_caller]
    pub fn decode(&self, bytes: &[u8]) -> Datum {
        let (Some(0), Some(id)) = (bytes.first(), bytes.get(1..5)) else {
            panic!("not in the Confluent wire format: {bytes:?}");
        };
        let schema = self.schema(u32::from_be_bytes(id.try_into().expect("four bytes")));
        let mut rest = &bytes[5..];
        let reader = GenericDatumReader::builder(&schema).build().expect("the schema is complete");
        let value = reader.read_value(&mut rest).expect("the value fits its schema");
        assert!(rest.is_empty(), "{} bytes are left over", rest.len());
        let record = schema.name().expect("values are records").fullname(None);
        Datum { record, fields: Value::try_from(value).expect("the value has a JSON form") }
    }

    /// The same value with another content.
    #[track_caller]
    pub fn rewrite(&self, bytes: &[u8], mut change: impl FnMut(&str, &mut AvroValue)) -> Vec<u8> {
        let schema = self.schema(u32::from_be_bytes(bytes[1..5].try_into().expect("four bytes")));
        let reader = GenericDatumReader::builder(&schema).build().expect("the schema is complete");
        let AvroValue::Record(mut fields) = reader.read_value(&mut &bytes[5..]).expect("the value fits its schema")
        else {
            panic!("values are records");
        };
        fields.iter_mut().for_each(|(name, value)| change(name, value));
        let writer = GenericDatumWriter::builder(&schema).build().expect("the schema is complete");
        let datum = writer.write_value_to_vec(AvroValue::Record(fields)).expect("the value fits its schema");
        [&bytes[..5], &datum].concat()
    }
}

/// A value in the Confluent wire format.
#[track_caller]
pub fn encode(id: u32, schema: &Value, fields: Vec<(&str, AvroValue)>) -> Vec<u8> {
    let schema = Schema::parse(schema).expect("the test's schema is valid");
    let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let writer = GenericDatumWriter::builder(&schema).build().expect("the schema is complete");
    let datum = writer.write_value_to_vec(AvroValue::Record(fields)).expect("the value fits its schema");
    [&[0][..], &id.to_be_bytes(), &datum].concat()
}
