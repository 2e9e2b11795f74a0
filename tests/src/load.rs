//! Clients that keep a deployment busy while something is done to it.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use ureq::http::HeaderMap;

use crate::{
    Deployment,
    account::partition_of,
    commands, eventually_within,
    http::{Answer, post},
    kafka::{self, Draft, Producer},
    ledger::{Log, Told},
    services::{new_id, new_key},
    wait::eventually,
};

/// Longest time a client goes on asking for one command.
const CLIENT_LIMIT: Duration = Duration::from_secs(120);
/// What a client does between two commands: the machine has tests beside this one.
const THINKING: Duration = Duration::from_millis(10);
/// A client whose instance is silent for so long asks another one; services answer within 10 s, of a machine that does
/// not hang.
const SILENCE: Duration = Duration::from_secs(30);

/// Clients over HTTP, each sending one command after another until it is told; they ask again as the contract says.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Result<(), String>>>,
}

#[derive(Debug)]
struct Shared {
    urls: Vec<String>,
    thinking: Duration,
    ids: Vec<String>,
    over: AtomicBool,
    told: Mutex<Vec<Told>>,
    count: AtomicUsize,
    troubles: Mutex<BTreeMap<String, usize>>,
}

impl Load {
    /// Opens `accounts` accounts and starts `clients` clients, which share them and all instances, and think for a
    /// moment after each answer.
    pub fn start(urls: Vec<String>, clients: usize, accounts: usize) -> Self {
        Self::thinking(urls, clients, accounts, THINKING)
    }

    /// The same with clients that don't think.
    pub fn full(urls: Vec<String>, clients: usize, accounts: usize) -> Self {
        Self::thinking(urls, clients, accounts, Duration::ZERO)
    }

    fn thinking(urls: Vec<String>, clients: usize, accounts: usize, thinking: Duration) -> Self {
        let shared = Arc::new(Shared {
            urls,
            thinking,
            ids: (0..accounts).map(spread).collect(),
            over: AtomicBool::new(false),
            told: Mutex::default(),
            count: AtomicUsize::new(0),
            troubles: Mutex::default(),
        });
        let open = Arc::new(json!({"owner": "Ada", "currency": "EUR"}));
        for id in &shared.ids {
            let opened = shared.tell(0, id, "open", open.clone(), new_key());
            assert_eq!(opened.map(|answer| answer.status), Ok(201));
        }
        let client = |number| {
            let shared = shared.clone();
            // Printed at once, for the one who waits for more answers only sees that there are none.
            thread::spawn(move || shared.client(number).inspect_err(|reason| eprintln!("client {number}: {reason}")))
        };
        let clients = (0..clients).map(client).collect();
        Self { shared, clients }
    }

