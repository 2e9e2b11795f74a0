//! The schema registry: registering our schemas, finding a writer's schema by its id.

use std::time::Duration;

use apache_avro::Schema;
use schema_registry_converter::{
    async_impl::schema_registry::{SrSettings, get_schema_by_id, post_schema},
    error::SRCError,
    schema_registry_common::{SchemaType, SuppliedSchema},
};

use crate::compatibility;

/// Longest wait for one answer of the registry.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What can go wrong when the registry is asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It has no such schema.
    #[error("the registry knows no schema with id {0}")]
    UnknownId(u32),
    /// It refused a schema as incompatible with those recorded under the subject.
    #[error(
        "the registry refuses the schema of subject {subject} as incompatible with its recorded versions: {detail}; \
         this release can't write beside the data that is there: deploy the release that wrote it, or mend the schema"
    )]
    Incompatible {
        /// The subject the schema was offered under.
        subject: String,
        /// What the registry says.
        detail: String,
    },
    /// It does not answer as it should; worth trying again.
    #[error("the registry can't be asked: {0}")]
    Unavailable(String),
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        Self::Unavailable(error.without_url().to_string())
    }
}

/// A client of a Confluent-compatible schema registry. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    url: String,
    settings: SrSettings,
    /// For what schema_registry_converter lacks: compatibility levels, lists of subjects and of versions.
    client: reqwest::Client,
}

impl Registry {
    /// A client of the registry at `url`, API path included.
    pub fn new(url: &str) -> Result<Self, Error> {
        let url = url.trim_end_matches('/').to_owned();
        let settings = SrSettings::new_builder(url.clone())
            .set_timeout(REQUEST_TIMEOUT)
            .build()
            .map_err(|error| Error::Unavailable(error.to_string()))?;
        let client = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build()?;
        Ok(Self { url, settings, client })
    }

    /// Registers the versions of a schema, oldest first, and has the registry refuse any that is not compatible with
    /// all of them in both directions. Returns the id of each. Doing it again changes nothing.
    ///
    /// # Errors
    /// Also when others are there that aren't compatible with ours, from a time when the registry did not refuse them.
    pub async fn register_compatible(&self, subject: &str, versions: &[&str]) -> Result<Vec<u32>, Error> {
        // Apicurio knows no setting for a subject that has no schema yet: the first version has to be there first.
        let guarded = self.require_full_transitive(subject).await?;
        let mut ids = Vec::new();
        for schema in versions {
            match self.register(subject, schema).await {
                // The registry's own words name no field.
                Err(error @ Error::Incompatible { .. }) => {
                    self.require_compatible(subject, versions).await?;
                    return Err(error);
                }
                registered => ids.push(registered?),
            }
            if ids.len() == 1 && !guarded && !self.require_full_transitive(subject).await? {
                return Err(Error::Unavailable(format!("no compatibility level can be set for subject {subject}")));
            }
        }
        let recorded: Vec<u32> = self.ask(&format!("/subjects/{subject}/versions")).await?;
        if recorded.len() > ids.len() {
            self.require_compatible(subject, versions).await?;
        }
        Ok(ids)
    }

    /// Holds our versions of a schema against all that the registry has.
    async fn require_compatible(&self, subject: &str, versions: &[&str]) -> Result<(), Error> {
        #[derive(serde::Deserialize)]
        struct Version {
            schema: String,
        }
        let parse = |text: &str| {
            Schema::parse_str(text).map_err(|error| Error::Incompatible {
                subject: subject.to_owned(),
                detail: format!("a schema can't be parsed: {error}"),
            })
        };
        let recorded: Vec<u32> = self.ask(&format!("/subjects/{subject}/versions")).await?;
        for number in recorded {
            let found: Version = self.ask(&format!("/subjects/{subject}/versions/{number}")).await?;
            let found = parse(&found.schema)?;
            for (ours, text) in (1..).zip(versions) {
                compatibility::check(&found, &parse(text)?).map_err(|reason| Error::Incompatible {
                    subject: subject.to_owned(),
                    detail: format!("our version {ours} against version {number} there: {reason}"),
                })?;
            }
        }
        Ok(())
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let answer = self.client.get(format!("{}{path}", self.url)).send().await?.error_for_status()?;
        Ok(answer.json().await?)
    }

    /// Registers one schema as it is; the compatibility level of the subject is left alone.
    pub async fn register(&self, subject: &str, schema: &str) -> Result<u32, Error> {
        let supplied = SuppliedSchema::new(None, SchemaType::Avro, schema.to_owned());
        match post_schema(&self.settings, subject.to_owned(), supplied).await {
            Ok(registered) => Ok(registered.id),
            Err(error) if has_status(&error, 409) => {
                Err(Error::Incompatible { subject: subject.to_owned(), detail: error.cause.unwrap_or(error.error) })
            }
            Err(error) => Err(Error::Unavailable(error.to_string())),
        }
    }

    /// The schema with this id, as JSON text.
    pub async fn schema(&self, id: u32) -> Result<String, Error> {
        match get_schema_by_id(id, &self.settings).await {
            Ok(found) => Ok(found.schema),
            Err(error) if has_status(&error, 404) => Err(Error::UnknownId(id)),
            Err(error) => Err(Error::Unavailable(error.to_string())),
        }
    }

    /// Whether it answers at all.
    pub async fn ping(&self) -> Result<(), Error> {
        self.client.get(format!("{}/subjects", self.url)).send().await?.error_for_status()?;
        Ok(())
    }

    /// False when the subject isn't there yet.
    async fn require_full_transitive(&self, subject: &str) -> Result<bool, Error> {
        const WANTED: &str = "FULL_TRANSITIVE";
        let url = format!("{}/config/{subject}", self.url);
        // Asking costs Apicurio 5 ms, telling it 40, for each of some sixty subjects at every start. What is said of all
        // subjects is no answer: one without a level of its own is not found, at NONE, or (Confluent's) without a level.
        let known = self.client.get(&url).send().await?;
        if known.status().is_success()
            && let Ok(config) = known.json::<serde_json::Value>().await
            && config["compatibilityLevel"] == WANTED
        {
            return Ok(true);
        }
        let answer = self.client.put(url).json(&serde_json::json!({"compatibility": WANTED})).send().await?;
        if answer.status() == reqwest::StatusCode::NOT_FOUND {
            return Ok(false);
        }
        answer.error_for_status()?;
        Ok(true)
    }
}

/// schema_registry_converter gives the status of an answer in its message only.
fn has_status(error: &SRCError, status: u16) -> bool {
    error.error.contains(&format!("status {status}"))
}
