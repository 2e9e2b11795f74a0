//! The aggregate types that are served, behind a face without their Rust types.

use std::{pin::Pin, sync::Arc};

use millrace_shared::{
    codec::{Codec, DecodeError, Foreign},
    config,
    domain::{
        Aggregate, AggregateInfo, CommandError, Domains, Fields, Visitor,
        process::{Answer, Errand},
    },
    fingerprint::{self, Fingerprint, fingerprint_of},
    kafka::topics::{Names, Topic},
    outcome::OutcomeRecord,
    panics::Quiet,
    personal::{HashSecret, KeyRecord, MasterKeys},
    records::Records,
    registry::{self, Registry},
    snapshot::CheckpointRecord,
};
use serde_json::Value;
use tokio::runtime::Handle;

use crate::partition::{Decider, Partition, Settings};

/// An aggregate type as intake, writers and HTTP see it.
pub trait CommandType: Send + Sync {
    /// What can be said of it.
    fn info(&self) -> AggregateInfo;

    /// Name of one of its topics.
    fn topic(&self, topic: Topic) -> &str;

    /// Makes a record value of a command's name and JSON body.
    fn encode(&self, name: &str, body: &[u8]) -> Result<Encoded, EncodeError>;

    /// Reads an event: its name and its fields as JSON. Not to be called on a thread of the async runtime.
    fn read_event(&self, value: &[u8], runtime: &Handle) -> Result<(&'static str, Value), DecodeError>;

    /// Makes a record value of the command of an errand to this type.
    ///
    /// # Errors
    /// When it is for another type, or can't be encoded: a fault of ours.
    fn encode_errand(&self, errand: &Errand) -> Result<Vec<u8>, String>;

    /// Makes a record value of what a process of this type is told after an answer, if anything.
    ///
    /// # Errors
    /// When it can't be encoded: a fault of ours.
    fn conclude(&self, step: &str, answer: Answer<'_>) -> Result<Option<Vec<u8>>, String>;

    /// A partition about which nothing is known yet.
    fn partition(self: Arc<Self>, settings: Settings) -> Box<dyn Decider>;
}

/// A command ready for its topic.
#[derive(Debug)]
pub struct Encoded {
    /// Avro in wire format; none in an order to cancel another command.
    pub value: Option<Vec<u8>>,
    /// Fingerprint of its name and field values.
    pub fingerprint: Fingerprint,
}

/// Why a body can't become a command.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The caller's mistake.
    #[error("{0:?}")]
    Command(CommandError),
    /// Ours.
    #[error("a command can't be encoded: {0}")]
    Internal(String),
}

/// What a type needs at work.
pub struct TypeOf<A: Aggregate> {
    /// Codec of its commands.
    pub commands: Codec<A::Command>,
    /// Codec of its events.
    pub events: Codec<A::Event>,
    /// Codec of outcomes.
    pub outcomes: Codec<OutcomeRecord>,
    /// Codec of states in snapshots.
    pub snapshots: Codec<A::Snapshot>,
    /// Codec of what is told about snapshots.
    pub checkpoints: Codec<CheckpointRecord>,
    /// What fingerprints of personal data are made with.
    hash: Option<HashSecret>,
    /// What its personal data needs, where it has any.
    pub personal: Option<Personals>,
    topics: [String; Topic::ALL.len()],
}

/// What personal data needs.
pub struct Personals {
    /// Codec of keys.
    pub codec: Codec<KeyRecord>,
    /// What these are wrapped with.
    pub masters: MasterKeys,
}

/// The secrets that personal data needs; none where there is no such data.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    /// What keys are wrapped with.
    pub masters: Option<MasterKeys>,
    /// What fingerprints are made with.
    pub hash: Option<HashSecret>,
}

impl Secrets {
    /// As the settings have them, for what is served.
    ///
    /// # Errors
    /// When one is missing, or malformed.
    pub fn of<D: Domains>(settings: &config::CommandSettings) -> Result<Self, config::Error> {
        Ok(Self { masters: settings.personal.keys::<D>()?, hash: settings.hash.secret::<D>()? })
    }
}

impl<A: Aggregate> TypeOf<A> {
    /// Registers the type's schemas.
    pub async fn build(registry: Registry, names: Names, secrets: Secrets) -> Result<Self, registry::Error> {
        let topics = Topic::ALL.map(|topic| names.topic(A::TYPE, topic));
        let name = |topic: Topic| &topics[topic as usize];
        // Side by side, as the records of each.
        let (commands, events, outcomes, snapshots, checkpoints) = tokio::try_join!(
            Codec::registering(registry.clone(), name(Topic::Commands), false),
            Codec::registering(registry.clone(), name(Topic::Events), true),
            Codec::registering(registry.clone(), name(Topic::Outcomes), true),
            Codec::registering(registry.clone(), name(Topic::Snapshots), true),
            Codec::registering(registry.clone(), name(Topic::Snapshots), true),
        )?;
        let personal = match secrets.masters.filter(|_| A::IS_PERSONAL) {
            None => None,
            Some(masters) => {
                let codec = Codec::registering(registry, name(Topic::Keys), true).await?;
                Some(Personals { codec, masters })
            }
        };
        Ok(Self { commands, events, outcomes, snapshots, checkpoints, personal, hash: secrets.hash, topics })
    }

