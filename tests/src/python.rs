//! Programs of another make: Python with confluent-kafka, fastavro and schemathesis.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
    sync::OnceLock,
    time::Duration,
};

use crate::process::{command, run};

/// Pinned, so that the tests see the same client everywhere.
const PACKAGES: [&str; 3] = ["confluent-kafka==2.16.1", "fastavro==1.13.1", "schemathesis==4.32.5"];

/// Runs one of `tests/examples` with the given variables.
#[track_caller]
pub fn example(name: &str, args: &[&str], env: &BTreeMap<String, String>) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let mut python = command(python());
    python.arg(script).args(args).envs(env);
    run(python, Duration::from_secs(120))
}

/// Runs a program that one of the packages brings.
#[track_caller]
pub fn program(name: &str, args: &[&str], limit: Duration) -> Output {
    let mut program = command(python().with_file_name(name));
    program.args(args);
    run(program, limit)
}

/// A Python that has the packages, made once and kept in the cache folder.
fn python() -> PathBuf {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    MADE.get_or_init(make).clone().unwrap_or_else(|reason| panic!("{reason}"))
}

fn make() -> Result<PathBuf, String> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let folder = base.ok_or("neither HOME nor XDG_CACHE_HOME is set")?.join("millrace");
    let venv = folder.join("venv-tests");
    let (python, marker) = (venv.join("bin/python"), venv.join("packages"));
    let wanted = PACKAGES.join(" ");
    if fs::read_to_string(&marker).is_ok_and(|text| text == wanted) && python.exists() {
        return Ok(python);
    }
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut venv_maker = command("python3");
    venv_maker.args(["-m", "venv", "--clear"]).arg(&venv);
    finish("making a Python environment (python3 -m venv)", &run(venv_maker, Duration::from_secs(120)))?;
    let mut pip = command(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES);
    finish("installing confluent-kafka, fastavro and schemathesis with pip", &run(pip, Duration::from_secs(300)))?;
    fs::write(&marker, &wanted).map_err(|error| format!("{}: {error}", marker.display()))?;
    Ok(python)
}

fn finish(what: &str, output: &Output) -> Result<(), String> {
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{what} failed with {}; this test needs it, once, and a connection to a package index:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}
