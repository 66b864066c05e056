//! `lbctl capture`: what a node receives, sends and drops, as a pcapng file.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io::{self, IsTerminal as _, Write},
    path::Path,
    time::Duration,
};

use lb_proto::v1;
use pcap_file::{
    DataLink,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};

use crate::{
    cli::Capture,
    exit::{Failure, complain},
    session::Session,
};

/// Nanoseconds: ten to the power of minus so many (draft-ietf-opsawg-pcapng, if_tsresol).
const NANOSECONDS: u8 = 9;
/// The name of what has none.
const LOCAL: &str = "local";

pub(super) async fn run(session: &Session, what: Capture) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::of_file(&what.write, error);
    let to_standard_output = what.write == Path::new("-");
    if to_standard_output && io::stdout().is_terminal() {
        return Err(Failure::Usage(
            "a capture is not for a terminal: -w FILE, or pipe it: lbctl capture -w - | tshark -r -".into(),
        ));
    }
    let request = v1::CaptureRequest {
        vip: what.vip.map(|vip| vip.to_string()).unwrap_or_default(),
        only_drops: what.drops,
        snap_len: what.snaplen,
    };
    let mut client = session.node();
    let mut frames = session.read(request, |request| async move { client.capture(request).await }).await?;
    let sink: Box<dyn Write> = if to_standard_output {
        Box::new(io::stdout())
    } else {
        Box::new(File::create(&what.write).map_err(|e| failed(&e))?)
    };
    let mut file = Pcapng::begin(sink).map_err(|error| failed(&error))?;
    let (mut written, mut missed) = (0, 0);
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    complain("capturing; interrupt it to end");
    while what.count.is_none_or(|count| written < count) {
        let message = tokio::select! {
            message = frames.message() => message.map_err(|status| Failure::from_status(&status, None))?,
            _ = &mut interrupted => break,
        };
        let Some(v1::CaptureResponse { frames, missed: so_far }) = message else { break };
        missed = so_far;
        let left = what.count.map_or(usize::MAX, |count| usize::try_from(count - written).unwrap_or(usize::MAX));
        for frame in frames.iter().take(left) {
            file.write(frame).map_err(|error| failed(&error))?;
            written += 1;
        }
        // Whoever reads along sees it at once, and an interrupted file is whole.
        file.flush().map_err(|error| failed(&error))?;
    }
    let lost = if missed > 0 {
        format!("; {missed} more were not captured: too many, or read too slowly")
    } else {
        String::new()
    };
    complain(&format!("{written} frames{lost}"));
    Ok(())
}

/// A file that is written frame by frame.
struct Pcapng {
    writer: PcapNgWriter<Box<dyn Write>>,
    interfaces: HashMap<String, u32>,
}

impl Pcapng {
    fn begin(sink: Box<dyn Write>) -> Result<Self, pcap_file::PcapError> {
        Ok(Self { writer: PcapNgWriter::new(sink)?, interfaces: HashMap::new() })
    }

    /// Its number; it is described before its first frame.
    fn interface(&mut self, name: &str) -> Result<u32, pcap_file::PcapError> {
        if let Some(number) = self.interfaces.get(name) {
            return Ok(*number);
        }
        let number = u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX);
        self.writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: 0,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(name.to_owned())),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        })?;
        self.interfaces.insert(name.to_owned(), number);
        Ok(number)
    }

    fn write(&mut self, frame: &v1::CapturedFrame) -> Result<(), pcap_file::PcapError> {
        let name = if frame.interface.is_empty() { LOCAL } else { &frame.interface };
        let interface_id = self.interface(name)?;
        // The direction is in the two lowest bits.
        let direction = if frame.outgoing { 2 } else { 1 };
        self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(frame.time_ns),
            original_len: frame.length,
            data: Cow::Borrowed(&frame.data),
            options: vec![
                EnhancedPacketOption::Comment(Cow::Borrowed(&frame.comment)),
                EnhancedPacketOption::Flags(direction),
            ],
        })?;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.get_mut().flush()
    }
}
