//! The guard against what other programs do to the ruleset, with the dataplane alone.

use std::time::{Duration, Instant};

use anyhow::ensure;
use lb_dataplane::{Dataplane, forward::spec::TableSpec, guard::Ownership, io::PortConfig};
use lb_tests::{netns::Namespace, nft, site::PATIENCE, wait};

use super::kernel_faults::{config, table};

const TABLE: &str = "lbd";

/// A dataplane on one end of a cable, with a VIP.
fn guarded(namespace: &Namespace, guard: Ownership) -> anyhow::Result<(Dataplane, TableSpec)> {
    namespace.netlink(async |handle| {
        handle.link().add(rtnetlink::LinkVeth::new("tap0", "far0").up().build()).execute().await
    })?;
    let ifindex = namespace.ifindex("tap0")?;
    namespace.set_up("tap0", true)?;
    let table = table(ifindex);
    let dataplane = namespace.enter(|| {
        let ports = vec![PortConfig { name: "tap0".into(), ifindex, mtu: 1500 }];
        let dataplane = Dataplane::start(&config(ports, "mmsg", 1, guard))?;
        dataplane.publish(&table)?;
        anyhow::Ok(dataplane)
    })?;
    Ok((dataplane, table))
}

/// On a kernel whose tables have no owners, or where nobody owns it, a guard that was taken away is back at once, and counted.
pub(crate) fn what_is_taken_away_is_put_back() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let (dataplane, _) = guarded(&namespace, Ownership::Nobody)?;
    ensure!(!dataplane.is_guard_owned());
    let restored = || dataplane.report().totals.guard_restored;
    for (times, take_away) in [
        (1, nft::flush_ruleset as fn(&Namespace) -> std::io::Result<()>),
        (2, |namespace| nft::delete_table(namespace, TABLE)),
        (3, nft::flush_ruleset),
    ] {
        let begun = Instant::now();
        take_away(&namespace)?;
        wait::until("the guard is back", PATIENCE, || restored() == times);
        println!("the guard is back after {:?}", begun.elapsed());
        // It is: deleting it succeeds again, and nobody had to tell the dataplane.
        ensure!(dataplane.guard_problem().is_none());
    }
    namespace.enter(|| dataplane.stop())?;
    ensure!(nft::delete_table(&namespace, TABLE).is_err(), "a graceful stop takes it away");
    Ok(())
}

/// Where the kernel knows owners, `nft flush ruleset` leaves it alone, and nobody else can delete it, also when the process
/// that made it is gone.
pub(crate) fn what_is_owned_stays() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let socket = namespace.enter(lb_dataplane::guard::open_socket)?;
    let (dataplane, _) = guarded(&namespace, Ownership::Of(socket.try_clone()?))?;
    ensure!(dataplane.is_guard_owned(), "this kernel knows no owners");
    nft::flush_ruleset(&namespace)?;
    ensure!(nft::delete_table(&namespace, TABLE).is_err(), "another program deletes the guard");
    // As when the process crashes: the socket is somebody else's too.
    namespace.enter(|| drop(dataplane));
    ensure!(nft::delete_table(&namespace, TABLE).is_err(), "the guard goes with the process that made it");
    drop(socket);
    // From here on it is an orphan, and the next dataplane takes it over.
    let ifindex = namespace.ifindex("tap0")?;
    namespace.netlink(async |handle| handle.link().del(ifindex).execute().await)?;
    let (dataplane, _) = guarded(&namespace, Ownership::Own)?;
    ensure!(dataplane.is_guard_owned());
    namespace.enter(|| dataplane.stop())?;
    ensure!(nft::delete_table(&namespace, TABLE).is_err(), "a graceful stop takes it away");
    Ok(())
}

/// A guard that cannot be put back is a problem as long as it lasts: the node must own nothing.
pub(crate) fn what_cannot_be_put_back_is_told() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let (dataplane, table) = guarded(&namespace, Ownership::Nobody)?;
    // Another program takes the name for itself.
    let squatter = nft::take_table(&namespace, TABLE)?;
    wait::until("the problem is seen", PATIENCE, || dataplane.guard_problem().is_some());
    let problem = dataplane.guard_problem().unwrap_or_default();
    ensure!(problem.contains("another process owns the table"), "{problem}");
    let mut more = table.clone();
    more.vips[0].address = [192, 168, 2, 9].into();
    let refused = namespace.enter(|| dataplane.publish(&more).err());
    ensure!(refused.is_some(), "a table is published without a guard");
    drop(squatter);
    wait::until("the guard is back", Duration::from_secs(5), || {
        namespace.enter(|| dataplane.publish(&table).is_ok()) && dataplane.guard_problem().is_none()
    });
    namespace.enter(|| dataplane.stop())?;
    Ok(())
}
