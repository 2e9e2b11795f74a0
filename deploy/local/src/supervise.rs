//! Starts the parts of a run, restarts those that die, and stops them in order.
//!
//! Everything happens on the main thread (see [`crate::child`]); helper threads only send it
//! [`Event`]s.

use std::io::Write;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::child::{self, Program};
use crate::logs;
use crate::probe::Probe;

const TICK: Duration = Duration::from_millis(50);
const PROBE_EVERY: Duration = Duration::from_millis(100);
const SAY_WAITING_EVERY: Duration = Duration::from_secs(10);
/// Exit status of a service that refuses its configuration.
const MISCONFIGURED: i32 = 2;

/// Parts of a later kind use those of an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Kafka,
    Redis,
    Registry,
    Service,
}

/// One part: how to start it, and how to know that it is ready.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub kind: Kind,
    pub program: Program,
    pub ready: Probe,
}

/// What the helper threads tell the main one.
pub enum Event {
    /// A signal, or the end of standard input.
    Stop(&'static str),
    /// A part answered, or did not; `start` counts its starts, since an answer may come late.
    Asked { part: usize, start: u32, answer: Result<()> },
}

/// Whether waiting ended well or because the user asked for an end.
#[derive(Debug, PartialEq, Eq)]
pub enum Wait {
    Ready,
    Stop,
}

struct Part {
    spec: Spec,
    state: State,
    starts: u32,
    was_ready: bool,
    quick_deaths: u32,
    missing: String,
    follower: Option<logs::Follower>,
}

enum State {
    Running { child: Child, since: Instant, ready: bool },
    Down { start_at: Instant },
    Stopped,
}

/// All parts of a run.
pub struct Supervisor {
    parts: Vec<Part>,
    events: Receiver<Event>,
    sender: Sender<Event>,
    stop: Option<&'static str>,
}

/// Prints a line. A terminal that went away must not end the run.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

impl Supervisor {
    pub fn new(sender: Sender<Event>, events: Receiver<Event>) -> Supervisor {
        Supervisor { parts: Vec::new(), events, sender, stop: None }
    }

    /// Starts the parts without waiting for them.
    pub fn start(&mut self, specs: Vec<Spec>) -> Result<()> {
        for spec in specs {
            let log = &spec.program.log;
            logs::rotate(log).with_context(|| format!("renaming {}", log.display()))?;
            let echoed = spec.kind == Kind::Service;
            self.parts.push(Part {
                follower: echoed.then(|| logs::Follower::new(log.clone())),
                state: State::Stopped,
                starts: 0,
                was_ready: false,
                quick_deaths: 0,
                missing: "not asked yet".to_owned(),
                spec,
            });
            self.launch(self.parts.len() - 1)?;
        }
        Ok(())
    }

    fn launch(&mut self, index: usize) -> Result<()> {
        let part = &mut self.parts[index];
        part.starts += 1;
        let child = part.spec.program.start()?;
        part.state = State::Running { child, since: Instant::now(), ready: false };
        let (probe, start, sender) = (part.spec.ready.clone(), part.starts, self.sender.clone());
        // Ends with the first good answer, be it that of a later start.
        thread::spawn(move || {
            loop {
                let answer = probe.ask();
                let done = answer.is_ok();
                let told = sender.send(Event::Asked { part: index, start, answer });
                if done || told.is_err() {
                    return;
                }
                thread::sleep(PROBE_EVERY);
            }
        });
        Ok(())
    }

    /// Waits until every part that was started is ready. A part that dies first is an error, with
    /// the end of its log.
    pub fn wait_until_ready(&mut self, limit: Duration) -> Result<Wait> {
        let started = Instant::now();
        let mut say_at = started + SAY_WAITING_EVERY;
        loop {
            let waiting: Vec<_> = self.parts.iter().filter(|part| !part.is_ready()).collect();
            if waiting.is_empty() {
                return Ok(Wait::Ready);
            }
            let list = || {
                let each = waiting.iter().map(|part| format!("  {}: {}", part.spec.name, part.missing));
                each.collect::<Vec<_>>().join("\n")
            };
            if started.elapsed() > limit {
                let logs = waiting.iter().map(|part| {
                    let log = &part.spec.program.log;
                    format!("\nend of {}:\n{}", log.display(), logs::tail(log, 10))
                });
                bail!("not ready after {} s:\n{}{}", limit.as_secs(), list(), logs.collect::<String>());
            }
            if Instant::now() > say_at {
                say(&format!("still waiting for\n{}", list()));
                say_at += SAY_WAITING_EVERY;
            }
            if self.tick()? == Wait::Stop {
                return Ok(Wait::Stop);
            }
        }
    }

    /// Keeps everything running until the user asks for an end.
    pub fn watch(&mut self) -> Result<()> {
        while self.tick()? == Wait::Ready {}
        Ok(())
    }

    /// Why the run is to end, once it is.
    pub fn stop_reason(&self) -> Option<&'static str> {
        self.stop
    }

