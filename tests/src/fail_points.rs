//! The fail points of one command-service: instants at which it is killed, stopped, or one of its threads stalled.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{Deployment, Stack, eventually, services::Service};

/// A folder of fail points, for one service.
#[derive(Debug)]
pub struct FailPoints(PathBuf);

/// What happens at a fail point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL.
    Kill,
    /// SIGSTOP: all threads.
    Stop,
    /// The thread that comes by waits until it is released; the others go on.
    Stall,
}

impl FailPoints {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = Stack::shared().dir.join(format!("fail-points-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&folder).expect("the scratch folder is writable");
        Self(folder)
    }

    /// Sets what happens to the next thread that comes to the point.
    pub fn arm(&self, point: &str, action: Action) {
        let text = match action {
            Action::Kill => "kill",
            Action::Stop => "stop",
            Action::Stall => "stall",
        };
        // A thread that comes by must not find half a file.
        let unfinished = self.0.join(format!("{point}.unfinished"));
        fs::write(&unfinished, text).expect("the scratch folder is writable");
        fs::rename(unfinished, self.0.join(point)).expect("the scratch folder is writable");
    }

    /// Waits until a thread has come to the point since it was armed.
    #[track_caller]
    pub fn wait_reached(&self, point: &str) {
        eventually(&format!("thread at {point}"), || match self.0.join(point).exists() {
            true => Err("none came by".to_owned()),
            false => Ok(()),
        });
    }

    /// Lets all go on that stall at the point, once there is one.
    #[track_caller]
    pub fn release(&self, point: &str) {
        self.wait_reached(point);
        fs::remove_file(self.0.join(format!("{point}.reached"))).expect("a thread has come to the point");
    }
}

impl Deployment {
    /// A command-service with fail points, started and ready.
    pub fn command_service_with_fail_points(&self, instance: &str) -> (Service, FailPoints) {
        let points = FailPoints::new();
        let folder = points.0.to_str().expect("the path is text");
        let service = self.clone().with("MILLRACE_FAIL_POINTS", folder).command_service(instance);
        (service, points)
    }
}
