//! The folder that holds one run's data, logs and `env` file.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

/// Its presence says that a folder is ours; it also keeps what can't change later.
const MARKER: &str = "millrace-data.json";
const LOCK: &str = "lock";
const ENV: &str = "env";

/// A data folder that is locked for this process.
pub struct DataDir {
    pub path: PathBuf,
    /// Brokers that the Kafka in here was made with.
    pub brokers: u16,
    pub kafka_cluster_id: String,
    _lock: Flock<File>,
}

impl DataDir {
    /// Locks the folder, and makes it if need be; `fresh` empties it first. `brokers` is what the
    /// user asked for, if anything.
    pub fn open(path: &Path, fresh: bool, brokers: Option<u16>) -> Result<DataDir> {
        let shown = path.display().to_string();
        fs::create_dir_all(path).with_context(|| format!("creating {shown}"))?;
        let path = &path.canonicalize().with_context(|| format!("finding {shown}"))?;
        recognise(path)?;
        let lock = lock(path)?;
        if fresh {
            empty(path)?;
        }
        let marker = path.join(MARKER);
        let made = match read_marker(&marker)? {
            Some(made) => made,
            None => {
                let made = (brokers.unwrap_or(1), new_cluster_id()?);
                let text = json!({"format": 1, "brokers": made.0, "kafka_cluster_id": made.1});
                replace(&marker, &format!("{text}\n"))?;
                made
            }
        };
        let (made_with, kafka_cluster_id) = made;
        if let Some(asked) = brokers {
            ensure!(
                asked == made_with,
                "{shown} holds a Kafka of {made_with} broker(s), not {asked}: leave out \
                 --brokers, use another --data folder, or start empty with --fresh"
            );
        }
        for dir in ["logs", "tmp"] {
            let dir = path.join(dir);
            fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        }
        let data = DataDir { path: path.clone(), brokers: made_with, kafka_cluster_id, _lock: lock };
        data.remove_env()?;
        Ok(data)
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }

    /// A folder for files that the next start may delete.
    pub fn tmp(&self) -> PathBuf {
        self.path.join("tmp")
    }

