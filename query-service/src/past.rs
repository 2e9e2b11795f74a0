//! The past of an aggregate: its history folded again, event by event.

use std::collections::VecDeque;

use millrace_shared::{
    domain::{Aggregate, Projection},
    envelope::EventMeta,
    http,
    problem::Problem,
    views::history,
};

use crate::service::{Service, View};

/// Events read from Redis at a time: a long history neither fills the memory nor keeps others waiting.
const CHUNK: isize = 500;

/// Goes through an aggregate's history from its beginning.
pub struct Replay<'a, A: Aggregate> {
    service: &'a Service<A>,
    id: &'a str,
    read: isize,
    ended: bool,
    chunk: VecDeque<Vec<u8>>,
    view: Option<View<A>>,
}

impl<'a, A: Aggregate> Replay<'a, A> {
    /// At the beginning.
    pub fn new(service: &'a Service<A>, id: &'a str) -> Self {
        Self { service, id, read: 0, ended: false, chunk: VecDeque::new(), view: None }
    }

    /// The next event; it is not in the view yet.
    pub async fn next(&mut self) -> Result<Option<(EventMeta, A::Event)>, Problem> {
        if self.chunk.is_empty() && !self.ended {
            let keys = &self.service.keys[self.service.partition(self.id)];
            let mut pipe = redis::pipe();
            pipe.cmd("LRANGE").arg(keys.history(self.id)).arg(self.read).arg(self.read + CHUNK - 1);
            let (chunk,): (Vec<Vec<u8>>,) = self.service.means.store.ask(&pipe).await?;
            self.ended = (chunk.len() as isize) < CHUNK;
            self.read += chunk.len() as isize;
            self.chunk = chunk.into();
        }
        let Some(packed) = self.chunk.pop_front() else { return Ok(None) };
        let unpacked = history::unpack(&self.service.codec, &packed);
        unpacked.map(Some).ok_or_else(|| {
            http::internal(&format_args!("an event in the history of {} {} can't be read", A::TYPE, self.id))
        })
    }

    /// Takes an event into the view.
    pub fn fold(&mut self, meta: &EventMeta, event: &A::Event) -> Result<&View<A>, Problem> {
        let folded = A::Projection::fold(self.view.take(), self.id, meta, event).map_err(|reason| {
            http::internal(&format_args!("the history of {} {} can't be folded: {reason}", A::TYPE, self.id))
        })?;
        Ok(self.view.insert(folded))
    }

    /// The view after the events for which `wanted` holds; it ends with the first for which it does not.
    pub async fn until(mut self, wanted: impl Fn(&EventMeta) -> bool) -> Result<Option<View<A>>, Problem> {
        while let Some((meta, event)) = self.next().await? {
            if !wanted(&meta) {
                break;
            }
            self.fold(&meta, &event)?;
        }
        Ok(self.view)
    }
}
