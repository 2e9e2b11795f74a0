//! A log that is copied record by record, to be written elsewhere with faults in it.

use std::collections::HashMap;

use apache_avro::types::Value as Avro;
use millrace_tests::{
    Deployment,
    avro::Registry,
    kafka::{self, Draft, Producer, Record},
};

/// Its records.
pub(super) struct Copy {
    pub(super) commands: Vec<Record>,
    pub(super) events: Vec<Record>,
    pub(super) outcomes: Vec<Record>,
    pub(super) letters: Vec<Record>,
    /// Commands that come when the group's offset is committed already.
    pub(super) late: Vec<Record>,
}

impl Copy {
    pub(super) fn of(deployment: &Deployment) -> Self {
        Self {
            commands: deployment.read("commands"),
            events: deployment.read("events"),
            outcomes: deployment.read("outcomes"),
            letters: deployment.read("dead-letters"),
            late: Vec::new(),
        }
    }

    /// Where the command of an account with this id lies that was sent as the `nth` one of that id.
    #[track_caller]
    pub(super) fn command(&self, id: &str, command_id: &str, nth: usize) -> usize {
        let is_it = |record: &Record| {
            record.partition == own_partition(id)
                && record.key.as_deref() == Some(id.as_bytes())
                && record.header("ce_id").as_deref() == Some(command_id)
        };
        let mut found = self.commands.iter().enumerate().filter(|(_, record)| is_it(record));
        found.nth(nth).unwrap_or_else(|| panic!("{id} has no command {command_id}")).0
    }

    /// Its outcome.
    #[track_caller]
    pub(super) fn outcome(&self, id: &str, command_id: &str, nth: usize) -> usize {
        let command = &self.commands[self.command(id, command_id, nth)];
        let end = format!("/{}/{}", command.partition, command.offset);
        let is_it = |record: &Record| record.header("millrace_position").is_some_and(|at| at.ends_with(&end));
        let found = self.outcomes.iter().position(is_it);
        found.unwrap_or_else(|| panic!("{id} has no outcome of {command_id}"))
    }

    /// An event.
    #[track_caller]
    pub(super) fn event(&self, id: &str, sequence: u64) -> usize {
        let ce_id = format!("bank-account/{id}/{sequence}");
        let found = self.events.iter().position(|record| record.header("ce_id").as_ref() == Some(&ce_id));
        found.unwrap_or_else(|| panic!("{id} has no event {sequence}"))
    }

    /// A dead letter.
    #[track_caller]
    pub(super) fn letter(&self, id: &str) -> usize {
        let found = self.letters.iter().position(|record| record.key.as_deref() == Some(id.as_bytes()));
        found.unwrap_or_else(|| panic!("{id} has no dead letter"))
    }

    /// Changes a field of an outcome of the last refusal of an account, which nothing follows on.
    pub(super) fn change_refusal(&mut self, id: &str, field: &str, value: Avro) {
        let at = self.outcome(id, "more", 0);
        set_field(&mut self.outcomes[at], field, &value);
    }
}

/// All copies have three partitions.
pub(super) fn own_partition(id: &str) -> i32 {
    millrace_tests::account::partition_of(id.as_bytes(), 3)
}

pub(super) fn set_field(record: &mut Record, field: &str, value: &Avro) {
    let bytes = record.value.as_deref().expect("records have values");
    record.value = Some(Registry::shared().rewrite(bytes, |name, old| {
        if name == field {
            *old = value.clone();
        }
    }));
}

pub(super) fn set_header(record: &mut Record, name: &str, value: Option<&str>) {
    record.headers.retain(|(header, _)| header != name);
    record.headers.extend(value.map(|value| (name.to_owned(), Some(value.as_bytes().to_vec()))));
}

pub(super) fn set_time(event: &mut Record, time: &str, millis: i64) {
    set_header(event, "ce_time", Some(time));
    event.timestamp_ms = millis;
}

/// Writes a copy into the topics of a deployment whose services are stopped, with offsets and topic ids put right, and
/// commits the group's offsets.
pub(super) struct Writer<'a> {
    pub(super) deployment: &'a Deployment,
    /// Prefix of the copied topics.
    pub(super) from: String,
    pub(super) topic_id: String,
    /// Offsets of copied commands.
    pub(super) moved: HashMap<(i32, i64), i64>,
    pub(super) producer: Producer,
}

impl Writer<'_> {
    /// A place in the copied topics, here.
    fn place(&self, place: &str, topic: &str) -> String {
        let mut parts = place.rsplitn(3, '/');
        let offset = parts.next().and_then(|offset| offset.parse().ok()).expect("a place ends with an offset");
        let partition = parts.next().and_then(|partition| partition.parse().ok()).expect("a place has a partition");
        format!("{topic}/{partition}/{}", self.moved.get(&(partition, offset)).copied().unwrap_or(offset))
    }

    fn send(&self, topic: &str, record: &Record) {
        let commands = self.deployment.topic("commands");
        let headers = record.headers.iter().map(|(name, value)| {
            let text = value.as_deref().map(String::from_utf8_lossy);
            let value = match (name.as_str(), text) {
                ("millrace_origin", Some(text)) if text.starts_with(&self.from) => {
                    Some(self.place(&text, &commands).into_bytes())
                }
                ("millrace_position", Some(text)) => Some(self.place(&text, &self.topic_id).into_bytes()),
                _ => value.clone(),
            };
            (&*name.clone().leak(), value)
        });
        let draft = Draft {
            partition: Some(record.partition),
            key: record.key.clone(),
            value: record.value.clone(),
            headers: headers.collect(),
            timestamp_ms: Some(record.timestamp_ms),
        };
        self.producer.send(&self.deployment.topic(topic), &draft);
    }

    pub(super) fn write(&mut self, copy: &Copy) {
        let topic = self.deployment.topic("commands");
        let mut ends: Vec<_> = (0..3).map(|partition| kafka::end(&topic, partition)).collect();
        for record in copy.commands.iter().chain(&copy.late) {
            let end = &mut ends[record.partition as usize];
            self.moved.entry((record.partition, record.offset)).or_insert(*end);
            *end += 1;
        }
        copy.commands.iter().for_each(|record| self.send("commands", record));
        let group = format!("{}.command", self.deployment.prefix);
        for partition in 0..3 {
            kafka::commit(&group, &topic, partition, kafka::end(&topic, partition));
        }
        copy.late.iter().for_each(|record| self.send("commands", record));
        copy.events.iter().for_each(|record| self.send("events", record));
        copy.outcomes.iter().for_each(|record| self.send("outcomes", record));
        copy.letters.iter().for_each(|record| self.send("dead-letters", record));
    }
}
