//! An aggregate's state as it is kept outside of memory: as a record of the snapshot topic, or in a local store.

use std::borrow::Cow;

use jiff::Timestamp;
use millrace_shared::{
    codec::{Codec, DecodeError, Foreign, Recorded},
    domain::Aggregate,
    envelope::{names, parse_version},
    personal,
    records::Records,
};
use tokio::runtime::Handle;

use super::Stored;

/// A state, and of which moment it is.
#[derive(Debug)]
pub struct Kept<S> {
    /// The state.
    pub state: S,
    /// Sequence of the last event in it.
    pub version: u64,
    /// Time of that event.
    pub last_time: Timestamp,
}

/// A record of the snapshot topic.
#[derive(Debug)]
pub struct Snapshot<'a, S> {
    /// What it holds.
    pub kept: Kept<S>,
    /// Which record in which version, and its datum, which is sealed.
    index: usize,
    schema: usize,
    datum: Cow<'a, [u8]>,
}

impl<S> Snapshot<'_, S> {
    /// For a store, as [`to_store`]; appended.
    pub fn to_store(&self, bytes: &mut Vec<u8>) {
        head((self.kept.version, self.kept.last_time), self.kept.version, (self.index, self.schema), bytes);
        bytes.extend_from_slice(&self.datum);
    }
}

/// Why a snapshot is not used.
#[derive(Debug)]
pub enum Unused {
    /// It is of another event topic: as if it were not there.
    OtherTopic,
    /// This release can't read it, or its state means something else.
    Unreadable(String),
    /// The registry can't be asked what it is.
    Unavailable(String),
}

/// Opens what is personal in a kept state, of the aggregate with this id; or leaves it sealed.
pub type Open<'a, A> = &'a dyn Fn(&mut <A as Aggregate>::Snapshot, &str) -> Result<(), personal::Error>;

/// Reads a record of the snapshot topic that is of the aggregate with this id.
///
/// # Errors
/// See [`Unused`].
pub fn from_snapshot<'a, A: Aggregate>(
    codec: &Codec<A::Snapshot>,
    events_topic_id: &str,
    (id, record): (&str, &Stored<'a>),
    open: Open<'_, A>,
    runtime: &Handle,
) -> Result<Snapshot<'a, A::State>, Unused> {
    let header = |wanted| {
        let (_, value) = record.headers.iter().find(|(name, _)| *name == wanted)?;
        std::str::from_utf8((*value)?).ok()
    };
    let number = |name| header(name).and_then(parse_version);
    match header(names::TOPIC_ID) {
        None => return Err(Unused::Unreadable("its headers tell no event topic".to_owned())),
        Some(id) if id != events_topic_id => return Err(Unused::OtherTopic),
        Some(_) => {}
    }
    if number(names::STATE_VERSION) != Some(u64::from(A::STATE_VERSION)) {
        return Err(Unused::Unreadable("it is of a release whose states mean something else".to_owned()));
    }
    let time = header(names::TIME).and_then(|text| text.parse::<Timestamp>().ok());
    let (Some(version), Some(last_time)) = (number(names::SEQUENCE), time) else {
        return Err(Unused::Unreadable("its headers tell no sequence and time".to_owned()));
    };
    match codec.decode_recorded(record.value.unwrap_or_default(), Foreign::Refuse, runtime) {
        Ok(Recorded { value: mut snapshot, index, version: schema, datum }) => {
            open(&mut snapshot, id).map_err(|error| Unused::Unreadable(error.to_string()))?;
            Ok(Snapshot { kept: Kept { state: snapshot.into(), version, last_time }, index, schema, datum })
        }
        Err(DecodeError::Unavailable(reason)) => Err(Unused::Unavailable(reason)),
        Err(error) => Err(Unused::Unreadable(error.to_string())),
    }
}

/// For a store: version, time, what the snapshot covers, which record in which version; then the state, which is sealed.
///
/// # Errors
/// When the state does not fit its own schema.
pub fn to_store<A: Aggregate>(
    codec: &Codec<A::Snapshot>,
    (state, version, last_time): (&A::Snapshot, u64, Timestamp),
    covered: u64,
) -> Result<Vec<u8>, String> {
    let index = state.index();
    let mut bytes = Vec::with_capacity(64);
    head((version, last_time), covered, (index, A::Snapshot::TYPES[index].versions.len() - 1), &mut bytes);
    codec.encode_datum(state, &mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// What stands before the datum.
fn head((version, last_time): (u64, Timestamp), covered: u64, (index, schema): (usize, usize), bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&last_time.as_microsecond().to_le_bytes());
    bytes.extend_from_slice(&covered.to_le_bytes());
    bytes.push(index as u8);
    bytes.push(schema as u8);
}

/// From a store: the state of the aggregate of this id, and what its snapshot covers. `None`: it is not what
/// [`to_store`] wrote.
pub fn from_store<A: Aggregate>(
    codec: &Codec<A::Snapshot>,
    bytes: &[u8],
    id: &str,
    open: Open<'_, A>,
) -> Option<(Kept<A::State>, u64)> {
    let (version, rest) = bytes.split_first_chunk()?;
    let (last_time, rest) = rest.split_first_chunk()?;
    let (covered, rest) = rest.split_first_chunk()?;
    let (&[index, schema], datum) = rest.split_first_chunk()?;
    let mut snapshot = codec.decode_datum(usize::from(index), usize::from(schema), datum)?;
    open(&mut snapshot, id).ok()?;
    let kept = Kept {
        state: snapshot.into(),
        version: u64::from_le_bytes(*version),
        last_time: Timestamp::from_microsecond(i64::from_le_bytes(*last_time)).ok()?,
    };
    Some((kept, u64::from_le_bytes(*covered)))
}
