//! How events and states are printed: for people, or one JSON object a line.

use std::io::{self, Write};

use millrace_shared::{
    envelope::rfc3339_micros,
    kafka::{bulk::Record, source::Progress},
};
use serde_json::{Value, json};

use super::fold::Event;

/// Prints to standard output.
pub struct Printer<'a> {
    /// JSON instead of a text for people.
    pub json: bool,
    /// Width of an event's name.
    pub name_width: usize,
    /// What may be on the terminal meanwhile.
    pub progress: &'a Progress,
}

impl Printer<'_> {
    /// A line that only people need.
    pub fn remark(&self, text: &str) -> io::Result<()> {
        if self.json { Ok(()) } else { self.line(text) }
    }

    /// An event and the state after it.
    pub fn event(&self, record: &Record<'_>, event: &Event) -> io::Result<()> {
        let time = rfc3339_micros(event.meta.time);
        if self.json {
            let line = json!({
                "sequence": event.meta.sequence,
                "time": time,
                "event_id": event.id,
                "command_id": event.meta.command_id,
                "event": event.name,
                "data": event.data,
                "state": event.state,
                "position": position(record),
            });
            return self.object(&line);
        }
        let state = event.state.as_ref().map_or_else(|| "not known".to_owned(), fields);
        let (sequence, width) = (event.meta.sequence, self.name_width);
        let data = fields(&event.data);
        let space = if data.is_empty() { "" } else { "  " };
        self.line(&format!("{sequence:>6}  {time}  {:<width$}{space}{data}  => {state}", event.name))
    }

    /// What is wrong with a record.
    pub fn problem(&self, record: &Record<'_>, problem: &str) -> io::Result<()> {
        let position = position(record);
        if self.json {
            return self.object(&json!({"problem": problem, "position": position}));
        }
        self.line(&format!("     !  {position}  {}", harmless(problem)))
    }

    /// One object.
    pub fn object(&self, object: &Value) -> io::Result<()> {
        self.line(&object.to_string())
    }

    fn line(&self, text: &str) -> io::Result<()> {
        self.progress.suspend(|| writeln!(io::stdout(), "{text}"))
    }
}

fn position(record: &Record<'_>) -> String {
    format!("{}/{}/{}", record.topic(), record.partition(), record.offset())
}

/// `name=value` for each field; the values are JSON.
pub fn fields(value: &Value) -> String {
    let Value::Object(members) = value else { return harmless(&value.to_string()) };
    let members: Vec<_> = members.iter().map(|(name, value)| format!("{name}={value}")).collect();
    harmless(&members.join(" "))
}

/// Without characters that a terminal would obey: JSON lets some of them through.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
