//! The past of an aggregate: its history folded again, event by event, from its beginning or from its base.

use std::collections::VecDeque;

use millrace_shared::{
    domain::{Aggregate, Projection},
    envelope::{EventMeta, rfc3339_micros},
    http,
    panics::Quiet,
    problem::{HISTORY_TRIMMED, Problem},
    views::history::{self, Base},
};
use serde_json::json;

use crate::{
    edition::Edition,
    service::{Service, View},
};

/// Events read from Redis at a time: a long history neither fills the memory nor keeps others waiting.
const CHUNK: isize = 500;

/// Goes through an aggregate's history from where it begins. That may move on meanwhile: then it goes on from there.
pub struct Replay<'a, A: Aggregate> {
    service: &'a Service<A>,
    edition: &'a Edition,
    id: &'a str,
    /// What stands for the events that are no longer kept.
    pub base: Option<Base<View<A>>>,
    /// Sequence of the next event to be read.
    next: u64,
    ended: bool,
    chunk: VecDeque<Vec<u8>>,
    /// Of the person that it is; none where they are erased.
    key: Option<Vec<u8>>,
    view: Option<View<A>>,
}

impl<'a, A: Aggregate> Replay<'a, A> {
    /// At the beginning.
    pub fn new(service: &'a Service<A>, edition: &'a Edition, id: &'a str) -> Self {
        Self { service, edition, id, base: None, next: 1, ended: false, chunk: VecDeque::new(), key: None, view: None }
    }

    /// The next event; it is not in the view yet.
    pub async fn next(&mut self) -> Result<Option<(EventMeta, A::Event)>, Problem> {
        if self.chunk.is_empty() && !self.ended {
            self.read().await?;
        }
        let Some(packed) = self.chunk.pop_front() else { return Ok(None) };
        let (meta, mut event) = history::unpack(&self.service.codec, &packed).ok_or_else(|| {
            http::internal(&format_args!("an event in the history of {} {} can't be read", A::TYPE, self.id))
        })?;
        if let Some(opener) = &self.service.opener {
            opener.open::<A>(&mut event, self.key.as_deref(), self.id).map_err(|error| {
                http::internal(&format_args!("an event in the history of {} {}: {error}", A::TYPE, self.id))
            })?;
        }
        Ok(Some((meta, event)))
    }

    async fn read(&mut self) -> Result<(), Problem> {
        let keys = &self.edition.keys[self.service.partition(self.id)];
        loop {
            let since = self.kept_since();
            let at = (self.next - 1 - since) as isize;
            let mut pipe = redis::pipe();
            // Both as of one moment.
            pipe.atomic();
            pipe.cmd("GET").arg(keys.base(self.id));
            pipe.cmd("LRANGE").arg(keys.history(self.id)).arg(at).arg(at + CHUNK - 1);
            pipe.cmd("HGET").arg(keys.keys()).arg(self.id);
            let (base, chunk, key): (Option<String>, Vec<Vec<u8>>, _) = self.service.means.store.ask(&pipe).await?;
            self.base = base.map(|json| serde_json::from_str(&json)).transpose().map_err(|error| {
                let at = error.column();
                http::internal(&format_args!("the base of {} {} can't be read at byte {at}", A::TYPE, self.id))
            })?;
            let now = self.kept_since();
            if now != since {
                // It begins elsewhere than was thought.
                if self.next <= now {
                    self.next = now + 1;
                    self.view = self.base.as_ref().map(|base| base.view.clone());
                }
                continue;
            }
            self.ended = (chunk.len() as isize) < CHUNK;
            self.next += chunk.len() as u64;
            self.chunk = chunk.into();
            self.key = key;
            return Ok(());
        }
    }

    /// The view after the events that were folded; the base's at least.
    pub fn view(&self) -> Option<&View<A>> {
        self.view.as_ref()
    }

    /// The version from which on the past is known.
    pub fn kept_since(&self) -> u64 {
        self.base.as_ref().map_or(0, |base| A::Projection::version(&base.view))
    }

    /// Takes an event into the view.
    pub fn fold(&mut self, meta: &EventMeta, event: &A::Event) -> Result<&View<A>, Problem> {
        let _quiet = Quiet::when(A::IS_PERSONAL);
        let folded = A::Projection::fold(self.view.take(), self.id, meta, event).map_err(|reason| {
            http::internal(&format_args!("the history of {} {} can't be folded: {reason}", A::TYPE, self.id))
        })?;
        Ok(self.view.insert(folded))
    }

    /// The view after the events for which `wanted` holds; it ends with the first for which it does not. It is the base's
    /// at least, also where that is later than wanted.
    pub async fn until(&mut self, wanted: impl Fn(&EventMeta) -> bool) -> Result<Option<View<A>>, Problem> {
        while let Some((meta, event)) = self.next().await? {
            if !wanted(&meta) {
                break;
            }
            self.fold(&meta, &event)?;
        }
        Ok(self.view.take())
    }
}

/// What was asked for lies before the base.
pub fn trimmed<A: Aggregate>(id: &str, base: &Base<View<A>>) -> Problem {
    let (version, time) = (A::Projection::version(&base.view), rfc3339_micros(base.time));
    let detail = format!("the past of {} {id} is kept since version {version}, of {time}", A::TYPE);
    Problem::new(&HISTORY_TRIMMED, detail).with("kept_since", json!({"version": version, "time": time}))
}
