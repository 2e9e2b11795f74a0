//! Avro values in the Confluent wire format: one zero byte, the schema's id in four bytes, the datum.
//!
//! The registry is asked once for each schema id, never for a record. A value is read with the schema it was written
//! with; hostile bytes are expected: sizes are bounded, nothing is left over, recursive schemas are refused
//! (apache-avro 0.22 recurses without limit).

mod ours;

use std::{
    borrow::Cow,
    marker::PhantomData,
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant},
};

use apache_avro::{
    Schema, reader::datum::GenericDatumReader, util::max_allocation_bytes, writer::datum::GenericDatumWriter,
};
use futures_util::future::try_join_all;

use crate::{
    fast_hash::FastMap,
    records::Records,
    registry::{self, Registry},
};
use ours::Ours;

/// Largest value that is decoded, in bytes. Kafka's own default limit of a record is as large.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// Largest schema of somebody else that is looked at, in bytes.
const MAX_SCHEMA_BYTES: usize = 256 << 10;
/// Deepest nesting of somebody else's schema.
const MAX_SCHEMA_DEPTH: usize = 32;
/// How long the registry's "no such id" is believed.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);
/// How long a registry that did not answer is not asked again: each question may take seconds.
const UNAVAILABLE_FOR: Duration = Duration::from_secs(2);
/// Ids remembered at most; garbage on a topic names four billion different ones.
const MAX_IDS: usize = 10_000;
const PREFIX_BYTES: usize = 5;

/// Why a value can't be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It will never be readable.
    #[error("{0}")]
    Malformed(String),
    /// Its schema is fine, but not one of this release's records.
    #[error("{0} is no record that this release knows")]
    UnknownRecord(String),
    /// A version of a known record that this release does not know, where resolving it is not allowed.
    #[error("{0} in a version that this release does not know")]
    UnknownVersion(String),
    /// The registry can't be asked at the moment: try again.
    #[error("{0}")]
    Unavailable(String),
}

/// What to do with a version of a known record that this release does not know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Foreign {
    /// Resolve it into ours by Avro's rules: commands, and events for views.
    Resolve,
    /// Refuse it: a decision must not rest on half-understood history.
    Refuse,
}

/// A value that was read, and how it was recorded: types and versions that lie in a topic and those that values have at
/// present are not the same.
#[derive(Debug)]
pub struct Recorded<'a, R> {
    /// What it is at present.
    pub value: R,
    /// Which of [`Records::TYPES`] lies in the topic.
    pub index: usize,
    /// In which version; 0 is the oldest.
    pub version: usize,
    /// The Avro datum. A version that this release does not know is converted to the last one that it does.
    pub datum: Cow<'a, [u8]>,
}

impl<R: Records> Recorded<'_, R> {
    /// The record type that lies in the topic, unqualified.
    pub fn name(&self) -> &'static str {
        R::TYPES[self.index].name
    }
}

/// Encodes and decodes one set of records.
pub struct Codec<R> {
    /// None in a codec for bare datums.
    registry: Option<Registry>,
    /// By record type; empty in a codec that only reads.
    write_ids: Vec<Option<u32>>,
    writers: Vec<GenericDatumWriter<'static>>,
    /// By record type and version.
    readers: Vec<Vec<GenericDatumReader<'static>>>,
    schemas: Vec<Vec<&'static Schema>>,
    ours: Ours,
    known: RwLock<FastMap<u32, Arc<Known>>>,
    /// Since when, and why, the registry can't be asked.
    unavailable: Mutex<Option<(Instant, String)>>,
    records: PhantomData<fn() -> R>,
}

/// What is known of a schema id.
enum Known {
    Ours { index: usize, version: usize },
    Newer { index: usize, reader: GenericDatumReader<'static> },
    UnknownRecord(String),
    Useless(String),
    Unknown(Instant),
}

impl<R: Records> Codec<R> {
    /// A codec that only reads.
    pub fn reading(registry: Registry) -> Result<Self, registry::Error> {
        Self::with(Some(registry))
    }