    /// The fingerprint of a command.
    ///
    /// # Errors
    /// A fault of ours.
    pub fn fingerprint(&self, command: &A::Command) -> Result<Fingerprint, fingerprint::Error> {
        fingerprint_of::<A>(command, self.hash.as_ref())
    }

    /// A command that was read, with what can be told of it with the secret only.
    pub fn prepare(&self, command: &mut A::Command) {
        // Without the secret it has no fingerprint either.
        if let Some(secret) = self.hash.as_ref().filter(|_| A::ASKS) {
            A::prepare(command, secret);
        }
    }

    fn encode_command(&self, command: &A::Command) -> Result<Vec<u8>, String> {
        let mut value = Vec::with_capacity(64);
        self.commands.encode(command, &mut value).map_err(|error| error.to_string())?;
        Ok(value)
    }
}

#[cfg(test)]
impl<A: Aggregate> TypeOf<A> {
    /// For tests that talk to no registry: schema ids are 1, 2, 3, …, and others can't be asked for.
    pub fn unregistered() -> Self {
        let registry = Registry::new("http://127.0.0.1:1").unwrap();
        let masters = MasterKeys::parse("k1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=").unwrap();
        let codec = Codec::unregistered(registry.clone()).unwrap();
        Self {
            personal: A::IS_PERSONAL.then_some(Personals { codec, masters }),
            hash: Some(HashSecret::new("a secret for tests").unwrap()),
            commands: Codec::unregistered(registry.clone()).unwrap(),
            events: Codec::unregistered(registry.clone()).unwrap(),
            outcomes: Codec::unregistered(registry.clone()).unwrap(),
            snapshots: Codec::unregistered(registry.clone()).unwrap(),
            checkpoints: Codec::unregistered(registry).unwrap(),
            topics: Topic::ALL.map(|topic| Names::default().topic(A::TYPE, topic)),
        }
    }
}

impl<A: Aggregate> CommandType for TypeOf<A> {
    fn info(&self) -> AggregateInfo {
        AggregateInfo::of::<A>()
    }

    fn topic(&self, topic: Topic) -> &str {
        &self.topics[topic as usize]
    }

    fn encode(&self, name: &str, body: &[u8]) -> Result<Encoded, EncodeError> {
        if !A::COMMANDS.contains(&name) {
            return Err(EncodeError::Command(CommandError::Unknown));
        }
        let _quiet = Quiet::when(A::IS_PERSONAL);
        let command = Fields::parse(body).and_then(|fields| A::command(name, fields)).map_err(EncodeError::Command)?;
        let fingerprint = self.fingerprint(&command).map_err(|error| EncodeError::Internal(error.to_string()))?;
        let value = self.encode_command(&command).map_err(EncodeError::Internal)?;
        Ok(Encoded { value: Some(value), fingerprint })
    }

    fn read_event(&self, value: &[u8], runtime: &Handle) -> Result<(&'static str, Value), DecodeError> {
        let event = self.events.decode(value, Foreign::Resolve, runtime)?;
        let data = serde_json::to_value(&event).map_err(|error| DecodeError::Malformed(error.to_string()))?;
        Ok((event.name(), data))
    }

    fn encode_errand(&self, errand: &Errand) -> Result<Vec<u8>, String> {
        let command = errand.command::<A>().ok_or_else(|| format!("{errand:?} is not for {}", A::TYPE))?;
        self.encode_command(command)
    }

    fn conclude(&self, step: &str, answer: Answer<'_>) -> Result<Option<Vec<u8>>, String> {
        A::conclude(step, answer).map(|command| self.encode_command(&command)).transpose()
    }

    fn partition(self: Arc<Self>, settings: Settings) -> Box<dyn Decider> {
        Box::new(Partition::<A>::new(self, settings))
    }
}

/// Registers the schemas of all types.
pub async fn build_all<D: Domains>(
    registry: &Registry,
    names: &Names,
    secrets: &Secrets,
) -> Result<Vec<Arc<dyn CommandType>>, registry::Error> {
    type Building = Pin<Box<dyn Future<Output = Result<Arc<dyn CommandType>, registry::Error>> + Send>>;
    struct Collect<'a> {
        registry: &'a Registry,
        names: &'a Names,
        secrets: &'a Secrets,
        building: Vec<Building>,
    }
    impl Visitor for Collect<'_> {
        fn visit<A: Aggregate>(&mut self) {
            let built = TypeOf::<A>::build(self.registry.clone(), self.names.clone(), self.secrets.clone());
            self.building.push(Box::pin(async move { Ok(Arc::new(built.await?) as Arc<dyn CommandType>) }));
        }
    }
    let mut collect = Collect { registry, names, secrets, building: Vec::new() };
    D::visit_all(&mut collect);
    let mut types = Vec::new();
    for building in collect.building {
        types.push(building.await?);
    }
    Ok(types)
}
