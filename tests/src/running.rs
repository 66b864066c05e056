//! A command that runs beside a test, and no longer than it.

use std::{
    io,
    process::{Child, Command, ExitStatus},
};

use rustix::process::Signal;

use crate::sys;

/// It is killed at the test's end, also when that panics.
pub struct Running(pub Child);

impl Running {
    /// Starts it.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        command.spawn().map(Self)
    }

    /// As Ctrl-C does; and waits for its end.
    pub fn interrupt(mut self) -> io::Result<ExitStatus> {
        sys::signal(self.0.id(), Signal::INT)?;
        self.0.wait()
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        self.0.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}
