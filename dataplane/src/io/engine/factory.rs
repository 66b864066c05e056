//! Makes engines: the one place that knows all of them.

use super::{
    super::{
        cbpf::Instruction,
        control::Control,
        fanout::{NotInTurn, Share},
        sys::socket::PortConfig,
        wake::Wake,
    },
    Engine, EngineError, EngineKind, FrameJudge,
    mmsg::MmsgEngine,
    multishot::MultishotEngine,
    ring::RingEngine,
};

/// Makes engines of one kind for one worker.
pub(crate) struct EngineFactory {
    /// How they move frames.
    pub(crate) kind: EngineKind,
    /// The worker's part of the frames.
    pub(crate) share: Share,
    /// Ends their waiting.
    pub(crate) wake: Wake,
}

impl EngineFactory {
    /// Opens the sockets and starts an engine on the calling thread, which must be the one that uses it.
    pub(crate) fn start<J: FrameJudge>(
        &self,
        ports: &[PortConfig],
        filter: &[Instruction],
    ) -> Result<Box<dyn Engine<J>>, EngineError> {
        let wake = &self.wake;
        let mut opening = self.share.open(ports, filter).map_err(|NotInTurn| EngineError::NotInTurn)?;
        let engine: Box<dyn Engine<J>> = match self.kind {
            EngineKind::Ring => Box::new(RingEngine::start(ports, wake, &mut opening)?),
            EngineKind::Multishot => Box::new(MultishotEngine::start(ports, wake, &mut opening)?),
            EngineKind::Mmsg => Box::new(MmsgEngine::start(ports, wake, &mut opening)?),
        };
        opening.done();
        Ok(engine)
    }

    /// Opens the sockets for control frames, if they are this worker's.
    pub(crate) fn open_control(&self, ports: &[PortConfig]) -> Result<Option<Control>, EngineError> {
        Ok(self.share.is_speaker().then(|| Control::open(ports, &self.wake)).transpose()?)
    }
}
