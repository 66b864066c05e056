//! The page, in a browser.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::ensure;
use lb_tests::{
    browser::{self, Look, Page},
    cluster::SOON,
    site::{ECHO, Plan, Site, VIP, VIP_TEXT},
    wait,
};
use rustix::process::Signal;

use crate::metrics::{self, LOOPBACK};

const DESK: Look = Look { width: 1200, height: 900, dark: false };
const NIGHT: Look = Look { dark: true, ..DESK };
const PHONE: Look = Look { width: 360, height: 740, dark: false };

/// The row of a table whose text begins so.
fn row(table: &str, first: &str) -> String {
    format!("[...document.querySelectorAll('#{table} tbody tr')].find(row => row.textContent.startsWith('{first}'))")
}

/// A takeover is seen as it happens; it is readable on a phone, by night, by keyboard and by who does not see it; and nothing
/// is complained of.
pub(crate) fn shows() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 3, servers: 3, two_interfaces: false, engine: "ring" })?;
    for node in &site.nodes {
        node.reconfigure("[dataplane]", &format!("[metrics]\nlisten = \"{LOOPBACK}\"\n[dataplane]"))?;
    }
    site.start()?;
    site.configure()?;
    site.wait_resolved();
    site.nodes[0].lbctl_ok(&["vip", "add", "192.168.1.101"])?;
    site.nodes[0].lbctl_ok(&["service", "add", "empty", "--vip", "192.168.1.101", "--port", "53/udp"])?;
    let owner = site.owner()?;
    let seen_by = (owner + 1) % 3;
    let name = site.nodes[owner].name.clone();
    let pid = site.nodes[owner].worker();
    ensure!(pid.is_some(), "the owner does not run");
    let traffic = AtomicBool::new(true);
    let (client, nodes, seer) = (site.client.ns.clone(), &site.nodes, site.node_hosts[seen_by].ns.clone());
    std::thread::scope(|scope| {
        let traffic = &traffic;
        scope.spawn(move || {
            let socket = client.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
            let vip: SocketAddr = (VIP, ECHO).into();
            while traffic.load(Ordering::Relaxed) {
                // While nobody owns the VIP it is not reached.
                drop(socket.send_to(b"hello", vip));
                wait::paced(Duration::from_millis(10), Duration::from_millis(10), || {});
            }
            std::io::Result::Ok(())
        });
        let looked = browser::inside(&seer, &format!("http://{LOOPBACK}/"), async |page| {
            looks_right(page).await?;
            // The owner dies.
            let shown = format!("{}?.children[1].textContent.includes('{name}')", row("vips", VIP_TEXT));
            page.wait("the owner is shown", &shown, SOON).await?;
            nodes[owner].signal(Signal::KILL)?;
            let killed = Instant::now();
            page.wait("another owner is shown", &format!("!({shown})"), SOON).await?;
            let after = killed.elapsed();
            eprintln!("the page shows another owner {} ms after the kill", after.as_millis());
            ensure!(after < Duration::from_secs(2), "{after:?}");
            let says = |table: &str, words: &str| {
                format!("document.querySelector('#{table}').textContent.includes('{words}')")
            };
            page.wait("it is said why", &says("events", &format!("has moved from {name}")), SOON).await?;
            page.wait("what is wrong is said", &says("problems", &format!("{name} holds no lease")), SOON).await?;
            page.keep("page-takeover", DESK).await?;
            let complaints = page.complaints().await?;
            ensure!(complaints.is_empty(), "{complaints:#?}");
            Ok(())
        });
        traffic.store(false, Ordering::Relaxed);
        looked
    })?;
    // Who comes by another's name is not answered.
    let (status, _) = metrics::get_under(&site, seen_by, "/", "evil.example")?;
    ensure!(status == 421, "{status}");
    Ok(())
}

async fn looks_right(page: &Page) -> anyhow::Result<()> {
    page.wait("it is live", "document.querySelector('#connection').textContent === 'live'", SOON).await?;
    page.wait("three nodes", "document.querySelectorAll('#nodes tbody tr').length === 3", SOON).await?;
    for (name, look) in [("page", DESK), ("page-night", NIGHT), ("page-phone", PHONE)] {
        page.keep(name, look).await?;
        let beyond = page.value("document.documentElement.scrollWidth - document.documentElement.clientWidth").await?;
        ensure!(beyond == 0, "{name} is {beyond} wider than the window");
        page.check_accessibility().await?;
    }
    page.look(DESK).await?;
    // By keyboard: the first stop leads to the VIPs, and a slash to the filter.
    page.press("\u{e004}").await?;
    ensure!(page.value("document.activeElement.className").await? == "skip");
    page.press("/").await?;
    ensure!(page.value("document.activeElement.id").await? == "filter");
    page.press("192.168.1.101").await?;
    let visible = "[...document.querySelectorAll('#vips tbody tr')].filter(row => !row.hidden).length";
    page.wait("one VIP is left", &format!("{visible} === 1"), SOON).await?;
    page.press(&"\u{e003}".repeat(13)).await?;
    page.wait("both VIPs are back", &format!("{visible} === 2"), SOON).await?;
    // What is sent is drawn, and what is wrong is said.
    page.wait("packets are drawn", "document.querySelector('#picture path.busy') !== null", SOON).await?;
    page.wait(
        "a trend is drawn",
        "(document.querySelector('#vips path.packets')?.getAttribute('d') ?? '').includes('L')",
        SOON,
    )
    .await
}
