//! Work beside the forwarders, in processes of their own: with automatic grouping (sched(7)) the scheduler shares a core
//! out between sessions first, so a generator in the forwarder's session would take from the forwarder's share, and a
//! thread that only keeps a core awake would count as much as all of it.

use std::{
    fs, io,
    process::{Child, Stdio},
    sync::atomic::AtomicBool,
};

use lb_dataplane::packet::{Mac, Protocol};
use lb_tests::{
    netns::Namespace,
    sys::{bpf, reference},
};

use crate::chain::{GENERATOR_CPU, KNOWN_FLOWS, Load, pin};

/// The first argument of a helper.
const ARGUMENT: &str = "--helper";

/// What a helper does until it is killed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Task {
    /// Offers load on an interface.
    Generate { ifindex: u32, xdp: bool, load: Load },
    /// Keeps a core from falling asleep: an idle virtual one takes 100 us to wake, which overruns veth's queue.
    KeepAwake { cpu: usize },
}

/// A helper at work; it ends with this.
pub(crate) struct Helper(Child);

impl Helper {
    pub(crate) fn start(namespace: &Namespace, task: &Task) -> io::Result<Self> {
        let mut command = namespace.command(std::env::current_exe()?)?;
        command.arg(ARGUMENT).args(task.to_words()).stdin(Stdio::null());
        command.spawn().map(Self)
    }

    /// Fails if it has ended, which it has told why.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("a helper ended with {status}"),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Does what the arguments of this process say, if it is a helper.
pub(crate) fn run(arguments: &[String]) -> Option<io::Result<()>> {
    let (first, words) = arguments.split_first()?;
    (first == ARGUMENT).then(|| {
        let task = Task::from_words(words).ok_or_else(|| io::Error::other("not a helper's arguments"))?;
        // A session of its own; where that is not allowed, figures are worse, not wrong.
        let _ = rustix::process::setsid();
        match task {
            Task::Generate { ifindex, xdp, load } => generate(ifindex, xdp, &load),
            Task::KeepAwake { cpu } => {
                pin(cpu);
                let _ = fs::write("/proc/self/autogroup", "19");
                reference::become_idle()?;
                loop {
                    std::hint::spin_loop();
                }
            }
        }
    })
}

fn generate(ifindex: u32, xdp: bool, load: &Load) -> io::Result<()> {
    pin(GENERATOR_CPU);
    if !xdp {
        let frames: Vec<Vec<u8>> = (0..load.flows.min(KNOWN_FLOWS)).map(|flow| load.frame(flow)).collect();
        return reference::generate(ifindex, &frames, &AtomicBool::new(false));
    }
    let template = load.frame(0);
    let generator = bpf::Generator::new(ifindex, load.offered, &load.flows(), &template)?;
    // The end of a run takes some 20 ms, in which nothing is sent; a signal ends one at once.
    loop {
        generator.run(&template, u32::MAX)?;
    }
}

impl Task {
    fn to_words(self) -> Vec<String> {
        match self {
            Self::Generate { ifindex, xdp, load } => {
                let Load { size, protocol, flows, vips, destination, offered, .. } = load;
                let mac = u64::from_be_bytes([&[0, 0][..], &destination.0].concat().try_into().unwrap_or_default());
                let is_tcp = u64::from(protocol == Protocol::Tcp);
                let numbers =
                    [ifindex.into(), xdp.into(), is_tcp, size as u64, flows.into(), vips.into(), mac, offered];
                numbers.iter().map(ToString::to_string).collect()
            }
            Self::KeepAwake { cpu } => vec![cpu.to_string()],
        }
    }

    fn from_words(words: &[String]) -> Option<Self> {
        let numbers: Vec<u64> = words.iter().map(|word| word.parse().ok()).collect::<Option<_>>()?;
        match numbers[..] {
            [cpu] => Some(Self::KeepAwake { cpu: cpu as usize }),
            [ifindex, xdp, is_tcp, size, flows, vips, mac, offered] => {
                let [_, _, a, b, c, d, e, f] = mac.to_be_bytes();
                let load = Load {
                    size: size as usize,
                    protocol: if is_tcp == 0 { Protocol::Udp } else { Protocol::Tcp },
                    flows: flows as u32,
                    vips: vips as u32,
                    destination: Mac([a, b, c, d, e, f]),
                    offered,
                    ..Load::default()
                };
                Some(Self::Generate { ifindex: ifindex as u32, xdp: xdp != 0, load })
            }
            _ => None,
        }
    }
}
