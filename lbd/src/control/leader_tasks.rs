//! What is nobody's request: the leader has VIPs go back to the nodes that they prefer, says which backends were drained for
//! long enough and whose shares have risen, and raises the feature level when all nodes know it. It only proposes; what
//! comes of it the table decides.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use lb_raft_store::{
    Consensus, View,
    table::{AdminState, Backend, Body, LeaseId, NodeId, Share, Table},
};
use tokio::time::{Instant, interval};

use crate::clock;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const PROPOSAL: Duration = Duration::from_secs(1);
/// VIPs that go back at once; the others follow at the next look.
const AT_ONCE: usize = 16;

/// Runs on every node until it is aborted; only the leader's proposes.
pub(crate) async fn run_leader_tasks(consensus: Consensus) {
    let mut looks = interval(LOOK_EVERY);
    // Since when each lease has been seen ready without a break.
    let mut ready: BTreeMap<NodeId, (LeaseId, Instant)> = BTreeMap::new();
    let mut rising = Rising::default();
    loop {
        looks.tick().await;
        let view = consensus.view();
        ready.retain(|node, (lease, _)| view.table.lease(*node).is_some_and(|held| held.ready && held.id == *lease));
        for (node, lease) in view.table.leases().filter(|(_, lease)| lease.ready) {
            ready.entry(node).or_insert((lease.id, Instant::now()));
        }
        if !consensus.is_leader() {
            continue;
        }
        let steady = |node: NodeId, span: Duration| ready.get(&node).is_some_and(|(_, since)| since.elapsed() >= span);
        let shares = rising.look(&view.table, Instant::now());
        let times = progress(&view.table, shares, clock::unix_ms());
        for command in returning(&view, steady).into_iter().take(AT_ONCE).chain(times) {
            propose(&consensus, command).await;
        }
    }
}

