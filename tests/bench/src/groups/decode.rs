//! `decode`: what it costs to read events that are personal, or of an earlier version, beside plain ones. In memory: Kafka,
//! Redis and the fold would only hide it.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use apache_avro::types::Value as Avro;
use millrace_shared::{
    codec::Codec,
    domain::{
        bank_account::{Event as AccountEvent, MoneyDeposited},
        user::{Event as UserEvent, UserAccount, UserRegistered},
    },
    personal::{DataKey, MasterKeys, Personal, place, seal_event},
    records::Records,
    views::people::Opener,
};
use millrace_tests::avro::encode;
use serde_json::{Value, json};

use super::{Group, Settings};
use crate::{
    progress,
    report::{Figure, rounded},
};

const UPCAST: &str = "decode.upcast";
const PERSONAL: &str = "decode.personal";

pub const GROUP: Group = Group {
    figures: &[
        (UPCAST, "deposits of the first version, read as present ones; raw: present ones"),
        (PERSONAL, "registrations of users, read and opened; raw: read, and left encrypted"),
    ],
    run,
};

/// Different people, each with a key.
const PEOPLE: usize = 1_000;
const MASTER: &str = "bench:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
/// Of the wire format.
const PREFIX_BYTES: usize = 5;

fn run(settings: &Settings, wanted: &[&'static str]) -> Result<Vec<Figure>> {
    let events = if settings.quick { 2_000 } else { 500_000 };
    let (deposits, people) = (Deposits::new()?, People::new()?);
    let (mut upcast, mut opened) = (Vec::new(), Vec::new());
    for round in 1..=settings.rounds {
        let both = |ours: &dyn Fn(usize) -> Result<()>, raw: &dyn Fn(usize) -> Result<()>| -> Result<_> {
            let (ours, raw) = match round % 2 {
                0 => (seconds(ours, events)?, seconds(raw, events)?),
                _ => {
                    let raw = seconds(raw, events)?;
                    (seconds(ours, events)?, raw)
                }
            };
            let more = json!({"more_us_per_event": rounded((ours - raw) * 1e6 / events as f64)});
            Ok((events as f64 / ours, events as f64 / raw, more))
        };
        upcast.push(both(&|_| deposits.read(0), &|_| deposits.read(1))?);
        opened.push(both(&|at| people.read(at, true), &|at| people.read(at, false))?);
        let rate = |rounds: &[(f64, f64, Value)]| rounds.last().map_or(f64::NAN, |(ours, raw, _)| ours / raw);
        progress(format_args!(
            "decode: round {round} of {}: upcast {:.2}, personal {:.2} of plain",
            settings.rounds,
            rate(&upcast),
            rate(&opened)
        ));
    }
    let settings = json!({"events": events, "people": PEOPLE, "personal_fields": 5});
    let figures = [
        Figure::new(UPCAST, "events/s", upcast, settings.clone()),
        Figure::new(PERSONAL, "events/s", opened, settings),
    ];
    Ok(figures.into_iter().filter(|figure| wanted.contains(&figure.name)).collect())
}

fn seconds(read: &dyn Fn(usize) -> Result<()>, events: usize) -> Result<f64> {
    let begin = Instant::now();
    (0..events).try_for_each(read)?;
    Ok(begin.elapsed().as_secs_f64())
}

/// A deposit in each of its versions.
struct Deposits {
    codec: Codec<AccountEvent>,
    index: usize,
    versions: [Vec<u8>; 2],
}

impl Deposits {
    fn new() -> Result<Self> {
        let present =
            MoneyDeposited { amount_minor: 12_345, reference: Some("invoice 000042".to_owned()), channel: None };
        let present = AccountEvent::MoneyDeposited(present);
        let (codec, index) = (Codec::<AccountEvent>::datums()?, present.index());
        let schema = serde_json::from_str(AccountEvent::TYPES[index].versions[0])?;
        let reference = Avro::Union(1, Box::new(Avro::String("invoice 000042".to_owned())));
        let mut first = encode(0, &schema, vec![("amount_minor", Avro::Long(12_345)), ("reference", reference)]);
        let mut bytes = Vec::new();
        codec.encode_datum(&present, &mut bytes)?;
        let deposits = Self { codec, index, versions: [first.split_off(PREFIX_BYTES), bytes] };
        for version in [0, 1] {
            let read = deposits.codec.decode_datum(index, version, &deposits.versions[version]);
            ensure!(read.as_ref() == Some(&present), "version {version} is read as {read:?}");
        }
        Ok(deposits)
    }

    fn read(&self, version: usize) -> Result<()> {
        let event = self.codec.decode_datum(self.index, version, &self.versions[version]);
        std::hint::black_box(event).map(|_| ()).context("it was read before")
    }
}

/// Registrations as they lie in the log, and keys as Redis has them.
struct People {
    codec: Codec<UserEvent>,
    opener: Opener,
    index: usize,
    all: Vec<Registered>,
}

struct Registered {
    id: String,
    key: Vec<u8>,
    datum: Vec<u8>,
}

impl People {
    fn new() -> Result<Self> {
        let master = MasterKeys::parse(MASTER).map_err(anyhow::Error::msg)?;
        let (codec, opener) = (Codec::<UserEvent>::datums()?, Opener::new(master.clone())?);
        let mut index = 0;
        let registered = |number: usize| {
            let id = format!("user-{number:06}");
            let mut event = UserEvent::UserRegistered(UserRegistered {
                given_name: Personal::Open("Ada".to_owned()),
                family_name: Personal::Open(format!("Lovelace {number}")),
                email: Personal::Open(format!("ada.{number}@example.org")),
                address: Personal::Open(None),
                reservation: Personal::Open(Some(format!("{number:064x}"))),
            });
            index = event.index();
            let key = DataKey::generate();
            seal_event::<UserAccount>(&mut event, Some(&key), &id)?;
            let mut datum = Vec::new();
            codec.encode_datum(&event, &mut datum)?;
            let key = opener.packed(&master.wrap(&key, &place::<UserAccount>(&id)))?;
            Ok(Registered { id, key, datum })
        };
        let all = (0..PEOPLE).map(registered).collect::<Result<_>>()?;
        Ok(Self { codec, opener, index, all })
    }

    fn read(&self, at: usize, open: bool) -> Result<()> {
        let Registered { id, key, datum } = &self.all[at % self.all.len()];
        let version = UserEvent::TYPES[self.index].versions.len() - 1;
        let mut event = self.codec.decode_datum(self.index, version, datum).context("it fits its schema")?;
        if open {
            self.opener.open::<UserAccount>(&mut event, Some(key), id)?;
        }
        std::hint::black_box(event);
        Ok(())
    }
}
