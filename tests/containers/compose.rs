//! The Compose files, as far as the tests look into them.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;

use crate::text;

#[derive(Clone, Debug, Deserialize)]
pub struct Compose {
    pub services: BTreeMap<String, Service>,
    #[serde(default)]
    pub secrets: BTreeMap<String, Secret>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    pub image: Option<String>,
    pub build: Option<Build>,
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub secrets: Vec<String>,
    pub ports: Vec<String>,
    pub networks: Vec<String>,
    pub volumes: Vec<String>,
    pub depends_on: BTreeMap<String, Dependency>,
    pub healthcheck: Option<Healthcheck>,
    pub restart: Option<String>,
    pub stop_grace_period: Option<String>,
    pub read_only: bool,
    pub cap_drop: Vec<String>,
    pub security_opt: Vec<String>,
    pub mem_limit: Option<String>,
    pub pids_limit: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Build {
    pub context: String,
    pub dockerfile: String,
    pub target: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Dependency {
    pub condition: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Healthcheck {
    pub test: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Secret {
    pub file: String,
}

/// A port of a container that this machine serves.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    pub address: IpAddr,
    pub port: u16,
    pub container_port: u16,
}

impl Service {
    pub fn published(&self) -> Vec<Published> {
        let read = |text: &String| {
            let mut fields = text.splitn(3, ':');
            Some(Published {
                address: fields.next()?.parse().ok()?,
                port: fields.next()?.parse().ok()?,
                container_port: fields.next()?.parse().ok()?,
            })
        };
        self.ports.iter().map(|text| read(text).unwrap_or_else(|| panic!("{text} is not IP:PORT:PORT"))).collect()
    }
}

impl Compose {
    /// What `docker compose -f deploy/compose.yaml up` starts.
    pub fn open() -> Self {
        read("deploy/compose.yaml")
    }

    /// The same with compose.token.yaml on top.
    pub fn with_token() -> Self {
        let mut compose = Self::open();
        let overlay: Self = read("deploy/compose.token.yaml");
        for (name, over) in overlay.services {
            let service = compose.service_mut(&name);
            service.environment.extend(over.environment);
            service.secrets.extend(over.secrets);
        }
        compose.secrets.extend(overlay.secrets);
        compose
    }

    pub fn service(&self, name: &str) -> &Service {
        self.services.get(name).unwrap_or_else(|| panic!("compose.yaml has no service {name}"))
    }

    fn service_mut(&mut self, name: &str) -> &mut Service {
        self.services.get_mut(name).unwrap_or_else(|| panic!("compose.yaml has no service {name}"))
    }

    /// The services that are built from this repository.
    pub fn built(&self) -> impl Iterator<Item = (&str, &Service, &Build)> {
        self.services.iter().filter_map(|(name, service)| Some((name.as_str(), service, service.build.as_ref()?)))
    }
}

fn read(path: &str) -> Compose {
    serde_saphyr::from_str(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}