    fn tick(&mut self) -> Result<Wait> {
        match self.events.recv_timeout(TICK) {
            Ok(Event::Stop(reason)) => self.stop = Some(reason),
            Ok(Event::Asked { part, start, answer }) => self.asked(part, start, answer),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        if self.stop.is_some() {
            return Ok(Wait::Stop);
        }
        for index in 0..self.parts.len() {
            self.echo(index);
            self.reap(index)?;
            if matches!(self.parts[index].state, State::Down { start_at } if start_at <= Instant::now()) {
                self.launch(index)?;
            }
        }
        Ok(Wait::Ready)
    }

    fn asked(&mut self, index: usize, start: u32, answer: Result<()>) {
        let part = &mut self.parts[index];
        let State::Running { ready, since, .. } = &mut part.state else {
            return;
        };
        if start != part.starts {
            return;
        }
        match answer {
            Ok(()) => {
                *ready = true;
                part.was_ready = true;
                let (name, seconds) = (&part.spec.name, since.elapsed().as_secs_f32());
                say(&format!("{name} is ready after {seconds:.1} s"));
            }
            Err(error) => part.missing = format!("{error:#}"),
        }
    }

    fn echo(&mut self, index: usize) {
        let part = &mut self.parts[index];
        if let Some(follower) = &mut part.follower {
            for line in follower.poll() {
                say(&format!("{}: {line}", part.spec.name));
            }
        }
    }

    fn reap(&mut self, index: usize) -> Result<()> {
        let part = &mut self.parts[index];
        let State::Running { child, since, .. } = &mut part.state else {
            return Ok(());
        };
        let Some(status) = child.try_wait().context("asking for a part's status")? else {
            return Ok(());
        };
        let lived = since.elapsed();
        let (name, log) = (part.spec.name.clone(), part.spec.program.log.clone());
        let how = child::describe(status);
        part.state = State::Stopped;
        self.echo(index);
        let part = &mut self.parts[index];
        if !part.was_ready {
            bail!("{name} ended with {how} while starting; end of {}:\n{}", log.display(), logs::tail(&log, 20));
        }
        part.quick_deaths = if lived < Duration::from_secs(10) { part.quick_deaths + 1 } else { 0 };
        let pause = restart_pause(status, part.quick_deaths);
        part.state = State::Down { start_at: Instant::now() + pause };
        let seconds = pause.as_secs_f32();
        say(&format!("{name} ended with {how}; starting it again in {seconds:.1} s"));
        if status.code() == Some(MISCONFIGURED) {
            say(&format!("{name} refuses its configuration; end of {}:\n{}", log.display(), logs::tail(&log, 5)));
        }
        Ok(())
    }

    /// Ends every part: first the services, then what they use, Kafka last.
    pub fn shut_down(&mut self) {
        self.shut_down_kinds(&[Kind::Service], Duration::from_secs(12));
        self.shut_down_kinds(&[Kind::Registry, Kind::Redis], Duration::from_secs(8));
        self.shut_down_kinds(&[Kind::Kafka], Duration::from_secs(20));
    }

    fn shut_down_kinds(&mut self, kinds: &[Kind], grace: Duration) {
        let deadline = Instant::now() + grace;
        let mut asked = false;
        loop {
            let mut impatient = Instant::now() > deadline;
            while let Ok(event) = self.events.try_recv() {
                impatient |= asked && matches!(event, Event::Stop(_));
            }
            let mut left = 0;
            for part in self.parts.iter_mut().filter(|part| kinds.contains(&part.spec.kind)) {
                let State::Running { child, .. } = &mut part.state else {
                    part.state = State::Stopped;
                    continue;
                };
                match child.try_wait() {
                    Ok(None) => {}
                    Ok(Some(status)) => {
                        say_stopped(&part.spec, status);
                        part.state = State::Stopped;
                        continue;
                    }
                    Err(error) => say(&format!("{}: {error}", part.spec.name)),
                }
                left += 1;
                if impatient {
                    say(&format!("{} does not stop: killing it", part.spec.name));
                    child::signal(child, Signal::SIGKILL);
                    // A killed process ends; there is nothing to do about a failure to hear so.
                    let _ = child.wait();
                    part.state = State::Stopped;
                } else if !asked {
                    child::signal(child, Signal::SIGTERM);
                }
            }
            if left == 0 || impatient {
                return;
            }
            asked = true;
            thread::sleep(TICK);
        }
    }
}

impl Part {
    fn is_ready(&self) -> bool {
        matches!(self.state, State::Running { ready: true, .. })
    }
}

/// A service that ends well says nothing here; Java reports a SIGTERM as status 143.
fn say_stopped(spec: &Spec, status: ExitStatus) {
    let normal = status.success() || status.code() == Some(143);
    let ending = if normal { String::new() } else { format!(" with {}", child::describe(status)) };
    say(&format!("{} stopped{ending}", spec.name));
}

/// How long to wait before a part is started again: a service is back within two seconds, except
/// one that goes on refusing its configuration.
fn restart_pause(status: ExitStatus, quick_deaths: u32) -> Duration {
    if status.code() == Some(MISCONFIGURED) && quick_deaths >= 3 {
        return Duration::from_secs(10);
    }
    Duration::from_millis(300 * u64::from(quick_deaths.clamp(1, 4)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_dead_part_is_back_within_two_seconds() {
        for deaths in 0..20 {
            let pause = restart_pause(ExitStatus::from_raw(9), deaths);
            assert!(pause > Duration::ZERO && pause < Duration::from_millis(1500));
        }
    }

    #[test]
    fn a_configuration_that_stays_refused_is_not_tried_at_full_speed() {
        let refused = ExitStatus::from_raw(2 << 8);
        assert!(restart_pause(refused, 1) < Duration::from_secs(1));
        assert_eq!(restart_pause(refused, 3), Duration::from_secs(10));
    }
}
