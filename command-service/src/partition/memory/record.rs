//! How an outcome lies in a chunk of the store.

use jiff::Timestamp;
use millrace_shared::fingerprint::Fingerprint;

use super::{CommandKey, Remembered};

/// An entry as a chunk's body holds it.
pub(super) struct Record<'a> {
    pub(super) fingerprint: Fingerprint,
    pub(super) at: Timestamp,
    pub(super) aggregate_end: u16,
    pub(super) command_end: u16,
    pub(super) bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// Bytes before its own.
    const HEAD: usize = 16 + 8 + 2 + 2 + 4;

    pub(super) fn is_of(&self, key: CommandKey<'_>) -> bool {
        let (aggregate, command) = (usize::from(self.aggregate_end), usize::from(self.command_end));
        self.bytes[..aggregate] == *key.aggregate_id.as_bytes()
            && self.bytes[aggregate..command] == *key.command_id.as_bytes()
    }

    pub(super) fn remembered(&self) -> Remembered<'a> {
        let outcome = &self.bytes[usize::from(self.command_end)..];
        Remembered { fingerprint: self.fingerprint, outcome: outcome.into(), at: self.at }
    }

    pub(super) fn key(&self) -> Option<CommandKey<'a>> {
        let (ids, _) = self.bytes.split_at(self.command_end.into());
        let (aggregate, command) = ids.split_at(self.aggregate_end.into());
        Some(CommandKey {
            aggregate_id: std::str::from_utf8(aggregate).ok()?,
            command_id: std::str::from_utf8(command).ok()?,
        })
    }

    pub(super) fn size(&self) -> usize {
        Self::HEAD + self.bytes.len()
    }

    pub(super) fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.fingerprint);
        to.extend_from_slice(&self.at.as_microsecond().to_le_bytes());
        to.extend_from_slice(&self.aggregate_end.to_le_bytes());
        to.extend_from_slice(&self.command_end.to_le_bytes());
        to.extend_from_slice(&(self.bytes.len() as u32).to_le_bytes());
        to.extend_from_slice(self.bytes);
    }

    /// Takes the first one off a body.
    pub(super) fn read(body: &mut &'a [u8]) -> Option<Self> {
        let rest = body;
        let fingerprint = *rest.split_off(..16)?.first_chunk()?;
        let at = i64::from_le_bytes(*rest.split_off(..8)?.first_chunk()?);
        let aggregate_end = u16::from_le_bytes(*rest.split_off(..2)?.first_chunk()?);
        let command_end = u16::from_le_bytes(*rest.split_off(..2)?.first_chunk()?);
        let len = u32::from_le_bytes(*rest.split_off(..4)?.first_chunk()?) as usize;
        let bytes = rest.split_off(..len)?;
        let at = Timestamp::from_microsecond(at).ok()?;
        (aggregate_end <= command_end && usize::from(command_end) <= len).then_some(Self {
            fingerprint,
            at,
            aggregate_end,
            command_end,
            bytes,
        })
    }
}
