//! What a forwarder adds to a packet's way when there is hardly any load: a frame at a time, there and back.

use std::{
    io,
    time::{Duration, Instant},
};

use lb_tests::sys;
use socket2::{Domain, Socket, Type};

use crate::{
    chain::{Chain, GENERATOR_CPU, Load, pin},
    forwarders::{Forwarder, Site},
};

const FRAMES: u32 = 3000;
const PAUSE: Duration = Duration::from_micros(100);
/// For a frame to come back.
const PATIENCE: Duration = Duration::from_millis(200);

/// Microseconds from sending a frame until it is back: the median, and what 99 of 100 stay below.
pub(crate) fn round_trip(chain: &Chain, site: &Site, forwarder: Forwarder) -> anyhow::Result<(f64, f64)> {
    let load = match forwarder {
        Forwarder::Bridge => Load { destination: site.backends[0], ..Load::default() },
        _ => Load::default(),
    };
    forwarder.during(site, || {
        chain.generator.enter(|| {
            pin(GENERATOR_CPU);
            let socket = Socket::new_raw(Domain::PACKET, Type::RAW, None)?;
            socket.bind(&sys::link_address(chain.generator_ifindex, libc::ETH_P_ALL as u16))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let mut times = Vec::new();
            let mut lost = 0;
            for number in 0..FRAMES {
                let frame = load.frame(number % 64);
                let begun = Instant::now();
                socket.send(&frame)?;
                match returned(&socket, &frame)? {
                    true => times.push(begun.elapsed().as_secs_f64() * 1e6),
                    false => lost += 1,
                }
                std::thread::sleep(PAUSE);
            }
            anyhow::ensure!(lost * 100 < FRAMES, "{forwarder}: {lost} of {FRAMES} frames did not come back");
            times.sort_by(f64::total_cmp);
            Ok((times[times.len() / 2], times[times.len() * 99 / 100]))
        })
    })
}

/// Waits for the frame with this payload and other addresses. Whether it came.
fn returned(socket: &Socket, sent: &[u8]) -> io::Result<bool> {
    let mut buffer = [0; 2048];
    loop {
        match sys::receive(socket, &mut buffer) {
            Ok((len, false)) if buffer[..len].get(12..42) == sent.get(12..42) => return Ok(true),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
}
