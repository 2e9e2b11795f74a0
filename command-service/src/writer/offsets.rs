//! Sends the offsets of a transaction, and does not wait for librdkafka for ever.
//!
//! While the broker that librdkafka knows as the group's coordinator can't be reached, `send_offsets_to_transaction` does
//! not return, whatever time-out it was given (librdkafka 2.12, its issue 5456; seen with three brokers, one of them
//! frozen: until it was thawed). So it is called by a thread of its own. When that does not answer in time it is let be,
//! and the client with it: both end when the call does. A new client with the same transactional id asks for the
//! coordinator anew, and fences the old one.

use std::{
    cell::Cell,
    io,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use rdkafka::producer::{Producer as _, ThreadedProducer};

use super::{
    errors::Failure,
    transaction::{Deliveries, attempt},
};
use crate::grant::FencedOffsets;

/// librdkafka's own word for what has failed comes first.
const GRACE: Duration = Duration::from_millis(500);

struct Call {
    fenced: FencedOffsets,
    answer: Sender<Result<(), Failure>>,
}

/// The thread.
pub(super) struct OffsetSender {
    /// `None` once it is to end.
    calls: Option<Sender<Call>>,
    thread: Option<JoinHandle<()>>,
    limit: Duration,
    hangs: Cell<bool>,
}

impl OffsetSender {
    /// For a producer whose calls may take so long.
    pub(super) fn start(producer: ThreadedProducer<Deliveries>, limit: Duration) -> io::Result<Self> {
        let (calls, called) = channel();
        let thread = thread::Builder::new().name("offsets".into()).spawn(move || run(&producer, limit, &called))?;
        Ok(Self { calls: Some(calls), thread: Some(thread), limit, hangs: Cell::new(false) })
    }

    /// Sends the offsets of the open transaction.
    pub(super) fn send(&self, fenced: FencedOffsets) -> Result<(), Failure> {
        let ended = || Failure::Unknown("offsets: their thread has ended".to_owned());
        let (answer, sent) = channel();
        self.calls.as_ref().and_then(|calls| calls.send(Call { fenced, answer }).ok()).ok_or_else(ended)?;
        match sent.recv_timeout(self.limit + GRACE) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Err(ended()),
            Err(RecvTimeoutError::Timeout) => {
                self.hangs.set(true);
                Err(Failure::Unknown("offsets: librdkafka does not return; the client is given up".to_owned()))
            }
        }
    }
}

impl Drop for OffsetSender {
    fn drop(&mut self) {
        self.calls = None;
        if let Some(thread) = self.thread.take().filter(|_| !self.hangs.get()) {
            // An error means that it has panicked, which was told then.
            let _ = thread.join();
        }
    }
}

fn run(producer: &ThreadedProducer<Deliveries>, limit: Duration, called: &Receiver<Call>) {
    for Call { fenced, answer } in called {
        let send = |left| producer.send_offsets_to_transaction(&fenced.offsets, &fenced.metadata, left);
        // An error means that nobody waits any more.
        let _ = answer.send(attempt("offsets", limit, send));
    }
}
