//! What the snapshot topic holds beside states: how far they go.

use serde::{Deserialize, Serialize};

use crate::records;

records! {
    /// The one record of the snapshot topics that is no aggregate's state.
    pub enum CheckpointRecord in "millrace" {
        /// How far the snapshots of a partition go.
        Checkpoint { Checkpoint = "schemas/Checkpoint.v1.avsc" },
    }
}

/// How far the snapshots of a partition go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Kafka's id of the event topic.
    pub events_topic_id: String,
    /// The snapshots cover every event below this offset of the partition.
    pub offset: i64,
    /// The release's number for the meaning of states.
    pub state_version: i32,
    /// How many aggregates have a snapshot, at least: fewer means that some were deleted.
    pub aggregates: i64,
    /// When it was written, in microseconds since 1970.
    pub at: i64,
}

/// What the key of a checkpoint begins with; no aggregate's id holds a slash.
const CHECKPOINT: &str = "checkpoint/";

/// Key of a partition's checkpoint.
pub fn checkpoint_key(partition: i32) -> String {
    format!("{CHECKPOINT}{partition}")
}

/// Whether a key is that of a partition's checkpoint. Asked of every snapshot, so it makes no text.
pub fn is_checkpoint_key(key: &[u8], partition: i32) -> bool {
    key.starts_with(CHECKPOINT.as_bytes()) && key == checkpoint_key(partition).as_bytes()
}
