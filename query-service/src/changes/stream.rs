//! What one listener gets, piece by piece, as fast as he takes it: nothing is made before it is asked for.

use std::{
    collections::VecDeque,
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use axum::body::{Body, Bytes};
use futures_util::stream;
use metrics::counter;
use millrace_shared::{
    domain::Aggregate,
    problem::{INTERNAL, Problem},
};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Hub, Joined, Listening, Topic,
    frame::{Batch, write_id},
    places::Place,
    position::Position,
    reader::{self, Found},
    reset::Reset,
};
use crate::store::unavailable;

/// A line is sent so often when there is nothing to be told.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A new listener waits so long for the task to begin.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);
/// Browsers connect again after so many milliseconds, not all at the same moment.
const RETRY_MS: Range<u64> = 1_000..3_000;

/// Name of the counter of those who were too slow.
pub const CUT_OFF: &str = "millrace_query_streams_cut_off_total";

/// One listener.
pub struct Stream<A: Aggregate> {
    hub: Arc<Hub<A>>,
    topic: Topic,
    /// How far what was put out goes.
    position: Position,
    phase: Phase<A>,
    out: VecDeque<Bytes>,
    quiet_until: Instant,
    _listening: Listening<A>,
    _place: Place,
}

enum Phase<A: Aggregate> {
    /// Where the task is has to be found out.
    Rejoin,
    /// What lies before that comes from Redis.
    CatchUp(Joined<A>),
    /// What lies behind it comes from the task.
    Live {
        joined: Joined<A>,
        /// Whether the task has got as far as we, everywhere.
        level: bool,
        /// Whether anything was taken yet: until then it is catching up that took too long, not the listener.
        taken: bool,
    },
    /// All views first.
    Reset(Box<Reset>),
}

impl<A: Aggregate> Stream<A> {
    /// Begins behind a position, or with what comes from now on.
    ///
    /// # Errors
    /// When changes can't be read.
    pub async fn open(
        hub: Arc<Hub<A>>,
        topic: Topic,
        position: Option<Position>,
        place: Place,
    ) -> Result<Self, Problem> {
        let listening = hub.listen();
        let joined = timeout(PATIENCE, hub.join(&topic)).await;
        let joined = joined.map_err(|_| unavailable("the changes can't be read at the moment"))?;
        let spread = RandomState::new().hash_one(()) % (RETRY_MS.end - RETRY_MS.start);
        let mut head = format!("retry: {}\n", RETRY_MS.start + spread).into_bytes();
        let known = position.is_some();
        let position = position.unwrap_or_else(|| Position::clone(&joined.from));
        if !known {
            // He can resume from here, also when nothing comes.
            write_id(&mut head, &hub.ids, &joined.from);
        }
        head.push(b'\n');
        let mut stream = Self {
            hub,
            topic,
            position,
            phase: Phase::Rejoin,
            out: VecDeque::from([head.into()]),
            quiet_until: Instant::now() + KEEP_ALIVE,
            _listening: listening,
            _place: place,
        };
        stream.go_on(joined);
        Ok(stream)
    }

    /// As the body of an answer.
    pub fn body(self) -> Body {
        let next = |mut stream: Self| async { Some((Ok::<_, Infallible>(stream.next().await?), stream)) };
        Body::from_stream(stream::unfold(self, next))
    }

