//! One side of a comparison: a process that consumes records, frozen while it is not its turn.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use millrace_tests::process::Process;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Serialize;

use crate::kafka::Progress;

/// How often progress is asked for.
const PAUSE: Duration = Duration::from_millis(5);
const STALL: Duration = Duration::from_secs(60);
/// Throughput counts from this share of the backlog to that: begin and end are left out, where the process wakes up
/// and where only the partitions of famous accounts have anything left.
const WINDOW: (f64, f64) = (0.1, 0.8);

/// Of the times in /proc: Linux' USER_HZ, the same everywhere.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process, and how far it is.
pub struct Side {
    pid: Pid,
    done: Box<dyn Fn() -> Result<u64>>,
}

/// How a backlog was worked off.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Drained {
    /// Commands per second, between a tenth and eight tenths of the backlog.
    pub per_second: f64,
    /// Commands per second, from the first moment to the last commit.
    pub whole_per_second: f64,
    /// Seconds of CPU time of the process per million commands, over the whole backlog.
    pub cpu_seconds: f64,
}

impl Side {
    /// Of a process that runs, and the group it consumes in.
    pub fn new(process: &Process, progress: Progress) -> Self {
        Self::by(process, move || progress.done())
    }

    /// Of a process that runs, and what tells how many records it has done.
    pub fn by(process: &Process, done: impl Fn() -> Result<u64> + 'static) -> Self {
        Self { pid: pid(process), done: Box::new(done) }
    }

    /// Waits until so many commands are done.
    pub fn wait(&self, target: u64) -> Result<()> {
        self.watch(target).map(drop)
    }

    /// Stops the process where it stands.
    pub fn freeze(&self) -> Result<()> {
        kill(self.pid, Signal::SIGSTOP).context("the process can't be stopped")
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        kill(self.pid, Signal::SIGCONT).context("the process can't go on")
    }

    /// Lets it work until so many commands are done, and stops it again.
    pub fn drain(&self, target: u64) -> Result<Drained> {
        let (done, cpu) = ((self.done)()?, cpu_seconds(self.pid)?);
        ensure!(done < target, "there is nothing to do");
        let begin = Instant::now();
        self.thaw()?;
        let seen = self.watch(target)?;
        let cpu = cpu_seconds(self.pid)? - cpu;
        self.freeze()?;
        let commands = (target - done) as f64;
        let share = |share: f64| {
            let wanted = done as f64 + commands * share;
            seen.iter().find(|(_, done)| *done as f64 >= wanted).copied().context("the end was seen")
        };
        let ((from, first), (to, last)) = (share(WINDOW.0)?, share(WINDOW.1)?);
        let (end, _) = share(1.0)?;
        let whole_per_second = commands / (end - begin).as_secs_f64();
        let window = (to - from).as_secs_f64();
        // A short backlog may be done between two looks.
        let per_second = if window > 0.0 { (last - first) as f64 / window } else { whole_per_second };
        Ok(Drained { per_second, whole_per_second, cpu_seconds: cpu / commands * 1e6 })
    }

    /// Looks at the progress until the target is reached.
    fn watch(&self, target: u64) -> Result<Vec<(Instant, u64)>> {
        let mut seen: Vec<(Instant, u64)> = Vec::new();
        let mut moved = Instant::now();
        loop {
            let done = (self.done)()?;
            let now = Instant::now();
            if seen.last().is_none_or(|last| last.1 != done) {
                seen.push((now, done));
                moved = now;
            }
            if done >= target {
                return Ok(seen);
            }
            if moved.elapsed() > STALL {
                bail!("process {} does nothing: {done} of {target} commands are done", self.pid);
            }
            thread::sleep(PAUSE);
        }
    }
}

/// The id of a process that runs.
pub fn pid(process: &Process) -> Pid {
    // They are below 2^22.
    Pid::from_raw(process.id().cast_signed())
}

/// CPU time that a process has used.
pub fn cpu_seconds(pid: Pid) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // The second field is the program's name in brackets, and may hold blanks.
    let (_, rest) = text.rsplit_once(") ").context("no process has such a status")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).context("no time is given");
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}
