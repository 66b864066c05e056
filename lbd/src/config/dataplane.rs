//! `[dataplane]`.

use std::time::Duration;

use lb_dataplane::{
    Accelerate, Config,
    forward::{spec::MAX_PORTS, steering::MAX_WORKERS},
    io::EngineKind,
};
use lb_raft_store::table::Role;
use rustix::thread::CpuSet;

use super::reader::Section;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dataplane {
    pub(crate) interfaces: Vec<String>,
    /// `None` is "auto".
    pub(crate) engine: Option<EngineKind>,
    /// Threads that share the frames.
    pub(crate) workers: usize,
    /// Whether these go before all others on their cores.
    pub(crate) realtime: bool,
    /// How long after a frame these look for the next one without sleeping.
    pub(crate) busy_poll: Duration,
    /// On which processors these run, in turn; on any if there are none.
    pub(crate) cpus: Vec<usize>,
    /// Whether an XDP program forwards known flows.
    pub(crate) accelerator: Accelerate,
    /// Slots for flows, over all workers.
    pub(crate) flows: usize,
}

/// Slots for flows take 32 bytes each: from 2 MiB to 8 GiB.
const MIN_FLOWS: usize = 1 << 16;
const MAX_FLOWS: usize = 1 << 28;
/// A set of processors has room for no more (CPU_SETSIZE).
const MAX_CPU: usize = CpuSet::MAX_CPU - 1;
/// One of that long is as good as never sleeping where anything comes.
const MAX_BUSY_POLL_US: usize = 10_000;

/// `None` on a witness. `is_given`: the file has the section.
pub(super) fn read(dataplane: &mut Section, is_given: bool, role: Role) -> Option<Dataplane> {
    let interfaces = dataplane.list("interfaces", interface_name);
    let engine = dataplane.optional("engine", parse_engine).flatten();
    let workers = dataplane.integer("workers", 1..=MAX_WORKERS).unwrap_or(1);
    let realtime = dataplane.flag("realtime", false);
    let busy_poll = dataplane.integer("busy_poll_us", 0..=MAX_BUSY_POLL_US).unwrap_or(0);
    let busy_poll = Duration::from_micros(busy_poll.try_into().unwrap_or(0));
    let cpus = dataplane.integers("cpus", 0..=MAX_CPU);
    let accelerator = dataplane.optional("accelerator", parse_accelerator).unwrap_or_default();
    let flows = dataplane.integer("flows", MIN_FLOWS..=MAX_FLOWS).unwrap_or(Config::DEFAULT_FLOW_CAPACITY);
    match role {
        Role::Lb if interfaces.is_empty() && !dataplane.has_fault("interfaces") => {
            dataplane.fault(
                "interfaces",
                "is required for role \"lb\": the interfaces on the segments of VIPs and backends, such as [\"eth0\"]",
            );
        }
        Role::Witness if is_given => {
            dataplane.fault("interfaces", "a witness has no [dataplane]: it votes only");
        }
        _ => {}
    }
    for (at, name) in interfaces.iter().enumerate() {
        if interfaces[..at].contains(name) {
            dataplane
                .fault("interfaces", &format!("{name:?} is listed twice: each of its frames would be forwarded twice"));
        }
    }
    if cpus.iter().enumerate().any(|(at, cpu)| cpus[..at].contains(cpu)) {
        dataplane.fault("cpus", "names a processor twice: two workers would share it");
    }
    if interfaces.len() > MAX_PORTS {
        dataplane.fault("interfaces", "at most 64 are supported");
    }
    (role == Role::Lb).then_some(Dataplane {
        interfaces,
        engine,
        workers,
        realtime,
        busy_poll,
        cpus,
        accelerator,
        flows,
    })
}

fn parse_engine(text: &str) -> Result<Option<EngineKind>, String> {
    let kind = EngineKind::by_name(text);
    if kind.is_none() && text != "auto" {
        let names: Vec<String> = EngineKind::ALL.iter().map(|kind| format!("{:?}", kind.name())).collect();
        return Err(format!("{text:?} is none of \"auto\", {}", names.join(", ")));
    }
    Ok(kind)
}

fn parse_accelerator(text: &str) -> Result<Accelerate, String> {
    match text {
        "off" => Ok(Accelerate::Off),
        "auto" => Ok(Accelerate::Auto),
        "xdp" => Ok(Accelerate::Xdp),
        _ => Err(format!("{text:?} is none of \"off\", \"auto\", \"xdp\"")),
    }
}

fn interface_name(text: &str) -> Result<String, String> {
    // IFNAMSIZ is 16 with the zero.
    if (1..=15).contains(&text.len()) && !text.contains(['/', ' ']) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not the name of an interface"))
    }
}
