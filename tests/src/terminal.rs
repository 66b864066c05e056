//! A terminal of 80 by 24 with a program on it, and somebody who types.

use std::{
    ffi::OsString,
    io::{self, Read as _, Write as _},
    process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::running::Running;

/// For what is waited for to be drawn.
const PATIENCE: Duration = Duration::from_secs(20);

/// Made by script(1), which is there on each Debian.
pub struct Terminal {
    running: Running,
    keys: ChildStdin,
    screen: ChildStdout,
    drawn: String,
}

impl Terminal {
    /// Starts a shell's line on it.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(line: &str, environment: &[(&str, OsString)]) -> io::Result<Self> {
        let line = format!("stty cols 80 rows 24; exec {line}");
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm-256color").env_remove("NO_COLOR");
        script.envs(environment.iter().map(|(name, value)| (name, value)));
        let mut running = Running::start(script.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let missing = || io::Error::other("a pipe that was asked for");
        let keys = running.0.stdin.take().ok_or_else(missing)?;
        let screen = running.0.stdout.take().ok_or_else(missing)?;
        Ok(Self { running, keys, screen, drawn: String::new() })
    }

    /// Types, and forgets what was drawn before.
    ///
    /// # Errors
    ///
    /// If nobody reads.
    pub fn type_in(&mut self, keys: &str) -> io::Result<()> {
        self.drawn.clear();
        self.keys.write_all(keys.as_bytes())
    }

    /// Waits until all of that was drawn since something was typed. What was.
    ///
    /// # Errors
    ///
    /// With what was drawn, if the program ends before, or draws something else for 20 seconds.
    pub fn until(&mut self, words: &[&str]) -> io::Result<&str> {
        self.until_within(words, PATIENCE)
    }

    /// The same, for no longer than that.
    ///
    /// # Errors
    ///
    /// As above.
    pub fn until_within(&mut self, words: &[&str], patience: Duration) -> io::Result<&str> {
        let mut buffer = [0; 4096];
        let deadline = Instant::now() + patience;
        while !words.iter().all(|word| self.drawn.contains(word)) {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            let ready = match poll(&mut [PollFd::new(&self.screen, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => continue,
                ready => ready?,
            };
            let count = if ready == 0 { 0 } else { self.screen.read(&mut buffer)? };
            if count == 0 {
                return Err(io::Error::other(format!("not {words:?}, but {:?}", self.drawn)));
            }
            self.drawn.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        Ok(&self.drawn)
    }

    /// Waits until the program ends by itself.
    ///
    /// # Errors
    ///
    /// If that is not known.
    pub fn wait(self) -> io::Result<ExitStatus> {
        self.running.wait()
    }
}