    fn with(registry: Option<Registry>) -> Result<Self, registry::Error> {
        max_allocation_bytes(MAX_VALUE_BYTES);
        let schemas: Vec<Vec<&'static Schema>> =
            R::TYPES.iter().map(|record| record.versions.iter().map(|text| leak(own_schema(text))).collect()).collect();
        let unusable = |error: String| registry::Error::Unavailable(format!("a schema of ours can't be used: {error}"));
        let writers = schemas
            .iter()
            .filter_map(|versions| versions.last())
            .map(|schema| GenericDatumWriter::builder(schema).human_readable(false).build())
            .collect::<Result<_, _>>()
            .map_err(|error| unusable(error.to_string()))?;
        let readers = schemas
            .iter()
            .map(|versions| versions.iter().map(|schema| reader_of(schema, None)).collect())
            .collect::<Result<_, _>>()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self {
            registry,
            write_ids: Vec::new(),
            writers,
            readers,
            schemas,
            ours: Ours::new(),
            known: RwLock::default(),
            unavailable: Mutex::default(),
            records: PhantomData,
        })
    }

    /// A codec for bare datums, which need no registry.
    pub fn datums() -> Result<Self, registry::Error> {
        Self::with(None)
    }

    /// A codec that also writes: registers every version of every record that is written under the subjects of `topic`
    /// (TopicRecordName). `guarded`: the registry is told to refuse incompatible versions.
    pub async fn registering(registry: Registry, topic: &str, guarded: bool) -> Result<Self, registry::Error> {
        let mut codec = Self::reading(registry.clone())?;
        // Side by side: the registry takes 5 to 10 ms for each question.
        let registered = R::TYPES.iter().map(|record| {
            let (registry, subject) = (&registry, format!("{topic}-{}.{}", R::NAMESPACE, record.name));
            async move {
                let mut ids = Vec::new();
                if record.is_retired {
                    // Where such records lie, the release that wrote them has registered them.
                } else if guarded {
                    ids = registry.register_compatible(&subject, record.versions).await?;
                } else {
                    for schema in record.versions {
                        ids.push(registry.register(&subject, schema).await?);
                    }
                }
                Ok::<_, registry::Error>(ids.last().copied())
            }
        });
        codec.write_ids = try_join_all(registered).await?;
        Ok(codec)
    }

    /// A codec whose schema ids are 1, 2, 3, … in the order of the records: for tests that talk to no registry.
    pub fn unregistered(registry: Registry) -> Result<Self, registry::Error> {
        let mut codec = Self::reading(registry)?;
        codec.write_ids = (1..).map(Some).take(R::TYPES.len()).collect();
        let known = codec
            .schemas
            .iter()
            .enumerate()
            .map(|(index, versions)| Known::Ours { index, version: versions.len() - 1 });
        codec.known = RwLock::new((1..).zip(known.map(Arc::new)).collect());
        Ok(codec)
    }

    /// Appends the value in wire format.
    ///
    /// # Errors
    /// When the value does not fit its own schema, or the codec only reads: a fault of ours.
    pub fn encode(&self, value: &R, out: &mut Vec<u8>) -> Result<(), apache_avro::Error> {
        let index = value.index();
        self.prefix(index, out)?;
        value.write(&self.writers[index], out)
    }

    /// Appends what stands before the datum of a record type.
    ///
    /// # Errors
    /// When the codec only reads.
    pub fn prefix(&self, index: usize, out: &mut Vec<u8>) -> Result<(), apache_avro::Error> {
        let id = self
            .write_ids
            .get(index)
            .copied()
            .flatten()
            .ok_or_else(|| <apache_avro::Error as serde::ser::Error>::custom("this codec only reads"))?;
        out.push(0);
        out.extend_from_slice(&id.to_be_bytes());
        Ok(())
    }

    /// Appends the bare datum in the latest version of its schema, for stores of our own.
    pub fn encode_datum(&self, value: &R, out: &mut Vec<u8>) -> Result<(), apache_avro::Error> {
        value.write(&self.writers[value.index()], out)
    }

    /// Reads a bare datum; `None` when this release has no such record or version, or it does not fit.
    pub fn decode_datum(&self, index: usize, version: usize, mut datum: &[u8]) -> Option<R> {
        let reader = self.readers.get(index)?.get(version)?;
        let value = R::read(index, version, reader, &mut datum).ok()?;
        datum.is_empty().then_some(value)
    }

