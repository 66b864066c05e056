//! How much the store may grow: the log is bounded by its bytes, and what is left on the file system is looked at. A full
//! disk ends a node; leases, membership and the end of dead nodes' leases need a little room until somebody makes some.

use std::{
    path::Path,
    sync::{Weak, atomic::Ordering},
    time::Duration,
};

use openraft::async_runtime::WatchReceiver as _;
use tokio::time::interval;

use super::node::{Consensus, Inner, Member};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So much of a log that is too long stays for nodes that lag behind.
const KEPT_PART: u64 = 4;
/// With less free space than this, or than this part of it, callers' writes are refused.
const FLOOR_BYTES: u64 = 64 << 20;
const FLOOR_PART: u64 = 20;

/// Runs until the last handle to the node is dropped: it holds none itself.
pub(super) async fn run(node: Weak<Inner>) {
    let mut looks = interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        let Some(inner) = node.upgrade() else { return };
        let consensus = Consensus { inner };
        let low = free_space(&consensus.inner.settings.data_dir).is_some_and(|space| space.is_low());
        consensus.inner.low_on_space.store(low, Ordering::Relaxed);
        if let Some(member) = consensus.inner.member.get()
            && let Err(error) = consensus.bound_log(member).await
        {
            tracing::debug!(%error, "the log was not shortened");
        }
    }
}

/// The space on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What is left for this process.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

impl Space {
    /// Whether callers' writes are refused. A small disk has a lower floor.
    pub fn is_low(&self) -> bool {
        self.free < self.floor()
    }

    /// Whether that is near.
    pub fn is_short(&self) -> bool {
        self.free < 2 * self.floor()
    }

    fn floor(&self) -> u64 {
        FLOOR_BYTES.min(self.total / FLOOR_PART)
    }
}

/// What is left on the file system of a directory; `None` where the system does not say.
fn free_space(dir: &Path) -> Option<Space> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(Space { free: stat.f_bavail * stat.f_frsize, total: stat.f_blocks * stat.f_frsize })
}

impl Consensus {
    /// Whether callers' writes are refused on this node.
    pub(super) fn is_low_on_space(&self) -> bool {
        self.inner.low_on_space.load(Ordering::Relaxed)
    }

    /// The space on the file system of the store.
    pub fn space(&self) -> Option<Space> {
        free_space(&self.inner.settings.data_dir)
    }

    /// Has a snapshot replace most of a log that has grown too long, by its bytes; openraft counts entries.
    async fn bound_log(&self, member: &Member) -> Result<(), String> {
        let sizes = self.inner.store.log.sizes();
        let most = self.inner.settings.log_bytes;
        if sizes.total() < most {
            return Ok(());
        }
        let metrics = member.raft.metrics().borrow_watched().clone();
        let snapshot = metrics.snapshot.map_or(0, |id| id.index());
        let keep_from = sizes.first_of_last(most / KEPT_PART);
        if snapshot < keep_from {
            return member.raft.trigger().snapshot().await.map_err(|error| error.to_string());
        }
        member.raft.trigger().purge_log(keep_from.saturating_sub(1)).await.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use openraft::type_config::TypeConfigExt as _;

    use super::*;
    use crate::{
        Nobody, Settings,
        raft::TypeConfig,
        table::{BackendSettings, Body, Command, Mutation, Role},
    };

    #[test]
    fn large_transactions_do_not_make_the_log_longer_than_it_may_be() {
        const MOST: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            cluster_name: "lb".parse().unwrap(),
            name: "lb1".parse().unwrap(),
            role: Role::Lb,
            address: "192.0.2.1:7401".into(),
            data_dir: dir.path().into(),
            bootstrap: true,
            log_bytes: MOST,
        };
        TypeConfig::run(async {
            let node = Consensus::start(settings, Arc::new(Nobody)).await.unwrap();
            let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
            // Each is refused, there being no such service, and is an entry all the same.
            let backend = |number: u32| {
                let address = std::net::Ipv4Addr::from(0x0a00_0000 + number).into();
                Mutation::CreateBackend(BackendSettings::new("a-service-that-is-not-there".parse().unwrap(), address))
            };
            let large = Command::from(Body::Mutate((0..4000).map(backend).collect()));
            for _ in 0..16 {
                node.propose(&large, deadline).await.unwrap();
            }
            let sizes = || node.inner.store.log.sizes();
            let longest = sizes().total();
            assert!(longest > 2 * MOST, "{longest}: the commands are not large");
            while sizes().total() > MOST {
                assert!(tokio::time::Instant::now() < deadline, "the log still has {} bytes", sizes().total());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(node.view().applied > 16);
            node.shutdown().await;
        });
    }

    #[test]
    fn the_floor_is_lower_on_a_small_disk() {
        let space = |free: u64, total: u64| Space { free: free << 20, total: total << 20 };
        assert!(space(63, 100_000).is_low() && !space(64, 100_000).is_low());
        assert!(space(100, 100_000).is_short() && !space(128, 100_000).is_short());
        assert!(space(2, 48).is_low() && !space(3, 48).is_low());
    }
}
