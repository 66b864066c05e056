//! Links that outlive this process: somebody else has copies of their descriptors, so that the program stays on its interfaces
//! when this process crashes, and the next one takes it over where it is.

use std::{
    collections::BTreeMap,
    fmt, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use super::choice::Accelerate;
use crate::io::{
    XdpMode,
    sys::bpf::{Link, Program},
};

const MODES: [XdpMode; 2] = [XdpMode::Native, XdpMode::Generic];

/// Who keeps descriptors beyond this process.
pub trait LinkKeeper: fmt::Debug + Send + Sync {
    /// Keeps a copy of this one, until [`Self::let_go`].
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>);
    /// Has no copy of it any more.
    fn let_go(&self, name: &str);
    /// What it kept of the process before, and goes on keeping. Once.
    fn of_before(&self) -> Vec<(String, OwnedFd)>;
}

/// The links that the process before had, as far as nobody has taken them over. Those that nobody wants end with this.
#[derive(Debug)]
pub(crate) struct OfBefore {
    keeper: Option<Arc<dyn LinkKeeper>>,
    links: BTreeMap<String, Link>,
}

/// A link. Where somebody keeps a copy it does not end with this or with the process, but by [`Self::end`].
#[derive(Debug)]
pub(super) struct KeptLink {
    name: String,
    link: Link,
    keeper: Option<Arc<dyn LinkKeeper>>,
    /// The program on it is that of the process before.
    is_of_before: bool,
}

/// What a link is called where it is kept: a process that has the same choice does not choose anew.
fn name(choice: Accelerate, mode: XdpMode, ifindex: u32) -> String {
    let choice = if choice == Accelerate::Auto { "auto" } else { "xdp" };
    format!("{choice}-{mode}-{ifindex}")
}

/// Whether it is what a link is called.
pub fn is_link_name(name: &str) -> bool {
    let mut parts = name.split('-');
    let is_known = matches!(parts.next(), Some("auto" | "xdp")) && matches!(parts.next(), Some("native" | "generic"));
    is_known && parts.next().is_some_and(|ifindex| ifindex.parse::<u32>().is_ok()) && parts.next().is_none()
}

impl OfBefore {
    /// What somebody has kept.
    pub(crate) fn new(keeper: Option<&Arc<dyn LinkKeeper>>) -> Self {
        let links = keeper.iter().flat_map(|keeper| keeper.of_before()).map(|(name, link)| (name, Link::of(link)));
        Self { links: links.collect(), keeper: keeper.cloned() }
    }

    /// The link to an interface, and its mode, if the process before had one by the same choice.
    pub(super) fn take(&mut self, choice: Accelerate, ifindex: u32) -> Option<(XdpMode, KeptLink)> {
        MODES.into_iter().find_map(|mode| {
            let (name, link) = self.links.remove_entry(&name(choice, mode, ifindex))?;
            Some((mode, self.kept(name, link, true)))
        })
    }

    /// A new link.
    pub(super) fn attach(
        &self,
        program: &Program,
        choice: Accelerate,
        (ifindex, mode): (u32, XdpMode),
    ) -> io::Result<KeptLink> {
        let (name, link) = (name(choice, mode, ifindex), program.attach(ifindex, mode)?);
        self.keeper.iter().for_each(|keeper| keeper.keep(&name, link.as_fd()));
        Ok(self.kept(name, link, false))
    }

    /// Ends the links to an interface, which would be in the way of others.
    pub(super) fn end(&mut self, ifindex: u32) {
        for choice in [Accelerate::Auto, Accelerate::Xdp] {
            self.take(choice, ifindex).into_iter().for_each(|(_, link)| link.end());
        }
    }

    /// Ends all that are left.
    pub(super) fn end_all(&mut self) {
        while let Some((name, link)) = self.links.pop_first() {
            self.kept(name, link, true).end();
        }
    }

    fn kept(&self, name: String, link: Link, is_of_before: bool) -> KeptLink {
        KeptLink { name, link, keeper: self.keeper.clone(), is_of_before }
    }
}

impl Drop for OfBefore {
    fn drop(&mut self) {
        self.end_all();
    }
}

impl KeptLink {
    pub(super) fn is_of_before(&self) -> bool {
        self.is_of_before
    }

    /// From now on this program sees the frames, and none is missed between.
    pub(super) fn update(&mut self, program: &Program) -> io::Result<()> {
        self.link.update(program)?;
        self.is_of_before = false;
        Ok(())
    }

    /// Takes the program off, whoever has a copy.
    pub(super) fn end(self) {
        // Of an interface that is gone there is nothing to be taken off.
        let _ = self.link.detach();
        self.keeper.iter().for_each(|keeper| keeper.let_go(&self.name));
    }
}

/// Ends what the process before has left, where there is no dataplane any more.
pub fn end_links_of_before(keeper: &Arc<dyn LinkKeeper>) {
    drop(OfBefore::new(Some(keeper)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_known_by_their_names() {
        for (choice, mode) in [Accelerate::Auto, Accelerate::Xdp].into_iter().zip(MODES) {
            assert!(is_link_name(&name(choice, mode, 3)));
        }
        assert!(
            ["guard", "xdp", "auto-native", "auto-native-eth0", "xdp-native-3-4"].iter().all(|of| !is_link_name(of))
        );
    }
}
