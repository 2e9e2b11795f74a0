//! No container engine runs where Millrace is built, so these tests hold `deploy/Dockerfile` and `deploy/compose.yaml`
//! against what can be had without one: the services, Kafka and Redis themselves, and Compose's own check.
//!
//! [`build`]: what the images are made of; [`services`]: how Millrace is started; [`parts`]: what it is started with.

mod build;
mod compose;
mod dockerfile;
mod parts;
mod services;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A path of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of the repository").join(path)
}

/// The text of a file of the repository.
fn text(path: &str) -> String {
    let path = repository(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An empty folder for a test.
fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("containers-{name}"));
    if dir.exists() {
        fs::remove_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    }
    fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    dir
}
