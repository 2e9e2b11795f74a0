//! Changes as bytes: each is serialised once, and what was made is shared by all who get it.

use std::sync::Arc;

use axum::body::Bytes;
use millrace_shared::{http, problem::Problem};
use redis::{FromRedisValue, streams::StreamId};
use serde::Serialize;
use serde_json::value::RawValue;

use super::position::{EntryId, Ids, Position};

/// An entry of a feed.
#[derive(Debug)]
pub struct Change {
    /// Partition.
    pub partition: usize,
    /// Its place there.
    pub at: EntryId,
    /// The aggregate.
    pub id: String,
    sequence: u64,
    r#type: String,
    time: String,
}

impl Change {
    /// Reads an entry.
    pub fn read(partition: usize, entry: &StreamId) -> Result<Self, Problem> {
        let damaged = |what: &dyn std::fmt::Display| {
            http::internal(&format_args!("entry {} of the change feed of partition {partition}: {what}", entry.id))
        };
        fn field<T: FromRedisValue>(entry: &StreamId, name: &str) -> Option<T> {
            entry.get(name)
        }
        Ok(Self {
            partition,
            at: entry.id.parse().map_err(|error: String| damaged(&error))?,
            id: field(entry, "id").ok_or_else(|| damaged(&"no id"))?,
            sequence: field(entry, "seq").ok_or_else(|| damaged(&"no seq"))?,
            r#type: field(entry, "type").ok_or_else(|| damaged(&"no type"))?,
            time: field(entry, "time").ok_or_else(|| damaged(&"no time"))?,
        })
    }

    /// Writes it, with its id when it is to be told.
    pub fn write(&self, out: &mut Vec<u8>, view: &str) -> Result<(), Problem> {
        write(out, &self.id, self.sequence, Some((&self.r#type, &self.time)), view)
    }
}

#[derive(Serialize)]
struct Data<'a> {
    id: &'a str,
    sequence: u64,
    r#type: Option<&'a str>,
    time: Option<&'a str>,
    view: &'a RawValue,
}

/// Writes a view as a change: of an event with a type and a time, or of none in particular.
pub fn write(
    out: &mut Vec<u8>,
    id: &str,
    sequence: u64,
    event: Option<(&str, &str)>,
    view: &str,
) -> Result<(), Problem> {
    let view = serde_json::from_str(view).map_err(|error| http::internal(&format_args!("view of {id}: {error}")))?;
    let (r#type, time) = event.unzip();
    out.extend_from_slice(b"event: change\ndata: ");
    let begun = out.len();
    serde_json::to_writer(&mut *out, &Data { id, sequence, r#type, time, view })
        .map_err(|error| http::internal(&error))?;
    // A view that somebody wrote by hand may have lines: JSON may do without, the stream may not.
    for byte in &mut out[begun..] {
        if matches!(*byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    out.extend_from_slice(b"\n\n");
    Ok(())
}

/// Writes the line that tells a position.
pub fn write_id(out: &mut Vec<u8>, ids: &Ids, position: &Position) {
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(ids.encode(position).as_bytes());
    out.push(b'\n');
}

/// A change as it is sent.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Partition.
    pub partition: usize,
    /// Its place there.
    pub at: EntryId,
    bytes: Bytes,
    /// Where the line with the id ends.
    head: usize,
}

impl Frame {
    /// With the id of the one who has read all feeds up to here.
    pub fn whole(&self) -> Bytes {
        self.bytes.clone()
    }

    /// Without id.
    pub fn without_id(&self) -> Bytes {
        self.bytes.slice(self.head..)
    }
}

/// Changes that were read together.
#[derive(Clone, Debug)]
pub struct Batch {
    /// How far the reader had got before them, and after.
    pub before: Arc<Position>,
    /// See above.
    pub after: Arc<Position>,
    /// One by one.
    pub frames: Vec<Frame>,
    /// All of them, where they are all that there are.
    pub whole: Option<Bytes>,
}

impl Batch {
    /// What the reader has read, with the views.
    pub fn new<'a>(
        ids: &Ids,
        before: Arc<Position>,
        changes: impl Iterator<Item = (&'a Change, &'a str)>,
    ) -> Result<Self, Problem> {
        let (mut after, mut all, mut ends) = (Position::clone(&before), Vec::new(), Vec::new());
        for (change, view) in changes {
            after.at[change.partition] = change.at;
            let begun = all.len();
            write_id(&mut all, ids, &after);
            let head = all.len() - begun;
            change.write(&mut all, view)?;
            ends.push((change.partition, change.at, begun..all.len(), head));
        }
        let whole = Bytes::from(all);
        let frame = |(partition, at, range, head)| Frame { partition, at, bytes: whole.slice(range), head };
        let frames = ends.into_iter().map(frame).collect();
        Ok(Self { before, after: Arc::new(after), frames, whole: Some(whole) })
    }

    /// Only some of the changes. They are copied: a slow reader of few must not keep those of everybody in memory.
    pub fn part(&self, frames: Vec<Frame>) -> Self {
        let copied = |frame: Frame| Frame { bytes: Bytes::copy_from_slice(&frame.bytes), ..frame };
        let frames = frames.into_iter().map(copied).collect();
        Self { before: self.before.clone(), after: self.after.clone(), frames, whole: None }
    }
}
