//! A clock that jumps forward and back under a running command-service.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use millrace_tests::{
    Deployment, Stack,
    brokers::Brokers,
    process::{command, run},
};

use crate::{Busy, note};

/// `clock.c`, compiled.
fn library() -> PathBuf {
    let library = Stack::shared().dir.join("clock.so");
    // deploy/local/install installs gcc.
    let mut compiler = command("cc");
    compiler.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library);
    compiler.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/clock.c"));
    let output = run(compiler, Duration::from_secs(60));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}

/// Sets a clock so many hours off.
fn set(clock: &Path, hours: i64) {
    note(&format!("{hours:+} h"));
    // In place, since it is mapped into the memory of the service.
    let mut options = File::options();
    let file = options.create(true).write(true).truncate(false).open(clock);
    let seconds = (hours * 3600).to_ne_bytes();
    file.and_then(|file| file.write_all_at(&seconds, 0)).expect("the scratch folder is writable");
}

#[test]
fn g01_g03_g04_events_never_run_backwards_when_the_clock_does() {
    let _brokers = Brokers::share();
    let deployment = Deployment::new();
    let clock = Stack::shared().dir.join(format!("{}-clock", deployment.prefix));
    set(&clock, 0);
    let faked = deployment
        .clone()
        .with("LD_PRELOAD", library().display().to_string())
        .with("CLOCK_OFFSET", clock.display().to_string());
    let busy = Busy::start(deployment.clone(), vec![faked.command_service("one")]);
    // Less in all than the window in which answers are remembered, which is counted by the same clock.
    for hours in [1, -2, 20, -3, 0] {
        set(&clock, hours);
        busy.load.wait_for_more(50);
    }
    busy.check();
    // The clock did jump, as the events show.
    let times: Vec<String> = deployment.all_events().into_iter().map(|event| event.time).collect();
    let (first, last) = (times.iter().min().expect("there are events"), times.iter().max().expect("there are events"));
    assert!(first[..13] < last[..13], "events from {first} to {last}");
}
