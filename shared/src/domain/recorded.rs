//! For tests: every version of every record that was ever written, as a domain's folder has recorded it.
//!
//! `recorded.jsonl`, beside the schemas, has one line for each version: the SHA-256 of its `.avsc`, a value, and the bytes
//! that were written of it then. Lines are added when a version is new (`deploy/local/record-schemas`) and never changed,
//! so that a schema that is changed afterwards, or bytes that can't be read any more, are found before anybody has to.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use apache_avro::{
    Schema, reader::datum::GenericDatumReader, schema::EnumSchema, types::Value as Avro,
    writer::datum::GenericDatumWriter,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Aggregate, Fields};
use crate::{codec::Codec, compatibility, records::Records};

/// Set: new versions are recorded instead of missed.
pub const RECORD: &str = "MILLRACE_RECORD_SCHEMAS";

/// One version of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Full name of the record.
    pub record: String,
    /// 1 is the first.
    pub version: usize,
    /// Of the text of its schema, in hex.
    pub sha256: String,
    /// A value, as JSON has it.
    pub value: Value,
    /// The same as it was written: an Avro datum, in hex.
    pub bytes: String,
}

/// Holds the commands, events and snapshots of a domain against what its folder has recorded.
///
/// # Panics
/// With one line for each thing that is not as it must be.
#[track_caller]
pub fn check<A: Aggregate>(schemas: &str) {
    let docs = A::docs();
    let examples = docs.commands.iter().map(|command| &command.body.example);
    let examples = examples.chain(docs.events.iter().map(|event| &event.data.example)).chain([&docs.view.example]);
    // Of what is not described: fields of a name are mostly alike.
    let any =
        || Some(examples.clone().filter_map(Value::as_object).flatten().map(|(n, v)| (n.clone(), v.clone())).collect());
    let event = |name: &str| {
        let found = docs.events.iter().find(|event| event.name == name);
        found.map(|event| event.data.example.clone()).or_else(any)
    };
    let command = |name: &str| {
        let found = docs.commands.iter().find(|command| {
            let fields = Fields::parse(command.body.example.to_string().as_bytes());
            fields.and_then(|fields| A::command(command.name, fields)).is_ok_and(|command| command.name() == name)
        });
        found.map(|command| command.body.example.clone()).or_else(any)
    };
    let mut folder = Folder::open(Path::new(schemas));
    folder.hold::<A::Command>(command);
    folder.hold::<A::Event>(event);
    folder.hold::<A::Snapshot>(|_| any());
    folder.finish();
}

/// A folder of schemas.
#[derive(Debug)]
pub struct Folder {
    file: PathBuf,
    lines: Vec<Line>,
    /// Those of `lines` whose records are listed.
    listed: Vec<usize>,
    record: bool,
    wrong: Vec<String>,
}

impl Folder {
    /// Reads what is recorded.
    #[track_caller]
    pub fn open(schemas: &Path) -> Self {
        let file = schemas.join("recorded.jsonl");
        let text = fs::read_to_string(&file).unwrap_or_default();
        let mut wrong = Vec::new();
        let parse = |(at, line)| match serde_json::from_str(line) {
            Ok(line) => Some(line),
            Err(error) => {
                wrong.push(format!("line {} can't be read: {error}", at + 1));
                None
            }
        };
        let lines = text.lines().enumerate().filter_map(parse).collect();
        Self { file, lines, listed: Vec::new(), record: std::env::var_os(RECORD).is_some(), wrong }
    }

    /// Holds a set of records against it; `sample` gives a value of a record that is new, where there is one.
    pub fn hold<R: Records>(&mut self, sample: impl Fn(&str) -> Option<Value>) {
        let codec = match Codec::<R>::datums() {
            Ok(codec) => codec,
            Err(error) => return self.wrong.push(error.to_string()),
        };
        for (index, record) in R::TYPES.iter().enumerate() {
            let name = format!("{}.{}", R::NAMESPACE, record.name);
            let mut before: Vec<Schema> = Vec::new();
            for (at, text) in record.versions.iter().enumerate() {
                let version = at + 1;
                let schema = match Schema::parse_str(text) {
                    Ok(schema) => schema,
                    Err(error) => {
                        self.wrong.push(format!("{name} v{version} can't be parsed: {error}"));
                        continue;
                    }
                };
                for (older, schema_of) in before.iter().enumerate() {
                    if let Err(reason) = compatibility::check(schema_of, &schema) {
                        let older = older + 1;
                        self.wrong.push(format!("{name} v{version} breaks FULL_TRANSITIVE against v{older}: {reason}"));
                    }
                }
                let is_this = |line: &Line| line.record == name && line.version == version;
                let found = match self.lines.iter().position(is_this) {
                    Some(found) => Ok(found),
                    None if self.record => self.append(&name, version, text, &schema, sample(record.name)),
                    None => Err(format!("{name} v{version} is not recorded yet: run deploy/local/record-schemas")),
                };
                match found {
                    Ok(found) => {
                        self.listed.push(found);
                        let line = &self.lines[found];
                        let reads = |bytes: &[u8]| codec.decode_datum(index, at, bytes).is_some();
                        self.wrong.extend(judge(line, text, &schema, reads).err());
                    }
                    Err(reason) => self.wrong.push(reason),
                }
                before.push(schema);
            }
        }
    }