    /// A value as this release records it: for tests.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    pub fn record(&self, value: R) -> Result<Recorded<'static, R>, apache_avro::Error> {
        let (index, mut datum) = (value.index(), Vec::new());
        self.encode_datum(&value, &mut datum)?;
        Ok(Recorded { value, index, version: R::TYPES[index].versions.len() - 1, datum: datum.into() })
    }

    /// Reads a value. May ask the registry, so it must not run on a thread of the async runtime.
    pub fn decode(&self, bytes: &[u8], foreign: Foreign, runtime: &tokio::runtime::Handle) -> Result<R, DecodeError> {
        self.decode_recorded(bytes, foreign, runtime).map(|recorded| recorded.value)
    }

    /// The same, and as what it was recorded.
    pub fn decode_recorded<'a>(
        &self,
        bytes: &'a [u8],
        foreign: Foreign,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Recorded<'a, R>, DecodeError> {
        if bytes.len() > MAX_VALUE_BYTES {
            return Err(DecodeError::Malformed(format!("value of {} bytes, {MAX_VALUE_BYTES} at most", bytes.len())));
        }
        let (prefix, mut datum) = bytes
            .split_at_checked(PREFIX_BYTES)
            .ok_or_else(|| DecodeError::Malformed("value shorter than the wire format's five bytes".into()))?;
        if prefix[0] != 0 {
            return Err(DecodeError::Malformed("value does not begin with the wire format's zero byte".into()));
        }
        let id = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
        if let Some((index, version)) = self.ours.get(id) {
            return self.recorded(index, version, datum);
        }
        match &*self.known(id, runtime)? {
            &Known::Ours { index, version } => {
                self.ours.set(id, index, version);
                self.recorded(index, version, datum)
            }
            Known::Newer { index, .. } if foreign == Foreign::Refuse => {
                Err(DecodeError::UnknownVersion(format!("{}.{}", R::NAMESPACE, R::TYPES[*index].name)))
            }
            Known::Newer { index, reader } => {
                let resolved = reader.read_value(&mut datum).map_err(malformed)?;
                finished(datum)?;
                let mut ours = Vec::new();
                self.writers[*index].write_value(&mut ours, resolved).map_err(malformed)?;
                let version = self.schemas[*index].len() - 1;
                let reader = &self.readers[*index][version];
                let value = R::read(*index, version, reader, &mut ours.as_slice()).map_err(malformed)?;
                Ok(Recorded { value, index: *index, version, datum: ours.into() })
            }
            Known::UnknownRecord(name) => Err(DecodeError::UnknownRecord(name.clone())),
            Known::Useless(reason) => Err(DecodeError::Malformed(reason.clone())),
            Known::Unknown(_) => Err(DecodeError::Malformed(format!("the registry knows no schema with id {id}"))),
        }
    }

    fn recorded<'a>(&self, index: usize, version: usize, datum: &'a [u8]) -> Result<Recorded<'a, R>, DecodeError> {
        let mut rest = datum;
        let value = R::read(index, version, &self.readers[index][version], &mut rest).map_err(malformed)?;
        finished(rest)?;
        Ok(Recorded { value, index, version, datum: datum.into() })
    }

    fn known(&self, id: u32, runtime: &tokio::runtime::Handle) -> Result<Arc<Known>, DecodeError> {
        let cached = self.known.read().unwrap_or_else(|e| e.into_inner()).get(&id).cloned();
        match cached {
            Some(known) if !matches!(&*known, Known::Unknown(since) if since.elapsed() > UNKNOWN_FOR) => {
                return Ok(known);
            }
            _ => {}
        }
        let Some(registry) = &self.registry else {
            return Err(DecodeError::Malformed("a codec for bare datums reads no others".into()));
        };
        let mut unavailable = self.unavailable.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((since, reason)) = &*unavailable
            && since.elapsed() < UNAVAILABLE_FOR
        {
            return Err(DecodeError::Unavailable(reason.clone()));
        }
        let known = Arc::new(match runtime.block_on(registry.schema(id)) {
            Ok(text) => self.classify(&text),
            Err(registry::Error::UnknownId(_)) => Known::Unknown(Instant::now()),
            Err(error) => {
                *unavailable = Some((Instant::now(), error.to_string()));
                return Err(DecodeError::Unavailable(error.to_string()));
            }
        });
        drop(unavailable);
        let mut all = self.known.write().unwrap_or_else(|e| e.into_inner());
        if all.len() >= MAX_IDS {
            all.retain(|_, known| matches!(**known, Known::Ours { .. }));
        }
        all.insert(id, known.clone());
        Ok(known)
    }

    fn classify(&self, text: &str) -> Known {
        if text.len() > MAX_SCHEMA_BYTES {
            return Known::Useless(format!("schema of {} bytes, {MAX_SCHEMA_BYTES} at most", text.len()));
        }
        let schema = match Schema::parse_str(text) {
            Ok(schema) => schema,
            Err(error) => return Known::Useless(format!("its schema can't be parsed: {error}")),
        };
        if let Err(reason) = bounded(&schema, 0) {
            return Known::Useless(reason);
        }
        let name = schema.name().map(|name| name.fullname(None)).unwrap_or_default();
        let Some(index) = R::TYPES.iter().position(|record| name == format!("{}.{}", R::NAMESPACE, record.name)) else {
            return Known::UnknownRecord(if name.is_empty() { "a value that is no record".into() } else { name });
        };
        let ours = &self.schemas[index];
        let canonical = schema.canonical_form();
        let made = match ours.iter().position(|own| own.canonical_form() == canonical) {
            Some(version) => Ok(Known::Ours { index, version }),
            // Leaked for each foreign schema that is looked at: as many as people register under our records' names.
            None => reader_of(leak(schema), ours.last().copied()).map(|reader| Known::Newer { index, reader }),
        };
        made.unwrap_or_else(|error| Known::Useless(error.to_string()))
    }
}