    /// Secrets of this run's personal data, as variables that name their files; of those only that are wanted. They are made
    /// once, and go with the data: without them it can't be read, so none are made for data that is there already.
    pub fn secrets(&self, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, String>> {
        let mut variables = BTreeMap::new();
        for (variable, name, before) in
            [("MILLRACE_MASTER_KEYS_FILE", "master-keys", "k1:"), ("MILLRACE_HASH_SECRET_FILE", "hash-secret", "")]
        {
            let path = self.path.join(name);
            if !wanted(variable) {
                continue;
            }
            if !path.exists() {
                if let Some(topic) = self.topic_of_keys()? {
                    bail!(
                        "{} is gone, but {} is there: personal data is encrypted with it. Put it back, or set {variable} \
                         to where it is; without it, start empty with --fresh",
                        path.display(),
                        topic.display()
                    );
                }
                let mut random = [0; 32];
                let source = "/dev/urandom";
                let mut file = File::open(source).with_context(|| format!("opening {source}"))?;
                file.read_exact(&mut random).with_context(|| format!("reading {source}"))?;
                replace_with(&path, &format!("{before}{}\n", STANDARD.encode(random)), 0o600)?;
            }
            variables.insert(variable.to_owned(), path.display().to_string());
        }
        Ok(variables)
    }

    /// Where a broker of this folder keeps people's keys, if any was ever told to.
    fn topic_of_keys(&self) -> Result<Option<PathBuf>> {
        let kafka = self.path.join("kafka");
        if !kafka.is_dir() {
            return Ok(None);
        }
        let mut found = None;
        for broker in entries(&kafka)?.into_iter().filter(|path| path.is_dir()) {
            found = found.or(entries(&broker)?.into_iter().find(|path| path.is_dir() && is_of_keys(path)));
        }
        Ok(found)
    }

    /// Writes the `env` file, all at once: whoever sees it sees all of it.
    pub fn write_env(&self, variables: &BTreeMap<String, String>) -> Result<()> {
        replace(&self.path.join(ENV), &env_text(variables))
    }

    pub fn remove_env(&self) -> Result<()> {
        let path = self.path.join(ENV);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Lines that both a shell and a simple reader of `KEY=value` understand.
fn env_text(variables: &BTreeMap<String, String>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.:/,@%+=[]".contains(c);
    let line = |(key, value): (&String, &String)| {
        if value.chars().all(plain) {
            format!("{key}={value}\n")
        } else {
            format!("{key}='{}'\n", value.replace('\'', r"'\''"))
        }
    };
    variables.iter().map(line).collect()
}

/// Refuses a folder with contents that aren't ours: `--fresh` would delete them.
fn recognise(path: &Path) -> Result<()> {
    if path.join(MARKER).is_file() {
        return Ok(());
    }
    for entry in entries(path)? {
        if entry.file_name().is_some_and(|name| name != LOCK) {
            bail!(
                "{} is neither empty nor a data folder of Millrace (it has no {MARKER}): \
                 name another one with --data",
                path.display()
            );
        }
    }
    Ok(())
}

/// Whether a folder is a partition of a topic of keys: `user.keys-7`.
fn is_of_keys(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.rsplit_once('-').is_some_and(|(topic, _)| topic.ends_with(".keys"))
}

fn lock(path: &Path) -> Result<Flock<File>> {
    let lock = path.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock)
        .with_context(|| format!("opening {}", lock.display()))?;
    let mut holder = String::new();
    file.read_to_string(&mut holder).with_context(|| format!("reading {}", lock.display()))?;
    let mut locked = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(locked) => locked,
        Err((_, Errno::EWOULDBLOCK)) => bail!(
            "{} is in use by another run (process {}): stop that one, or name another folder \
             with --data and other ports with --port-offset",
            path.display(),
            holder.trim()
        ),
        Err((_, errno)) => bail!("locking {}: {errno}", lock.display()),
    };
    locked
        .set_len(0)
        .and_then(|()| std::io::Seek::rewind(&mut *locked))
        .and_then(|()| writeln!(locked, "{}", std::process::id()))
        .with_context(|| format!("writing {}", lock.display()))?;
    Ok(locked)
}

fn empty(path: &Path) -> Result<()> {
    // The marker goes last: a deletion that was cut short can be repeated.
    let (marker, others): (Vec<_>, Vec<_>) = entries(path)?
        .into_iter()
        .filter(|entry| entry.file_name().is_some_and(|name| name != LOCK))
        .partition(|entry| entry.file_name().is_some_and(|name| name == MARKER));
    for entry in others.into_iter().chain(marker) {
        let removed =
            if entry.is_dir() && !entry.is_symlink() { fs::remove_dir_all(&entry) } else { fs::remove_file(&entry) };
        removed.with_context(|| format!("removing {}", entry.display()))?;
    }
    Ok(())
}

fn entries(path: &Path) -> Result<Vec<PathBuf>> {
    path.read_dir()
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("reading {}", path.display()))
}

fn read_marker(marker: &Path) -> Result<Option<(u16, String)>> {
    let text = match fs::read_to_string(marker) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", marker.display())),
    };
    let parsed: Option<(u16, String)> = serde_json::from_str(&text).ok().and_then(|value: Value| {
        let brokers = value.get("brokers")?.as_u64()?;
        let cluster_id = value.get("kafka_cluster_id")?.as_str()?;
        Some((u16::try_from(brokers).ok()?, cluster_id.to_owned()))
    });
    parsed.map(Some).with_context(|| format!("{} is damaged; start empty with --fresh", marker.display()))
}

fn replace(path: &Path, text: &str) -> Result<()> {
    replace_with(path, text, 0o644)
}

fn replace_with(path: &Path, text: &str, mode: u32) -> Result<()> {
    let temporary = path.with_extension("new");
    let written = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary);
    written
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("writing {}", path.display()))
}