    fn append(
        &mut self,
        name: &str,
        version: usize,
        text: &str,
        schema: &Schema,
        sample: Option<Value>,
    ) -> Result<usize, String> {
        let unfit = |error: apache_avro::Error| format!("no value of {name} v{version} can be made: {error}");
        let value = value_like(schema, sample.as_ref());
        let writer = GenericDatumWriter::builder(schema).build().map_err(unfit)?;
        let bytes = writer.write_value_to_vec(value.clone()).map_err(unfit)?;
        let value = Value::try_from(value).map_err(unfit)?;
        let line = Line { record: name.to_owned(), version, sha256: sha256(text), value, bytes: hex(&bytes) };
        self.lines.push(line);
        Ok(self.lines.len() - 1)
    }

    /// Writes what was recorded just now.
    ///
    /// # Panics
    /// When something was not as it must be.
    #[track_caller]
    pub fn finish(mut self) {
        for (at, line) in self.lines.iter().enumerate() {
            if !self.listed.contains(&at) {
                let gone =
                    format!("{} v{} is recorded, and not listed in records! any more", line.record, line.version);
                self.wrong.push(gone + ": whoever wrote it, its records are there for ever (it may be `retired`)");
            }
        }
        let file = self.file.display();
        assert!(self.wrong.is_empty(), "{file}\n{}", self.wrong.join("\n"));
        if self.record {
            let text = self.lines.iter().fold(String::new(), |mut text, line| {
                let line = serde_json::to_string(line).unwrap_or_else(|error| panic!("{file}: {error}"));
                let _ = writeln!(text, "{line}");
                text
            });
            fs::write(&self.file, text).unwrap_or_else(|error| panic!("{file}: {error}"));
        }
    }
}

/// Whether a version is still what was recorded of it.
fn judge(line: &Line, text: &str, schema: &Schema, reads: impl Fn(&[u8]) -> bool) -> Result<(), String> {
    let name = format!("{} v{}", line.record, line.version);
    if sha256(text) != line.sha256 {
        return Err(format!("the schema of {name} was changed after it was recorded: add another version instead"));
    }
    let bytes = unhex(&line.bytes).ok_or_else(|| format!("the bytes of {name} are no hex"))?;
    let unreadable = |error: apache_avro::Error| format!("the bytes of {name} can't be read: {error}");
    let value = GenericDatumReader::builder(schema)
        .build()
        .and_then(|reader| reader.read_value(&mut bytes.as_slice()))
        .and_then(Value::try_from)
        .map_err(unreadable)?;
    if value != line.value {
        return Err(format!("the bytes of {name} are {value}, and not {} as recorded", line.value));
    }
    if !reads(&bytes) {
        return Err(format!("the bytes of {name} fit its schema, but not its struct, or what that is upcast to"));
    }
    Ok(())
}

/// A value that fits, like the sample where there is one.
fn value_like(schema: &Schema, sample: Option<&Value>) -> Avro {
    let number = sample.and_then(Value::as_i64).unwrap_or(42);
    match schema {
        Schema::Boolean => Avro::Boolean(sample.and_then(Value::as_bool).unwrap_or(true)),
        Schema::Int => Avro::Int(i32::try_from(number).unwrap_or(i32::MAX)),
        Schema::Long => Avro::Long(number),
        Schema::TimestampMicros => Avro::TimestampMicros(number),
        Schema::Bytes => Avro::Bytes(b"bytes".to_vec()),
        Schema::String => Avro::String(sample.and_then(Value::as_str).unwrap_or("text").to_owned()),
        Schema::Enum(EnumSchema { symbols, .. }) => {
            let at = symbols.iter().position(|symbol| sample.is_some_and(|sample| sample == symbol)).unwrap_or(0);
            Avro::Enum(at as u32, symbols.get(at).cloned().unwrap_or_default())
        }
        Schema::Union(union) => {
            let is_null = |variant: &&Schema| matches!(variant, Schema::Null);
            let wants_null = sample.is_some_and(Value::is_null);
            // All that is optional is there, unless the sample says otherwise.
            let at = union.variants().iter().position(|variant| is_null(&variant) == wants_null).unwrap_or(0);
            Avro::Union(at as u32, Box::new(value_like(&union.variants()[at], sample)))
        }
        Schema::Array(array) => Avro::Array(vec![value_like(&array.items, sample.and_then(|sample| sample.get(0)))]),
        Schema::Record(record) => {
            let value = |name: &String, schema| value_like(schema, sample.and_then(|sample| sample.get(name)));
            Avro::Record(record.fields.iter().map(|f| (f.name.clone(), value(&f.name, &f.schema))).collect())
        }
        _ => Avro::Null,
    }
}

fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests;
