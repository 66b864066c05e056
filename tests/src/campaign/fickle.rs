//! A service whose many backends all go down and come back at once: their owner's verdicts are a storm in the log, and whatever
//! happens to the owner meanwhile, all nodes' tables say the same in the end, and what is so.

use std::time::Duration;

use anyhow::ensure;

use crate::{
    cluster::LbNode,
    site::{Site, VIP, VIP_TEXT},
    traffic::Doorman,
    wait,
};

const SERVICE: &str = "fickle";
const BACKENDS: u8 = 50;
const PORT: u16 = 8080;
/// From the end of all trouble until the tables say what is so.
const BOUND: Duration = Duration::from_secs(10);

/// The machine that all the backends are.
pub struct Fickle {
    doorman: Option<Doorman>,
    /// How often all of them have changed.
    pub storms: u64,
}

impl Fickle {
    /// Adds the service and its backends, which are well.
    pub fn start(site: &Site) -> anyhow::Result<Self> {
        let (node, port) = (&site.nodes[0], format!("{PORT}/tcp"));
        let often = ["--check-interval", "200ms", "--check-timeout", "150ms", "--rise", "1", "--fall", "2"];
        let add = ["service", "add", SERVICE, "--vip", VIP_TEXT, "--port", &port, "--check", "tcp"];
        node.lbctl_ok(&[&add[..], &often].concat())?;
        let mac = site.servers[0].mac.to_string();
        for number in 0..BACKENDS {
            let address = format!("192.168.3.{}", 100 + number);
            node.lbctl_ok(&["backend", "add", SERVICE, &address, "--mac", &mac])?;
        }
        let mut fickle = Self { doorman: None, storms: 0 };
        fickle.turn(site)?;
        Ok(fickle)
    }

    /// All of them go down, or come back.
    pub fn turn(&mut self, site: &Site) -> anyhow::Result<()> {
        self.storms += 1;
        self.doorman = match self.doorman.take() {
            Some(_) => None,
            None => Some(Doorman::listen(&site.servers[0].host.ns, [(VIP, PORT).into()])?),
        };
        Ok(())
    }

    /// All nodes say the same of each backend; of those that are down that they are, and of others that or that they change
    /// too often.
    pub fn judge(&self, site: &Site) -> anyhow::Result<()> {
        let is_down = self.doorman.is_none();
        wait::until_ok(BOUND, || {
            let seen = site.nodes.iter().map(verdicts).collect::<Result<Vec<_>, _>>()?;
            let first = &seen[0];
            ensure!(seen.iter().all(|other| other == first), "the nodes' verdicts differ: {seen:?}");
            ensure!(!is_down || first.iter().all(|verdict| verdict.0 == "unhealthy"), "they are down: {first:?}");
            ensure!(!first.iter().any(|verdict| verdict.0 == "unchecked"), "nobody asks them: {first:?}");
            Ok(())
        })
    }
}

/// What a node's table says of each: the health, the reason, since when.
fn verdicts(node: &LbNode) -> anyhow::Result<Vec<(String, String, String)>> {
    let list = node.lbctl_json(&["--timeout", "1s", "backend", "list", SERVICE, "--no-flows"])?;
    let text = |row: &serde_json::Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    let rows = list["backends"].as_array().into_iter().flatten();
    let of = |row| (text(row, "health"), text(row, "health_reason"), text(row, "health_since"));
    Ok(rows.map(of).collect())
}
