//! On which interfaces the program is, in which mode, and why it is not on the others.

use std::io;

use super::{
    choice::Accelerate,
    features,
    kept::{KeptLink, OfBefore},
    layout::PORTS,
};
use crate::io::{XdpMode, driver, sys::bpf::Program, takes_tags_off};

/// Interfaces of these drivers lead to machines that leave checksums to hardware which there is not: native XDP would have
/// them made in software, and turns the sender's segmentation off.
const VIRTUAL: [&str; 3] = ["veth", "virtio_net", "tun"];

/// Why an interface is in the mode that it is in.
const AS_BEFORE: &str = "the process before has found the other one not to suit it";

/// How the frames of an interface are accelerated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceleration {
    /// The interface.
    pub interface: String,
    /// The mode; `None` if they are not.
    pub mode: Option<XdpMode>,
    /// Why they are not, or not in the better mode.
    pub reason: Option<String>,
}

/// The interfaces of the dataplane, in their order.
#[derive(Debug)]
pub(super) struct Interfaces {
    choice: Accelerate,
    all: Vec<Interface>,
    of_before: OfBefore,
    /// The program is taken off for good.
    is_over: bool,
}

#[derive(Debug)]
struct Interface {
    name: String,
    ifindex: u32,
    /// Or why it is not there.
    attached: Result<Attached, String>,
    /// Why it is not in the better mode.
    reason: Option<String>,
}

#[derive(Debug)]
struct Attached {
    mode: XdpMode,
    /// Its frames have to leave by the map of devices.
    redirects: bool,
    /// `None` in a test run, and at its end.
    link: Option<KeptLink>,
}

impl Interfaces {
    /// None yet.
    pub(super) fn new(choice: Accelerate, of_before: OfBefore) -> Self {
        Self { choice, all: Vec::new(), of_before, is_over: false }
    }

    /// Has the program see the frames of these interfaces, which may be others than before under the same names; again where it
    /// could not be, or may not be any more. The indexes of those that are gone.
    pub(super) fn follow(&mut self, program: &Program, wanted: &[(String, u32)]) -> Vec<u32> {
        let (mut gone, mut is_new) = (Vec::new(), false);
        if self.is_over {
            return gone;
        }
        for (at, (name, ifindex)) in wanted.iter().enumerate() {
            let known = self.all.get(at).filter(|known| known.ifindex == *ifindex);
            if known.is_some_and(|known| known.stays()) {
                continue;
            }
            let is_other = known.is_none();
            let interface = self.attach_one(program, name, *ifindex);
            is_new |= interface.attached.is_ok();
            match self.all.get_mut(at) {
                Some(place) => {
                    let mut before = std::mem::replace(place, interface);
                    gone.extend((is_other || place.attached.is_err()).then_some(before.ifindex));
                    place.tell(Some(&before));
                    before.end();
                }
                None => {
                    interface.tell(None);
                    self.all.push(interface);
                }
            }
        }
        if is_new {
            self.demote(program);
        }
        self.of_before.end_all();
        gone
    }

    /// Has this program see the frames that as yet the one of the process before sees. Whether it does on all of them; on the
    /// others none is any more.
    pub(super) fn take_over(&mut self, program: &Program) -> bool {
        let mut is_whole = true;
        for interface in &mut self.all {
            let Ok(Attached { link: Some(link), .. }) = &mut interface.attached else { continue };
            if !link.is_of_before() {
                continue;
            }
            match link.update(program) {
                Ok(()) => tracing::info!("{} was accelerated meanwhile, and is taken over", interface.name),
                Err(error) => {
                    is_whole = false;
                    interface.end();
                    interface.attached = Err(refused(&error));
                    interface.tell(None);
                }
            }
        }
        is_whole
    }

    /// The program is on none of them from now on.
    pub(super) fn end(&mut self) {
        self.is_over = true;
        self.all.drain(..).for_each(|mut interface| interface.end());
    }

    /// Whether there is something to be taken over.
    pub(super) fn has_some_of_before(&self) -> bool {
        let is_of_before = |link: &KeptLink| link.is_of_before();
        self.all.iter().any(|of| of.attached.as_ref().is_ok_and(|on| on.link.as_ref().is_some_and(is_of_before)))
    }

    /// Drivers lose what programs send to an interface that does not take it: then none of them is in the driver. Many take it
    /// only while they have a program themselves, so that it is looked at when all have theirs.
    fn demote(&mut self, program: &Program) {
        let takes = |interface: &Interface| {
            interface.ifindex == 0 || features::of(interface.ifindex).is_ok_and(|has| has & features::NDO_XMIT != 0)
        };
        let lacking = self.all.iter().filter(|interface| !takes(interface));
        let lacking: Vec<(u32, String)> = lacking.map(|of| (of.ifindex, of.name.clone())).collect();
        for interface in &mut self.all {
            let Ok(Attached { mode: XdpMode::Native, redirects, .. }) = interface.attached else { continue };
            // By XDP_TX drivers send without it, but for veth.
            let leaves_by = |other: u32| other != interface.ifindex || redirects;
            let Some((_, other)) = lacking.iter().find(|(other, _)| leaves_by(*other)) else { continue };
            interface.reason = Some(format!("{other}, by which frames leave, does not send what a program hands over"));
            // One mode goes before the other comes.
            interface.end();
            let generic = (interface.ifindex, XdpMode::Generic);
            interface.attached = on(&self.of_before, program, self.choice, generic, false);
            interface.tell(None);
        }
    }

