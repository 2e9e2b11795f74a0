//! Brings Kafka and the registry into a cache folder, through Maven and by pinned version.
//!
//! The cache folder is named after the pinned versions and is renamed into place only once every
//! file has been checked, so what is there is complete.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::checksums;

const POM: &str = include_str!("../pom.xml");
pub const CHECKSUMS: &str = include_str!("../checksums.sha256");

pub const AFTER_HELP: &str = "\
The cache is $XDG_CACHE_HOME/millrace, or ~/.cache/millrace. Maven does the downloading, so its \
settings (proxy, mirror) apply.";

/// Where the fetched parts lie.
pub struct Parts {
    pub dir: PathBuf,
}

impl Parts {
    /// Kafka's jars as one class path, in a fixed order.
    pub fn kafka_class_path(&self) -> Result<String> {
        let dir = self.dir.join("kafka");
        let mut jars = Vec::new();
        for entry in dir.read_dir().with_context(|| format!("reading {}", dir.display()))? {
            jars.push(entry?.path().to_string_lossy().into_owned());
        }
        jars.sort();
        Ok(jars.join(":"))
    }

    /// The folder of the unpacked registry.
    pub fn registry_dir(&self) -> PathBuf {
        self.dir.join("registry")
    }
}

/// The cache folder that the parts and the tools of `deploy/local` share.
fn cache_dir() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let base = match set("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(set("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache"),
    };
    Ok(base.join("millrace"))
}

/// The parts, downloaded first if the cache hasn't got them.
pub fn parts() -> Result<Parts> {
    let cache = cache_dir()?;
    let pinned = checksums::sha256_of(format!("{POM}{CHECKSUMS}").as_bytes());
    let dir = cache.join(format!("parts-{}", &pinned[..12]));
    if !dir.is_dir() {
        fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
        let _lock = lock(&cache.join("fetch.lock"))?;
        // Another process may have fetched while this one waited for the lock.
        if !dir.is_dir() {
            download(&cache, &dir)?;
        }
    }
    Ok(Parts { dir })
}

fn lock(path: &Path) -> Result<Flock<File>> {
    let open = || File::create(path).with_context(|| format!("opening {}", path.display()));
    match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err(_) => {
            println!("waiting for another process that is fetching the same parts");
            Flock::lock(open()?, FlockArg::LockExclusive)
                .map_err(|(_, errno)| errno)
                .with_context(|| format!("locking {}", path.display()))
        }
    }
}

fn download(cache: &Path, dir: &Path) -> Result<()> {
    let staging = cache.join("fetching");
    remove(&staging)?;
    fs::create_dir_all(&staging).with_context(|| format!("creating {}", staging.display()))?;
    let fetched = fetch_into(&staging)
        .and_then(|parts| fs::rename(&parts, dir).with_context(|| format!("renaming to {}", dir.display())));
    remove(&staging)?;
    fetched.context("fetching Kafka and the registry failed, and nothing of it was kept")
}

/// Downloads, checks and unpacks below `staging`; returns the finished folder.
fn fetch_into(staging: &Path) -> Result<PathBuf> {
    let started = Instant::now();
    let parts = staging.join("parts");
    println!("fetching Kafka and the registry (150 MB, once) ...");
    run_maven(staging, &parts)?;
    println!("  downloaded in {:.0} s; checking", started.elapsed().as_secs_f32());
    checksums::verify(&parts, &checksums::parse(CHECKSUMS)?)?;
    println!("  every file is as expected; unpacking");
    unpack_registry(&parts.join("registry"))?;
    println!("  done after {:.0} s", started.elapsed().as_secs_f32());
    Ok(parts)
}

fn run_maven(staging: &Path, parts: &Path) -> Result<()> {
    let pom = staging.join("pom.xml");
    fs::write(&pom, POM).with_context(|| format!("writing {}", pom.display()))?;
    // A repository of its own: nothing old gets in, and nothing is left behind.
    let output = Command::new("mvn")
        .args(["--batch-mode", "--quiet", "--strict-checksums", "--file"])
        .arg(&pom)
        .arg(format!("-Dmaven.repo.local={}", staging.join("repository").display()))
        .arg(format!("-Dparts={}", parts.display()))
        .arg("validate")
        .stdin(Stdio::null())
        .output()
        .context("could not start mvn (Maven); deploy/local/install installs it")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<_> = text.lines().filter(|l| l.contains("ERROR")).collect();
        let shown = lines[..lines.len().min(3)].join("\n");
        bail!("Maven ended with {}:\n{shown}", output.status);
    }
    Ok(())
}

fn unpack_registry(dir: &Path) -> Result<()> {
    let archive = dir
        .read_dir()
        .with_context(|| format!("reading {}", dir.display()))?
        .next()
        .context("the registry's archive is missing")??
        .path();
    let status = Command::new("tar")
        .arg("--extract")
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(dir)
        .stdin(Stdio::null())
        .status()
        .context("could not start tar")?;
    if !status.success() {
        bail!("tar ended with {status} on {}", archive.display());
    }
    fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}
