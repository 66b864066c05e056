//! ARP and neighbour discovery have sockets of their own, so that a flood of data does not drown them: in one queue with it,
//! a node at three times its capacity loses seven of ten, peers count it as cut off from its segment, its VIPs go
//! unanswered, and the backends' MAC addresses are forgotten. They are served first, so many a turn, and answered at once;
//! the data's filter leaves them out.
//!
//! One worker has them: the one that speaks for the node.

use std::io;

use super::{
    cbpf::filter,
    departure::{Outlet, Parting, departure},
    engine::{CONTROL_LEN, Engine, FrameJudge, TRUNCATED, is_vlan_tagged},
    sys::{
        BATCH,
        socket::{PacketSocket, PortConfig, SocketError},
    },
    wake::Wake,
};
use crate::packet::{FrameMeta, OwnedFrame, VnetHeader};

/// A few thousand frames.
const RECEIVE_BUFFER: libc::c_int = 2 << 20;
/// Longer than any such frame, and than what a link takes as a whole.
const MAX_LEN: usize = 9216;

/// The sockets for control frames, one for each interface.
pub(crate) struct Control {
    sockets: Vec<PacketSocket>,
    buffer: Box<[u8]>,
}

impl Control {
    /// Opens them; frames in them end the waiting.
    pub(crate) fn open(ports: &[PortConfig], wake: &Wake) -> Result<Self, SocketError> {
        let open = |port: &PortConfig| {
            let socket = PacketSocket::receiver(port, &filter::control(), RECEIVE_BUFFER)?;
            socket.request_auxdata()?;
            socket.bind_all(port)?;
            wake.include(&socket).map_err(|error| socket.error("waiting for control frames", error))?;
            Ok(socket)
        };
        let sockets = ports.iter().map(open).collect::<Result<_, SocketError>>()?;
        Ok(Self { sockets, buffer: vec![0; VnetHeader::LEN + MAX_LEN].into() })
    }

    /// Judges what has come, and sends the answers.
    pub(crate) fn drain<J: FrameJudge>(&mut self, engine: &mut dyn Engine<J>, judge: &mut J) -> io::Result<()> {
        for port in 0..self.sockets.len() {
            for _ in 0..BATCH {
                let mut control = [0; CONTROL_LEN];
                // Nothing there, or a passing error such as ENETDOWN: the next turn asks again.
                let Ok(received) = self.sockets[port].receive(&mut self.buffer, &mut control) else { break };
                if received.len > self.buffer.len() {
                    judge.count_unseen(TRUNCATED);
                    continue;
                }
                let vlan_tagged = is_vlan_tagged(&control[..received.control_len]);
                let bytes = &mut self.buffer[..received.len];
                let Some((vnet, frame)) = bytes.split_first_chunk_mut() else {
                    judge.count_unseen(TRUNCATED);
                    continue;
                };
                let meta = FrameMeta { vlan_tagged, vnet: VnetHeader(*vnet) };
                let mut peek = J::NOTHING;
                judge.peek(frame, &mut peek);
                let verdict = judge.judge(port, meta, frame, &peek);
                if let Some(departure) = departure(verdict, port, bytes) {
                    let frame = OwnedFrame::from(&bytes[..departure.len]);
                    let by = Outlet::Port(departure.port);
                    // At once: a turn may be long.
                    engine.send(&[Parting { by, frame: &frame, sent: departure.sent }], judge)?;
                }
            }
        }
        Ok(())
    }

    /// Frames that the kernel dropped since the last call.
    pub(crate) fn lost(&self) -> u64 {
        self.sockets.iter().map(PacketSocket::lost).sum()
    }
}