    /// A bit for each whose frames the program sees.
    pub(super) fn seen(&self) -> u64 {
        let seen = self.all.iter().enumerate().filter(|(_, interface)| interface.attached.is_ok());
        seen.fold(0, |bits, (at, _)| bits | 1 << at)
    }

    /// Of each whose frames the program sees, whether those that leave by it have to go by the map of devices.
    pub(super) fn ways(&self) -> impl Iterator<Item = Option<bool>> {
        self.all.iter().map(|interface| interface.attached.as_ref().ok().map(|attached| attached.redirects))
    }

    pub(super) fn shown(&self) -> Vec<Acceleration> {
        let shown = |interface: &Interface| Acceleration {
            interface: interface.name.clone(),
            mode: interface.attached.as_ref().ok().map(|attached| attached.mode),
            reason: interface.attached.as_ref().err().or(interface.reason.as_ref()).cloned(),
        };
        self.all.iter().map(shown).collect()
    }

    /// The program is on an interface, as far as a test run of it goes.
    #[cfg(test)]
    pub(super) fn pretend(&mut self, ifindex: u32, redirects: bool) {
        let attached = Ok(Attached { mode: XdpMode::Native, redirects, link: None });
        self.all.push(Interface { name: "test".into(), ifindex, attached, reason: None });
    }

    fn attach_one(&mut self, program: &Program, name: &str, ifindex: u32) -> Interface {
        let not = |reason: String| Interface { name: name.to_owned(), ifindex, attached: Err(reason), reason: None };
        if ifindex == 0 {
            return not("it is gone".to_owned());
        }
        if ifindex as usize >= PORTS {
            return not(format!("its index is {ifindex}, and those below {PORTS} are looked after"));
        }
        if let Some(reason) = tags(name) {
            return not(reason);
        }
        let driver = driver(name).unwrap_or_default();
        let by_device_map = |mode| mode == XdpMode::Native && driver == "veth";
        let may_be_native = self.may_be_native(&driver, ifindex);
        if let Some((mode, link)) = self.of_before.take(self.choice, ifindex) {
            let reason =
                (mode == XdpMode::Generic).then(|| may_be_native.err().unwrap_or_else(|| AS_BEFORE.to_owned()));
            let attached = Ok(Attached { mode, redirects: by_device_map(mode), link: Some(link) });
            return Interface { name: name.to_owned(), ifindex, attached, reason };
        }
        self.of_before.end(ifindex);
        let on = |mode| on(&self.of_before, program, self.choice, (ifindex, mode), by_device_map(mode));
        let (attached, reason) = match may_be_native.and_then(|()| on(XdpMode::Native)) {
            Ok(attached) => (Ok(attached), None),
            Err(reason) => (on(XdpMode::Generic), Some(reason)),
        };
        Interface { name: name.to_owned(), ifindex, attached, reason }
    }

    /// Whether the driver can run it.
    fn may_be_native(&self, driver: &str, ifindex: u32) -> Result<(), String> {
        if self.choice == Accelerate::Auto && VIRTUAL.contains(&driver) {
            return Err(format!("{driver} is faster so: whoever sends there leaves checksums and segments to it"));
        }
        let wanted = features::BASIC | features::REDIRECT;
        match features::of(ifindex) {
            Ok(has) if has & wanted == wanted => Ok(()),
            Ok(_) => Err(format!("its driver ({driver}) has no native XDP")),
            Err(error) => Err(format!("the kernel does not say what its driver can do ({error})")),
        }
    }
}

impl Interface {
    /// The program is on it no more.
    fn end(&mut self) {
        if let Ok(Attached { link, .. }) = &mut self.attached {
            link.take().into_iter().for_each(KeptLink::end);
        }
    }

    /// There is nothing to be tried again: it is accelerated and still may be, or it is gone.
    fn stays(&self) -> bool {
        self.ifindex == 0 || self.attached.is_ok() && tags(&self.name).is_none()
    }

    /// Says in the log what is so now, if it is something else.
    fn tell(&self, before: Option<&Self>) {
        let name = &self.name;
        match &self.attached {
            Ok(Attached { mode, .. }) => {
                tracing::info!(reason = self.reason.as_deref(), "{name} is accelerated ({mode} XDP)");
            }
            Err(reason) if before.is_some_and(|before| before.attached.as_ref().err() == Some(reason)) => {}
            Err(reason) => tracing::info!("{name} is not accelerated: {reason}"),
        }
    }
}

fn on(
    of_before: &OfBefore,
    program: &Program,
    choice: Accelerate,
    (ifindex, mode): (u32, XdpMode),
    redirects: bool,
) -> Result<Attached, String> {
    let link = of_before.attach(program, choice, (ifindex, mode)).map_err(|error| refused(&error))?;
    Ok(Attached { mode, redirects, link: Some(link) })
}

/// What is to be done about an interface that takes VLAN tags off.
fn tags(name: &str) -> Option<String> {
    let reason = || {
        format!(
            "it takes VLAN tags off before XDP sees a frame, so that those of other VLANs look like ours: ethtool -K {name} rxvlan off"
        )
    };
    takes_tags_off(name).unwrap_or(false).then(reason)
}

/// Why the kernel does not attach it, in words where there are.
fn refused(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => "another program has it (ip link show)".to_owned(),
        Some(libc::ERANGE) => format!("its MTU is too large for native XDP ({error})"),
        _ => error.to_string(),
    }
}