/// Runs on every node until it is aborted. It does not wait for a look: in a new cluster the level rises before anyone needs
/// what it brings.
pub(crate) async fn raise_feature_level(consensus: Consensus) {
    let mut views = consensus.watch();
    loop {
        let raise = match views.wait_for(|view| raised(view).is_some()).await {
            Ok(view) => raised(&view),
            Err(_) => return,
        };
        if let Some(raise) = raise.filter(|_| consensus.is_leader()) {
            propose(&consensus, raise).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What time has brought to backends, if anything.
fn progress(table: &Table, shares: Vec<Share>, now_ms: u64) -> Option<Body> {
    let is_over = |backend: &&Backend| {
        let Some(service) = table.service(&backend.settings.service) else { return false };
        let (since_ms, lasts_ms) = (backend.draining_since_ms, 1000 * u64::from(service.settings.drain_timeout_s()));
        let is_draining = backend.settings.state == AdminState::Drain && !backend.is_drained;
        is_draining && since_ms > 0 && now_ms >= since_ms + lasts_ms
    };
    let drained: Vec<u64> = table.backends().filter(is_over).map(|backend| backend.id).collect();
    (!drained.is_empty() || !shares.is_empty()).then_some(Body::Progress { drained, shares })
}

/// The backends whose shares rise, and when that began as far as this node saw it.
#[derive(Default)]
struct Rising(HashMap<u64, Instant>);

impl Rising {
    /// The shares that have risen.
    fn look(&mut self, table: &Table, now: Instant) -> Vec<Share> {
        let mut rising = HashMap::new();
        let mut risen = Vec::new();
        for backend in table.backends().filter(|backend| backend.eighths > 0) {
            let seconds = table.service(&backend.settings.service).map_or(0, |service| service.settings.slow_start_s);
            let step = Duration::from_millis(1000 * u64::from(seconds) / 8);
            let gone = step * (backend.eighths - 1);
            // Whoever becomes the leader sees how far it is.
            let begun = self.0.get(&backend.id).copied().or_else(|| now.checked_sub(gone)).unwrap_or(now);
            rising.insert(backend.id, begun);
            let steps = if step.is_zero() { 8 } else { now.duration_since(begun).as_millis() / step.as_millis() };
            let eighths = u32::try_from(steps + 1).unwrap_or(8).min(8);
            if eighths > backend.eighths {
                risen.push(Share { backend: backend.id, eighths });
            }
        }
        self.0 = rising;
        risen
    }
}

async fn propose(consensus: &Consensus, command: Body) {
    if let Err(error) = consensus.propose(&command.clone().into(), Instant::now() + PROPOSAL).await {
        tracing::debug!(%error, ?command, "not agreed on yet");
    }
}

/// The level that every node knows, if that is more than the table's.
fn raised(view: &View) -> Option<Body> {
    let level = view.table.nodes().map(|node| node.feature_level).min()?;
    (level > view.table.feature_level()).then_some(Body::RaiseFeatureLevel { level })
}

/// VIPs that are not where they should be, although that node has been able for long enough.
fn returning(view: &View, steady: impl Fn(NodeId, Duration) -> bool) -> Vec<Body> {
    let table = &view.table;
    let span = match table.settings().failback_s {
        0 => return Vec::new(),
        seconds => Duration::from_secs(seconds.into()),
    };
    let away = table.vips().filter(|vip| vip.intent.is_none() && !vip.deleting);
    away.filter_map(|vip| {
        let to = vip.settings.prefer.filter(|to| vip.owner.is_some_and(|owner| owner.node != *to))?;
        let able = table.is_able(to, vip) && table.node(to).is_some_and(|node| !node.draining) && steady(to, span);
        let vip = vip.settings.address;
        able.then_some(Body::MoveIntent { vip, to })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use lb_raft_store::table::*;

    use super::*;

    const VIP: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 2, 100));

    /// Two able nodes; the VIP prefers the first, and the second owns it.
    fn table() -> (Table, NodeId) {
        let mut table = Table::default();
        let mut index = 1;
        let mut apply = |body: Body| {
            index += 1;
            table.apply(index, &body.into()).reply.result.unwrap()
        };
        let node = |name: &str, byte: u8| NewNode {
            name: name.parse().unwrap(),
            role: Role::Lb,
            address: format!("{name}.example:7401"),
            store: uuid::Uuid::from_bytes([byte; 16]),
        };
        apply(Body::CreateCluster {
            cluster: uuid::Uuid::from_u128(7),
            cluster_name: "lb".parse().unwrap(),
            hash_seed: 9,
            heartbeat_key: 11,
            node: node("lb1", 1),
        });
        let Effect::NodeAdded(second) = apply(Body::AddNode(node("lb2", 2))) else { panic!() };
        for (id, last) in [(second, 12), (BOOTSTRAP_NODE, 11)] {
            let attachment = Attachment {
                interface: "eth0".into(),
                mac: MacAddr::try_from([2, 0, 0, 0, 0, last]).unwrap(),
                address: std::net::IpAddr::from([192, 168, 2, last]),
                prefix_len: 24,
                hears: Vec::new(),
                silence: Silence::None,
                gateway_silence: Silence::None,
            };
            let (attachments, unfit) = (vec![attachment], String::new());
            apply(Body::PublishNode { node: id, attachments, heartbeat: vec![], feature_level: 1, unfit, starts: 0 });
            let Effect::LeaseOpened(lease) = apply(Body::OpenLease { node: id, nonce: 1, previous: None }) else {
                panic!()
            };
            apply(Body::Ready { node: id, lease });
            if id == second {
                let vip = VipSettings {
                    address: VIP,
                    prefer: Some(BOOTSTRAP_NODE),
                    segment: None,
                    unmatched: Unmatched::Drop,
                };
                apply(Body::Mutate(vec![Mutation::CreateVip(vip)]));
            }
        }
        apply(Body::UpdateSettings(ClusterSettings { failback_s: 60, ..ClusterSettings::default() }));
        (table, second)
    }

    fn moves(table: &Table, steady: bool) -> Vec<Body> {
        let view = View { table: table.clone(), ..View::default() };
        returning(&view, |node, span| {
            assert_eq!((node, span), (BOOTSTRAP_NODE, Duration::from_secs(60)));
            steady
        })
    }

    #[test]
    fn a_vip_goes_back_to_the_node_that_it_prefers_when_that_is_able_steady_and_not_drained() {
        let (mut table, second) = table();
        assert_eq!(table.vip(VIP).unwrap().owner.unwrap().node, second);
        let back = [Body::MoveIntent { vip: VIP, to: BOOTSTRAP_NODE }];
        assert_eq!(moves(&table, true), back);
        assert!(moves(&table, false).is_empty(), "able for too short a time");
        let mut change = |index, body: Body| table.apply(index, &body.into()).reply.result.unwrap();
        change(50, Body::SetDraining { node: BOOTSTRAP_NODE, draining: true });
        let drained = table.clone();
        assert!(moves(&drained, true).is_empty(), "it is drained");
        table.apply(51, &Body::SetDraining { node: BOOTSTRAP_NODE, draining: false }.into()).reply.result.unwrap();
        assert_eq!(moves(&table, true), back);
        let never = ClusterSettings { failback_s: 0, ..ClusterSettings::default() };
        table.apply(52, &Body::UpdateSettings(never).into()).reply.result.unwrap();
        assert!(moves(&table, true).is_empty());
    }

    #[test]
    fn drains_end_and_shares_rise_with_time() {
        let (mut table, _) = table();
        let mut index = 100;
        let mut apply = |table: &mut Table, command: Command| {
            index += 1;
            table.apply(index, &command).reply.result.unwrap();
        };
        table.nodes().map(|node| node.id).collect::<Vec<_>>().into_iter().for_each(|node| {
            let at = table.node(node).unwrap().clone();
            let (attachments, heartbeat, unfit) = (at.attachments, at.heartbeat, at.unfit);
            let body = Body::PublishNode { node, attachments, heartbeat, feature_level: 9, unfit, starts: 0 };
            apply(&mut table, body.into());
        });
        apply(&mut table, Body::RaiseFeatureLevel { level: 9 }.into());
        let name: Name = "web".parse().unwrap();
        let ports = vec![PortRange { protocol: Protocol::Tcp, first: 80, last: 80 }];
        let service =
            ServiceSettings { drain_timeout_s: 60, slow_start_s: 80, ..ServiceSettings::new(name.clone(), VIP, ports) };
        let backend = |last: u8| BackendSettings::new(name.clone(), [192, 168, 2, last].into());
        let rows = vec![
            Mutation::CreateService(service),
            Mutation::CreateBackend(backend(50)),
            Mutation::CreateBackend(BackendSettings { state: AdminState::Drain, ..backend(51) }),
        ];
        apply(&mut table, Command { stamp_ms: 5000, ..Body::Mutate(rows).into() });
        let ids: Vec<u64> = table.backends().map(|backend| backend.id).collect();
        assert_eq!(progress(&table, Vec::new(), 64_999), None);
        let over = Body::Progress { drained: vec![ids[1]], shares: Vec::new() };
        assert_eq!(progress(&table, Vec::new(), 65_000), Some(over.clone()));
        apply(&mut table, over.into());
        assert_eq!(progress(&table, Vec::new(), 65_000), None, "once is enough");

        let (mut rising, begun) = (Rising::default(), Instant::now());
        let share = |eighths| vec![Share { backend: ids[0], eighths }];
        assert_eq!(rising.look(&table, begun), []);
        assert_eq!(rising.look(&table, begun + Duration::from_millis(9_900)), []);
        let third = rising.look(&table, begun + Duration::from_secs(21));
        assert_eq!(third, share(3), "every ten seconds an eighth");
        apply(&mut table, Body::Progress { drained: Vec::new(), shares: third }.into());
        let mut next_leader = Rising::default();
        assert_eq!(next_leader.look(&table, begun + Duration::from_secs(25)), []);
        assert_eq!(next_leader.look(&table, begun + Duration::from_secs(36)), share(4));
        let whole = rising.look(&table, begun + Duration::from_secs(200));
        assert_eq!(whole, share(8));
        apply(&mut table, Body::Progress { drained: Vec::new(), shares: whole }.into());
        assert_eq!(rising.look(&table, begun + Duration::from_secs(200)), [], "it has all of it");
    }
}
