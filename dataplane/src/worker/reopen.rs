//! Interfaces that change under a running worker: its sockets are opened anew.

use std::{io, mem, time::Duration};

use super::pipeline::Pipeline;
use crate::{
    forward::{snapshot::Snapshot, spec::PortSpec},
    io::{
        PortConfig,
        cbpf::Instruction,
        control::Control,
        engine::{Engine, EngineError, EngineFactory},
    },
};

/// Before an interface that could not be opened is tried again.
const REOPEN_NS: u64 = 1_000_000_000;
/// Between two looks at the control frames under load.
const CONTROL_EVERY_NS: u64 = 100_000;
/// Before a worker looks whether it is its turn to open its sockets.
const TURN_NS: u64 = 1_000_000;

/// Opening the sockets anew costs frames. A kernel that has dropped but a frame that it cannot describe looks for a moment
/// like one that drops all of them: so the cure is taken less and less often, until it was not needed for a while.
#[derive(Debug, Default)]
struct Cure {
    last_ns: Option<u64>,
    pause_ns: u64,
}

impl Cure {
    const FIRST_PAUSE_NS: u64 = 1_000_000_000;
    const LONGEST_PAUSE_NS: u64 = 60_000_000_000;

    /// Whether it is taken now.
    fn is_due(&mut self, now_ns: u64) -> bool {
        let since = self.last_ns.map(|last_ns| now_ns.saturating_sub(last_ns));
        if since.is_some_and(|since| since < self.pause_ns) {
            return false;
        }
        let is_rare = since.is_none_or(|since| since > 2 * Self::LONGEST_PAUSE_NS);
        self.pause_ns = if is_rare { Self::FIRST_PAUSE_NS } else { (2 * self.pause_ns).min(Self::LONGEST_PAUSE_NS) };
        self.last_ns = Some(now_ns);
        true
    }
}

/// The engine of a worker, which follows its interfaces.
pub(super) struct Reopening {
    pub(super) engine: Box<dyn Engine<Pipeline>>,
    /// In the worker that speaks for the node.
    control: Option<Control>,
    /// When to look at it next.
    control_due_ns: u64,
    /// Makes another one.
    factory: EngineFactory,
    /// What this one was made for.
    ports: Vec<PortConfig>,
    retry_at_ns: u64,
    is_waiting: bool,
    /// The sockets give no frames any more.
    is_stuck: bool,
    cure: Cure,
    /// By former engines, and not told yet.
    lost_before: u64,
}

impl Reopening {
    /// An engine, and what it was made of.
    pub(super) fn new(
        engine: Box<dyn Engine<Pipeline>>,
        control: Option<Control>,
        factory: EngineFactory,
        ports: Vec<PortConfig>,
    ) -> Self {
        Self {
            engine,
            control,
            control_due_ns: 0,
            factory,
            ports,
            retry_at_ns: 0,
            is_waiting: false,
            is_stuck: false,
            cure: Cure::default(),
            lost_before: 0,
        }
    }

    /// Serves control frames, before all data; the look costs a system call, and is not made with every batch.
    pub(super) fn serve_control(&mut self, pipeline: &mut Pipeline, now_ns: u64) -> io::Result<()> {
        if let Some(control) = self.control.as_mut().filter(|_| now_ns >= self.control_due_ns) {
            control.drain(&mut *self.engine, pipeline)?;
            self.control_due_ns = now_ns + CONTROL_EVERY_NS;
        }
        Ok(())
    }

    /// Control frames that were lost since the last look.
    pub(super) fn control_lost(&self) -> u64 {
        self.control.as_ref().map_or(0, Control::lost)
    }

    /// For how long a worker may sleep.
    pub(super) fn patience(&self) -> Duration {
        if self.is_waiting { Duration::from_nanos(TURN_NS) } else { Duration::MAX }
    }

    /// What the engine has lost since the last look. One that is stuck is replaced with the next [`Self::follow`].
    pub(super) fn lost(&mut self, now_ns: u64) -> u64 {
        let lost = self.engine.lost();
        if lost.is_stuck && !self.is_stuck && self.cure.is_due(now_ns) {
            tracing::warn!("the kernel drops all frames though the ring has room: the sockets are opened anew");
            self.is_stuck = true;
            self.factory.share.ask_anew();
        }
        lost.frames + mem::take(&mut self.lost_before)
    }

    /// Opens the sockets anew where an interface is another one than before: it was gone, or its frames have
    /// another size; or where it gives no frames any more. Frames that come meanwhile are lost, or, if several workers
    /// change over one after the other, may be forwarded twice.
    pub(super) fn follow(&mut self, snapshot: &Snapshot, filter: &[Instruction], now_ns: u64) {
        let wanted = || self.ports.iter().zip(&snapshot.ports);
        // The sockets of one that is gone are as good as others.
        let same = |(open, port): (&PortConfig, &PortSpec)| {
            port.is_gone() || (open.ifindex, open.mtu) == (port.ifindex, port.mtu)
        };
        if wanted().all(same) && !self.is_stuck && !self.factory.share.is_outdated() {
            self.is_waiting = false;
            return;
        }
        if now_ns < self.retry_at_ns {
            return;
        }
        self.retry_at_ns = now_ns + REOPEN_NS;
        self.is_waiting = false;
        let ports: Vec<PortConfig> =
            wanted().map(|(open, port)| PortConfig { ifindex: port.ifindex, mtu: port.mtu, ..open.clone() }).collect();
        // First what may fail without a trace: an engine's start has the other workers open theirs anew.
        let opened = self.factory.open_control(&ports);
        match opened.and_then(|control| Ok((self.factory.start(&ports, filter)?, control))) {
            Ok((engine, control)) => {
                tracing::info!("the sockets are open again");
                self.lost_before += self.engine.lost().frames;
                (self.engine, self.control, self.ports, self.is_stuck) = (engine, control, ports, false);
                self.retry_at_ns = 0;
            }
            Err(EngineError::NotInTurn) => {
                self.retry_at_ns = now_ns + TURN_NS;
                self.is_waiting = true;
            }
            Err(error) => tracing::warn!(%error, "the sockets cannot be opened: tried again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cure_is_taken_at_once_and_then_less_and_less_often() {
        const SECOND_NS: u64 = 1_000_000_000;
        let mut cure = Cure::default();
        let taken: Vec<u64> = (0..200).filter(|second| cure.is_due(second * SECOND_NS)).collect();
        assert_eq!(taken, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
        let later = 183 + 121;
        assert!(cure.is_due(later * SECOND_NS) && cure.is_due((later + 1) * SECOND_NS), "as if for the first time");
    }
}
