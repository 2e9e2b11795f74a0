//! Starting programs so that none outlives this process, not even after `kill -9`.
//!
//! A child is started by way of `millrace-local exec`, which asks the kernel for a SIGKILL at its
//! parent's death and then becomes the program. (Doing so between fork and exec would take unsafe
//! code.) The kernel means the *thread* that started the child, so only the main thread may.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::{Pid, getppid};

/// What to run, where, and where its output goes.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    pub args: Vec<OsString>,
    pub env: Vec<(String, String)>,
    pub dir: PathBuf,
    pub log: PathBuf,
}

impl Program {
    /// Starts it in a process group of its own. Call from the main thread only.
    pub fn start(&self) -> Result<Child> {
        let log = self.open_log()?;
        let errors = log.try_clone().context("doubling a log's handle")?;
        // Not the path of this executable: a build may have replaced it meanwhile.
        Command::new("/proc/self/exe")
            .arg("exec")
            .arg(std::process::id().to_string())
            .arg("--")
            .arg(&self.path)
            .args(&self.args)
            .envs(self.env.iter().cloned())
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", self.path.display()))
    }

    /// Runs a short-lived program to its end, and fails unless it ends well within `limit`.
    pub fn complete(&self, limit: Duration) -> Result<()> {
        wait_for(self.start()?, self, limit)
    }

    fn open_log(&self) -> Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("opening the log {}", self.log.display()))
    }
}

/// Waits for a short-lived program.
pub fn wait_for(mut child: Child, program: &Program, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for a program")? {
            break status;
        }
        if Instant::now() > deadline {
            signal(&child, Signal::SIGKILL);
            child.wait().context("waiting for a program")?;
            bail!("{} took over {limit:?}", program.path.display());
        }
        sleep(Duration::from_millis(20));
    };
    ensure!(
        status.success(),
        "{} ended with {}:\n{}",
        program.path.display(),
        describe(status),
        crate::logs::tail(&program.log, 20)
    );
    Ok(())
}

/// Signals the child and whatever it started itself. One that is gone already is no error.
pub fn signal(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}

/// `status 2` or `signal 9`, for messages.
pub fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => Signal::try_from(signal)
            .map_or_else(|_| format!("signal {signal}"), |name| format!("signal {signal} ({name})")),
        (None, None) => status.to_string(),
    }
}

/// The program's full path, looked up as a shell would; the error names the remedy.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|candidate| is_executable(candidate))
        .with_context(|| format!("{name} is not installed; deploy/local/install installs what is missing"))
}

/// Whether `path` is a file that may be executed.
pub fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[derive(clap::Args)]
pub struct ExecOptions {
    /// Process whose end is to end the program
    parent: i32,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the given program, tied to the life of its parent. Returns only on failure.
pub fn exec(options: &ExecOptions) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("asking for a signal at the parent's end")?;
    // The parent may have ended before the kernel was asked.
    ensure!(getppid() == Pid::from_raw(options.parent), "the process that started this one is gone");
    // `run` blocks the signals that it waits for; its children must not inherit that.
    SigSet::empty().thread_set_mask().context("unblocking signals")?;
    let (program, args) = options.command.split_first().context("no program given")?;
    let error = Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("starting {}", Path::new(program).display()))
}
