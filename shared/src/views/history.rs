//! One event of an aggregate's history, packed: about 60 bytes for a deposit with a UUID as command id.
//!
//! `format (1) | sequence (LEB128) | time in µs (8, big-endian) | length of command id (1) | command id | record (1) |
//! version of its schema (1) | Avro datum`: as it lies in the log, so that nothing is encoded again, what is personal stays
//! sealed, and a record of an earlier release stays what its upcast can read. It is read without the registry: record and version are indexes into the
//! domain's [`records!`](crate::records!) list, which is therefore only ever appended to (retired types keep their places).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    codec::{Codec, Recorded},
    envelope::EventMeta,
    records::Records,
};

const FORMAT: u8 = 1;

/// Stands for the oldest events of a history that were dropped: what is kept is folded on from here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Base<V> {
    /// When the aggregate's first event happened.
    pub first: Timestamp,
    /// When the last event that was dropped happened.
    pub time: Timestamp,
    /// The view after it. Its version + 1 is the sequence of the first event that is kept.
    pub view: V,
}

/// Packs an event.
pub fn pack<R>(meta: &EventMeta, recorded: &Recorded<'_, R>) -> Vec<u8> {
    let mut packed = Vec::with_capacity(meta.command_id.len() + recorded.datum.len() + 32);
    packed.push(FORMAT);
    let mut sequence = meta.sequence;
    while sequence >= 0x80 {
        packed.push(sequence as u8 | 0x80);
        sequence >>= 7;
    }
    packed.push(sequence as u8);
    packed.extend_from_slice(&meta.time.as_microsecond().to_be_bytes());
    let command_id = &meta.command_id.as_bytes()[..meta.command_id.len().min(255)];
    packed.push(command_id.len() as u8);
    packed.extend_from_slice(command_id);
    packed.push(recorded.index as u8);
    packed.push(recorded.version as u8);
    packed.extend_from_slice(&recorded.datum);
    packed
}

/// Unpacks an event; `None` when it was packed by a later release, or is damaged.
pub fn unpack<R: Records>(codec: &Codec<R>, packed: &[u8]) -> Option<(EventMeta, R)> {
    let Parts { sequence, time, command_id, index, version, datum } = Parts::of(packed)?;
    let event = codec.decode_datum(index, version, datum)?;
    let (time, command_id) = (Timestamp::from_microsecond(time).ok()?, String::from_utf8(command_id.to_vec()).ok()?);
    Some((EventMeta { sequence, time, command_id }, event))
}

/// What lies in a packed event.
struct Parts<'a> {
    sequence: u64,
    time: i64,
    command_id: &'a [u8],
    index: usize,
    version: usize,
    datum: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(packed: &'a [u8]) -> Option<Self> {
        let (&format, mut rest) = packed.split_first()?;
        if format != FORMAT {
            return None;
        }
        let mut take = |count: usize| {
            let (taken, after) = rest.split_at_checked(count)?;
            rest = after;
            Some(taken)
        };
        let (mut sequence, mut shift) = (0u64, 0u32);
        loop {
            let byte = take(1)?[0];
            sequence |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                break;
            }
            shift += 7;
        }
        let time = i64::from_be_bytes(take(8)?.try_into().ok()?);
        let length = take(1)?[0];
        let command_id = take(length.into())?;
        let (index, version) = (take(1)?[0].into(), take(1)?[0].into());
        Some(Self { sequence, time, command_id, index, version, datum: rest })
    }
}