    async fn next(&mut self) -> Option<Bytes> {
        let shutdown = self.hub.means.shutdown.clone();
        loop {
            if let Some(bytes) = self.out.pop_front() {
                self.quiet_until = Instant::now() + KEEP_ALIVE;
                return Some(bytes);
            }
            let is_live = matches!(self.phase, Phase::Live { .. });
            if shutdown.is_cancelled() {
                // Whoever listens connects again, to whoever is there then.
                return None;
            }
            let quiet_until = self.quiet_until;
            // A step that is given up has done nothing yet.
            let step = timeout_at(quiet_until, self.step());
            let stepped = if is_live {
                // At the end the task closes what it hands out; thousands who wait for one thing more get in each other's way.
                step.await
            } else {
                tokio::select! {
                    () = shutdown.cancelled() => return None,
                    stepped = step => stepped,
                }
            };
            match stepped {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => {
                    counter!(CUT_OFF).increment(1);
                    return None;
                }
                Ok(Err(problem)) if problem.is(&INTERNAL) => return None,
                Ok(Err(problem)) => {
                    tracing::debug!(?problem, "a stream of changes waits");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(_) => self.keep_alive(),
            }
        }
    }

    /// Does one thing, all of it or nothing; `false`: this listener is too slow.
    async fn step(&mut self) -> Result<bool, Problem> {
        match &mut self.phase {
            Phase::Rejoin => {
                let joined = self.hub.join(&self.topic).await;
                self.go_on(joined);
            }
            Phase::CatchUp(_) => self.catch_up().await?,
            Phase::Live { joined, taken, .. } => match joined.batches.recv().await {
                Ok(batch) => self.take(&batch),
                Err(RecvError::Lagged(_)) if *taken => return Ok(false),
                Err(RecvError::Closed | RecvError::Lagged(_)) => self.phase = Phase::Rejoin,
            },
            Phase::Reset(reset) => {
                let (mut out, told) = reset.step(&self.hub, &self.topic).await?;
                if let Some(position) = told {
                    self.position = position;
                    self.phase = Phase::Rejoin;
                    write_id(&mut out, &self.hub.ids, &self.position);
                    out.push(b'\n');
                }
                self.put(out);
            }
        }
        Ok(true)
    }

    /// With what was missed, or with everything.
    fn go_on(&mut self, joined: Joined<A>) {
        if self.position.build == joined.from.build {
            self.phase = Phase::CatchUp(joined);
        } else {
            self.begin_again(&joined);
        }
    }

    fn begin_again(&mut self, joined: &Joined<A>) {
        self.position = self.hub.unfinished.clone();
        let first = self.hub.partitions(&self.topic).start;
        self.phase = Phase::Reset(Box::new(Reset::new(joined.edition.clone(), Position::clone(&joined.from), first)));
        let mut out = Vec::new();
        // Until all is told, whoever connects again begins again.
        write_id(&mut out, &self.hub.ids, &self.position);
        out.extend_from_slice(b"event: reset\ndata: {}\n\n");
        self.put(out);
    }

    async fn catch_up(&mut self) -> Result<(), Problem> {
        let Phase::CatchUp(joined) = &self.phase else { return Ok(()) };
        let mut partitions = self.hub.partitions(&self.topic);
        let behind = partitions.find(|partition| self.position.at[*partition] < joined.from.at[*partition]);
        let Some(partition) = behind else {
            if let Phase::CatchUp(joined) = std::mem::replace(&mut self.phase, Phase::Rejoin) {
                // Of the others, nothing is wanted.
                for (own, from) in self.position.at.iter_mut().zip(&joined.from.at) {
                    *own = (*own).max(*from);
                }
                let level = self.position.is_reached_by(&joined.from);
                self.phase = Phase::Live { joined, level, taken: false };
            }
            return Ok(());
        };
        let upto = joined.from.at[partition];
        let range = (self.position.at[partition], upto);
        let changes = match reader::read(&self.hub, &joined.edition, partition, range).await? {
            Found::Changes(changes) => changes,
            Found::Gone => {
                // It may be that nothing is as it was: the task will know.
                self.position.build = self.hub.unfinished.build;
                self.phase = Phase::Rejoin;
                return Ok(());
            }
        };
        let mut out = Vec::new();
        for (change, view) in &changes {
            self.position.at[partition] = change.at;
            if self.hub.is_about(&self.topic, &change.id, view) {
                write_id(&mut out, &self.hub.ids, &self.position);
                change.write(&mut out, view)?;
            }
        }
        if changes.len() < reader::COUNT {
            self.position.at[partition] = upto;
        }
        self.put(out);
        Ok(())
    }

    fn take(&mut self, batch: &Batch) {
        let Phase::Live { level, taken, .. } = &mut self.phase else { return };
        *taken = true;
        *level = *level || self.position.is_reached_by(&batch.before);
        if *level {
            match &batch.whole {
                Some(whole) => self.out.push_back(whole.clone()),
                None => self.out.extend(batch.frames.iter().map(|frame| frame.whole())),
            }
            self.position.clone_from(&batch.after);
            return;
        }
        // Another instance had told more than this one knows so far: neither again, nor with an id that is less.
        for frame in &batch.frames {
            if frame.at > self.position.at[frame.partition] {
                self.position.at[frame.partition] = frame.at;
                let mut id = Vec::new();
                write_id(&mut id, &self.hub.ids, &self.position);
                self.out.extend([id.into(), frame.without_id()]);
            }
        }
    }

    /// A line that says nothing; with the present id, so that one who waits long for his changes can still resume.
    fn keep_alive(&mut self) {
        let mut line = b": keep-alive\n".to_vec();
        if let Phase::Live { joined, level: true, .. } = &self.phase
            && let Some(level) = self.hub.level(joined)
            && *level != self.position
        {
            self.position.clone_from(&level);
            write_id(&mut line, &self.hub.ids, &self.position);
        }
        line.push(b'\n');
        self.put(line);
    }

    fn put(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.out.push_back(bytes.into());
        }
    }
}