    /// How many commands clients were told about.
    pub fn count(&self) -> usize {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// Waits until clients were told about `more` commands than now.
    #[track_caller]
    pub fn wait_for_more(&self, more: usize) {
        let before = self.count();
        eventually_within(CLIENT_LIMIT, &format!("{more} more answers"), || match self.count() - before {
            now if now >= more => Ok(()),
            _ if self.clients.iter().any(JoinHandle::is_finished) => panic!("a client has given up"),
            now => Err(format!("there were {now}")),
        });
    }

    /// Ends the clients; returns what they were told, and how often they had to ask again, by reason.
    ///
    /// # Panics
    /// When a client was not told in time, or was told what it must not be.
    #[track_caller]
    pub fn stop(mut self) -> (Vec<Told>, BTreeMap<String, usize>) {
        self.shared.over.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().expect("clients don't panic").unwrap_or_else(|reason| panic!("{reason}"));
        }
        let told = std::mem::take(&mut *self.shared.told.lock().unwrap_or_else(PoisonError::into_inner));
        let troubles = std::mem::take(&mut *self.shared.troubles.lock().unwrap_or_else(PoisonError::into_inner));
        (told, troubles)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn client(&self, number: usize) -> Result<(), String> {
        let payment = |amount_minor: u64| Arc::new(json!({"amount_minor": amount_minor}));
        let (deposit, withdraw, overdraw) = (payment(5), payment(3), payment(1_000_000_000));
        let mut last: Option<(String, &str, Arc<Value>, String, Answer)> = None;
        for at in 0.. {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let id = &self.ids[(number * 7 + at * 5) % self.ids.len()];
            let (command, body) = match at % 8 {
                0..5 => ("deposit", deposit.clone()),
                5 | 6 => ("withdraw", withdraw.clone()),
                _ => ("withdraw", overdraw.clone()),
            };
            let key = new_key();
            let answer = self.tell(number, id, command, body.clone(), key.clone())?;
            if !matches!(answer.status, 200 | 422) {
                return Err(format!("{command} {key} of {id}: {answer:?}"));
            }
            // Now and then somebody asks again though it was told.
            if let Some((id, command, body, key, first)) = last.take().filter(|_| at % 10 == 0) {
                let again = self.ask(number, &id, command, &body, &key)?;
                if (again.status, &again.body) != (first.status, &first.body) {
                    return Err(format!("{key} of {id}: first {first:?}, then {again:?}"));
                }
            }
            last = Some((id.clone(), command, body, key, answer));
            thread::sleep(self.thinking);
        }
        Ok(())
    }

    fn tell(&self, number: usize, id: &str, command: &str, body: Arc<Value>, key: String) -> Result<Answer, String> {
        let answer = self.ask(number, id, command, &body, &key)?;
        // Of an answer that is kept nobody asks for headers, which take more than all the rest.
        let kept = Answer { status: answer.status, headers: HeaderMap::new(), body: answer.body.as_slice().to_vec() };
        let told = Told { id: id.to_owned(), key, path: format!("{id}/{command}"), body, answer: kept };
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(told);
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(answer)
    }

    /// Asks, as the contract tells: again with the same key after `Retry-After`, and at another instance when one does
    /// not answer.
    fn ask(&self, number: usize, id: &str, command: &str, body: &Value, key: &str) -> Result<Answer, String> {
        let deadline = Instant::now() + CLIENT_LIMIT;
        let mut instance = number;
        loop {
            let url = &self.urls[instance % self.urls.len()];
            let request = post(&format!("{url}/v1/bank-accounts/{id}/{command}")).json(body).key(key);
            let (trouble, pause) = match request.within(SILENCE).try_send() {
                Ok(answer) if matches!(answer.status, 429 | 503) => {
                    let seconds = answer.header("retry-after").and_then(|text| text.parse().ok());
                    let seconds = seconds.ok_or_else(|| format!("when to ask again? {answer:?}"))?;
                    (answer.status.to_string(), Duration::from_secs(seconds))
                }
                Ok(answer) if answer.status == 504 => (format!("504 {}", answer.json()["detail"]), Duration::ZERO),
                Ok(answer) => return Ok(answer),
                // The port of a service that does not run: the next one, in a moment.
                Err(error) => (error.rsplit(": ").next().unwrap_or_default().to_owned(), Duration::from_millis(20)),
            };
            if Instant::now() > deadline {
                return Err(format!("{command} {key} of {id} was not answered within {CLIENT_LIMIT:?}: {trouble}"));
            }
            *self.troubles.lock().unwrap_or_else(PoisonError::into_inner).entry(trouble).or_default() += 1;
            instance += 1;
            thread::sleep(pause);
        }
    }
}

/// An id in a partition after the other, of three: those who load a deployment want progress in all of them.
fn spread(number: usize) -> String {
    let wanted = |id: &String| usize::try_from(partition_of(id.as_bytes(), 3)) == Ok(number % 3);
    std::iter::repeat_with(new_id).find(wanted).expect("ids spread over partitions")
}

/// A producer of commands to the topic, who never asks again: some twice, some in a partition that is not their own.
#[derive(Debug)]
pub struct TopicLoad {
    over: Arc<AtomicBool>,
    sent: JoinHandle<Vec<(String, String)>>,
}

impl TopicLoad {
    /// Starts it on accounts of its own.
    pub fn start(deployment: &Deployment, accounts: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (deployment, ended) = (deployment.clone(), over.clone());
        let sent = thread::spawn(move || {
            let (topic, producer) = (deployment.topic("commands"), Producer::new("murmur2_random"));
            let ids: Vec<_> = (0..accounts).map(|_| new_id()).collect();
            let mut sent = Vec::new();
            let mut send = |id: &String, value, partition: Option<i32>, times: usize| {
                let key = new_key();
                let mut draft = Draft::new(id, value).header("ce_id", &key);
                draft.partition = partition;
                for _ in 0..times {
                    producer.send(&topic, &draft);
                }
                sent.push((id.clone(), key));
            };
            for id in &ids {
                send(id, commands::open("Grace", "EUR"), None, 1);
            }
            for at in (0_usize..).take_while(|_| !ended.load(Ordering::Relaxed)) {
                let id = &ids[at % ids.len()];
                let elsewhere = (deployment.partition_of(id) + 1) % deployment.partitions;
                let misrouted = at % 11 == 10;
                thread::sleep(THINKING);
                send(id, commands::deposit(1), misrouted.then_some(elsewhere), 1 + usize::from(at % 7 == 6));
            }
            sent
        });
        Self { over, sent }
    }

    /// Ends it, and waits until each of its commands has its outcome.
    ///
    /// # Panics
    /// When one has none in time, or was refused.
    #[track_caller]
    pub fn stop(self, deployment: &Deployment) {
        self.over.store(true, Ordering::Relaxed);
        let sent = self.sent.join().expect("the producer was told of every record");
        let mut without: HashSet<&[u8]> = sent.iter().map(|(_, key)| key.as_bytes()).collect();
        eventually("outcomes of all commands on the topic", || {
            kafka::for_each(&deployment.topic("outcomes"), None, |record| {
                without.remove(record.key.as_deref().expect("outcomes have keys"));
            });
            if without.is_empty() { Ok(()) } else { Err(format!("{} of {} have none", without.len(), sent.len())) }
        });
        let log = Log::read(deployment);
        for command in &sent {
            assert_eq!(log.originals[command].outcome, "accepted", "{command:?}");
        }
    }
}