/// Kafka's cluster ids are 16 bytes in unpadded base64; hex digits followed by `A` are that, too.
fn new_cluster_id() -> Result<String> {
    let source = "/proc/sys/kernel/random/uuid";
    let uuid = fs::read_to_string(source).with_context(|| format!("reading {source}"))?;
    let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).take(21).collect();
    Ok(format!("{digits}A"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let name = format!("millrace-data-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn refusal(dir: &Path, fresh: bool, brokers: Option<u16>) -> String {
        match DataDir::open(dir, fresh, brokers) {
            Ok(_) => panic!("{} was accepted", dir.display()),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn a_folder_of_someone_else_is_refused_and_left_alone() {
        let dir = scratch("foreign");
        fs::write(dir.join("thesis.txt"), "years of work").unwrap();
        for fresh in [false, true] {
            assert!(refusal(&dir, fresh, None).contains("neither empty nor"));
        }
        assert!(dir.join("thesis.txt").exists());
        assert_eq!(entries(&dir).unwrap().len(), 1, "nothing was added either");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_folder_is_locked_while_open_and_keeps_its_cluster() {
        let dir = scratch("locked");
        let first = DataDir::open(&dir, false, Some(3)).unwrap();
        let own = std::process::id().to_string();
        let error = refusal(&dir, true, None);
        assert!(error.contains("in use") && error.contains(&own), "{error}");
        let cluster = first.kafka_cluster_id.clone();
        assert_eq!(cluster.len(), 22);
        drop(first);

        assert!(refusal(&dir, false, Some(1)).contains("--fresh"));
        let again = DataDir::open(&dir, false, None).unwrap();
        assert_eq!((again.brokers, &again.kafka_cluster_id), (3, &cluster));
        drop(again);
        let fresh = DataDir::open(&dir, true, Some(1)).unwrap();
        assert_eq!(fresh.brokers, 1);
        assert_ne!(fresh.kafka_cluster_id, cluster);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn secrets_are_made_once_and_never_beside_data_that_needs_others() {
        let dir = scratch("secrets");
        let data = DataDir::open(&dir, false, None).unwrap();
        let made = data.secrets(|_| true).unwrap();
        assert_eq!(made.keys().collect::<Vec<_>>(), ["MILLRACE_HASH_SECRET_FILE", "MILLRACE_MASTER_KEYS_FILE"]);
        fs::create_dir_all(dir.join("kafka/1/some.user.keys-0")).unwrap();
        assert_eq!(data.secrets(|_| true).unwrap(), made, "they are there");
        for (file, variable) in
            [("master-keys", "MILLRACE_MASTER_KEYS_FILE"), ("hash-secret", "MILLRACE_HASH_SECRET_FILE")]
        {
            fs::remove_file(dir.join(file)).unwrap();
            let error = data.secrets(|_| true).unwrap_err().to_string();
            assert!(error.contains(variable) && error.contains("some.user.keys-0"), "{error}");
            assert!(!dir.join(file).exists());
            data.secrets(|other| other != variable).expect("it is somewhere else");
            fs::write(dir.join(file), "put back").unwrap();
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_env_file_can_be_sourced() {
        let dir = scratch("env");
        let data = DataDir::open(&dir, false, None).unwrap();
        let variables = [
            ("MILLRACE_KAFKA_BOOTSTRAP", "127.0.0.1:9092,127.0.0.1:9094"),
            ("MILLRACE_TOPIC_PREFIX", ""),
            ("MILLRACE_STRANGE", "it's $HOME"),
        ];
        let variables = variables.map(|(key, value)| (key.to_owned(), value.to_owned()));
        data.write_env(&variables.clone().into()).unwrap();
        let text = fs::read_to_string(dir.join("env")).unwrap();
        assert!(text.contains("MILLRACE_TOPIC_PREFIX=\n"), "{text}");
        for (key, value) in variables {
            let script = format!("set -au; . ./env; printf %s \"${key}\"");
            let shell = std::process::Command::new("sh").args(["-c", &script]).current_dir(&dir).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&shell.stdout), value);
        }
        data.remove_env().unwrap();
        data.remove_env().unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
}