fn malformed(error: apache_avro::Error) -> DecodeError {
    DecodeError::Malformed(format!("value does not fit its schema: {error}"))
}

fn finished(rest: &[u8]) -> Result<(), DecodeError> {
    if rest.is_empty() {
        return Ok(());
    }
    Err(DecodeError::Malformed(format!("{} bytes are left over behind the value", rest.len())))
}

fn reader_of(
    writer: &'static Schema,
    reader: Option<&'static Schema>,
) -> Result<GenericDatumReader<'static>, DecodeError> {
    GenericDatumReader::builder(writer)
        .maybe_reader_schema(reader)
        .human_readable(false)
        .build()
        .map_err(|error| DecodeError::Malformed(format!("its schema can't be used: {error}")))
}

/// apache-avro's readers and writers borrow their schema; ours live as long as the process.
fn leak(schema: Schema) -> &'static Schema {
    Box::leak(Box::new(schema))
}

#[allow(clippy::expect_used, reason = "the texts are part of the binary and parsed by a test")]
fn own_schema(text: &str) -> Schema {
    Schema::parse_str(text).expect("a bundled schema parses")
}

fn takes_no_bytes(schema: &Schema) -> bool {
    match schema {
        Schema::Null => true,
        Schema::Fixed(fixed) => fixed.size == 0,
        Schema::Record(record) => record.fields.iter().all(|field| takes_no_bytes(&field.schema)),
        _ => false,
    }
}

/// Refuses schemas that could make a decoder recurse without end.
fn bounded(schema: &Schema, depth: usize) -> Result<(), String> {
    if depth > MAX_SCHEMA_DEPTH {
        return Err(format!("its schema is nested more than {MAX_SCHEMA_DEPTH} deep"));
    }
    match schema {
        Schema::Ref { .. } => Err("its schema refers to a type by name, which may recurse".into()),
        Schema::Record(record) => record.fields.iter().try_for_each(|field| bounded(&field.schema, depth + 1)),
        // Apache-avro makes room for what a length says; a million of what takes no bytes cost nothing to send.
        Schema::Fixed(fixed) if fixed.size > MAX_VALUE_BYTES => {
            Err("its schema has a field of fixed size too large".into())
        }
        Schema::Array(array) if takes_no_bytes(&array.items) => Err("its schema has an array of nothing".into()),
        Schema::Array(array) => bounded(&array.items, depth + 1),
        Schema::Map(map) => bounded(&map.types, depth + 1),
        Schema::Union(union) => union.variants().iter().try_for_each(|variant| bounded(variant, depth + 1)),
        _ => Ok(()),
    }
}
