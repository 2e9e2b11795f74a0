//! What the images are made of.

use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::Value;

use crate::{compose::Compose, dockerfile::Dockerfile, repository, text};

/// What cargo says about the workspace.
fn workspace() -> Vec<Value> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version=1", "--manifest-path"]);
    let output = cargo.arg(repository("Cargo.toml")).output().expect("cargo can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo speaks JSON");
    metadata["packages"].as_array().expect("a workspace has packages").clone()
}

/// The names of the services' binaries.
fn services(packages: &[Value]) -> BTreeSet<String> {
    let services = packages.iter().filter(|package| package["name"].as_str().is_some_and(|n| n.ends_with("-service")));
    let targets = services.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let binaries = targets.filter(|target| target["kind"][0] == "bin");
    binaries.filter_map(|target| target["name"].as_str().map(str::to_owned)).collect()
}

/// What is copied from the repository.
fn sources(dockerfile: &Dockerfile) -> BTreeSet<&str> {
    let copies = dockerfile.stages.iter().flat_map(|stage| stage.all("COPY"));
    let copies = copies.filter(|arguments| !arguments.starts_with("--from=")).map(str::split_whitespace);
    copies.flat_map(|words| words.rev().skip(1)).collect()
}

#[test]
fn every_source_is_there_and_sent_to_the_builder() {
    let ignore = text(".dockerignore");
    let mut lines = ignore.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(lines.next(), Some("*"), ".dockerignore shuts everything out first");
    let sent: BTreeSet<_> = lines.map(|line| line.strip_prefix('!').expect("and then lets some in")).collect();

    let dockerfile = Dockerfile::read();
    assert_eq!(sent, sources(&dockerfile), ".dockerignore lets in what is copied");
    for source in sent {
        assert!(repository(source).exists(), "{source} is copied and does not exist");
    }
}

#[test]
fn the_build_sees_every_member_of_the_workspace() {
    let dockerfile = Dockerfile::read();
    let sources = sources(&dockerfile);
    for file in ["Cargo.toml", "Cargo.lock"] {
        assert!(sources.contains(file), "{file} is not copied");
    }
    for package in workspace() {
        let manifest = Path::new(package["manifest_path"].as_str().expect("a package has a manifest"));
        let folder = manifest.parent().expect("a manifest lies in a folder");
        let copied = sources.iter().any(|source| folder.starts_with(repository(source)));
        assert!(copied, "{} is not copied, so cargo can't read the workspace", folder.display());
    }
}

#[test]
fn rust_is_as_new_as_the_workspace_asks() {
    let numbers = |version: &str| version.split('.').map(|n| n.parse().expect("a number")).collect::<Vec<u32>>();
    let image = numbers(&Dockerfile::read().arguments["RUST"]);
    for package in workspace() {
        let asked = numbers(package["rust_version"].as_str().expect("packages say which Rust they need"));
        assert!(image >= asked, "the image has Rust {image:?}, {} needs {asked:?}", package["name"]);
    }
}

#[test]
fn there_is_an_image_for_every_service() {
    let services = services(&workspace());
    assert_eq!(services.len(), 3, "{services:?}");
    let dockerfile = Dockerfile::read();
    let images: BTreeSet<_> = dockerfile.images().map(|stage| stage.name.clone()).collect();
    assert_eq!(images, services);
    let compose = Compose::open();
    let started: BTreeSet<_> = compose.built().map(|(name, ..)| name.to_owned()).collect();
    assert_eq!(started, services);
    for (name, _, build) in compose.built() {
        assert_eq!(build.target, name);
        let context = repository("deploy").join(&build.context);
        assert_eq!(context.canonicalize().expect("the context exists"), repository("").canonicalize().expect("so"));
        assert!(context.join(&build.dockerfile).is_file(), "{}", build.dockerfile);
    }

    let build = dockerfile.stage("build").all("RUN").join("\n");
    for name in services {
        assert!(build.contains(&format!("-p {name}")), "{name} is not built");
        assert!(build.contains(&format!("target/release/{name}")), "{name} is not kept");
        let stage = dockerfile.stage(&name);
        assert_eq!(stage.all("COPY"), [format!("--from=build /out/{name} /usr/local/bin/")]);
        assert_eq!(stage.words("ENTRYPOINT"), [name]);
    }
}

#[test]
fn images_run_as_nobody_special() {
    let dockerfile = Dockerfile::read();
    for stage in dockerfile.images() {
        let user = *dockerfile.all(&stage.name, "USER").last().expect("an image names its user");
        let (user, group) = user.split_once(':').expect("user and group");
        for id in [user, group] {
            assert_ne!(id.parse::<u32>().expect("a number, which Kubernetes can judge"), 0, "{}", stage.name);
        }
    }
}

#[test]
fn images_are_pinned() {
    let dockerfile = Dockerfile::read();
    let stages: Vec<_> = dockerfile.stages.iter().map(|stage| stage.name.as_str()).collect();
    let bases = dockerfile.stages.iter().map(|stage| stage.from.as_str()).filter(|from| !stages.contains(from));
    let compose = Compose::open();
    let started = compose.services.values().filter_map(|service| service.image.as_deref());
    for image in bases.chain(started) {
        let tag = image.rsplit_once(':').map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| tag != "latest" && !tag.contains('$')), "{image} has no fixed tag");
    }
    let pom = text("deploy/local/pom.xml");
    for part in ["kafka", "registry"] {
        let image = compose.service(part).image.as_deref().expect("an image");
        let version = image.rsplit_once(':').expect("a tag").1;
        assert!(pom.contains(&format!("<version>{version}</version>")), "deploy/local runs another one than {image}");
    }
}
