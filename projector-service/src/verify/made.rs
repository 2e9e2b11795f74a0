//! Whether views can have been made from the log that there is, by this release.

use millrace_shared::{
    kafka::source::Progress,
    views::{Keys, meta},
};

use super::Error;

/// What a partition of the views says of itself.
pub struct Made<'a> {
    /// The partition.
    pub partition: i32,
    /// Its checkpoint.
    pub offset: Option<i64>,
    /// Id of the topic.
    pub topic_id: Option<&'a str>,
    /// Whether it has caught up once, is being built, or freed.
    pub state: Option<&'a str>,
    /// Version of the code that folded it.
    pub fold: Option<u32>,
}

/// What a partition of the log says, asked later.
pub struct Log<'a> {
    /// The topic.
    pub topic: &'a str,
    /// Its id.
    pub topic_id: &'a str,
    /// First offset.
    pub first: i64,
    /// Where it ends.
    pub end: i64,
}

impl Made<'_> {
    /// The checkpoint, up to which the log is to be folded.
    pub fn check(&self, keys: &Keys, log: &Log<'_>, fold: u32, progress: &Progress) -> Result<i64, Error> {
        let (Log { topic, topic_id, first, end }, partition) = (log, self.partition);
        let offset = self.offset.ok_or_else(|| Error::Emptied(keys.meta()))?;
        if *first > 0 {
            return Err(Error::Trimmed { topic: (*topic).to_owned(), partition, first: *first });
        }
        if let Some(other) = self.topic_id.filter(|id| id != topic_id) {
            return Err(Error::OtherLog(format!(
                "the views of {topic}/{partition} were made from a topic with id {other}, but its id is {topic_id}"
            )));
        }
        if offset > *end {
            return Err(Error::OtherLog(format!(
                "the views of {topic}/{partition} go up to offset {offset}, but the log ends at {end}"
            )));
        }
        if let Some(other) = self.fold.filter(|other| *other != fold) {
            return Err(Error::OtherLog(format!(
                "the views of {topic}/{partition} were made by version {other} of the projection's code, and this release has \
                 version {fold}; rebuild them"
            )));
        }
        match self.state {
            Some(meta::DROPPING) => {
                return Err(Error::OtherLog(format!("the views of {topic}/{partition} are being freed")));
            }
            Some(meta::LIVE) => {}
            _ => progress.suspend(|| {
                eprintln!("partition {partition}: its views are being built; verified up to offset {offset} of {end}");
            }),
        }
        Ok(offset)
    }
}
