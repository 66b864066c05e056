//! `lbctl get`, `describe` and `watch`: one object, all about it, and what changes.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use lb_proto::v1;
use prost::Message;

use crate::{
    cli::{Format, Object, WatchFilter},
    declared::{self, BACKEND, Fields, SEGMENT, SERVICE, Shape, VIP, of_message},
    exit::{Failure, complain},
    output::{self, Row},
    session::Session,
};

/// So many of what has happened to an object are shown.
const LAST_EVENTS: usize = 10;

/// Something that the API has, with what it is called in a file.
enum Found {
    Vip(v1::Vip),
    Service(v1::Service),
    Backend(v1::Backend),
    Segment(v1::Segment),
    /// With the VIPs that it owns.
    Node(v1::Node, Vec<v1::Vip>),
}

async fn find(session: &Session, object: &Object) -> Result<Found, Failure> {
    let mut client = session.table();
    let gone = || Failure::Refused("the server has answered with nothing".to_owned());
    Ok(match object.clone() {
        Object::Vip { ip } => {
            let request = v1::GetVipRequest { address: ip.to_string(), ..v1::GetVipRequest::default() };
            let answer = session.read(request, |request| async move { client.get_vip(request).await }).await?;
            Found::Vip(answer.vip.ok_or_else(gone)?)
        }
        Object::Service { name } => {
            let request = v1::GetServiceRequest { name, ..v1::GetServiceRequest::default() };
            let answer = session.read(request, |request| async move { client.get_service(request).await }).await?;
            Found::Service(answer.service.ok_or_else(gone)?)
        }
        Object::Backend { service, ip } => {
            // With its flows, which a list alone counts.
            let request = v1::GetBackendRequest { service, address: ip.to_string(), at_least_revision: 0 };
            let answer = session.read(request, |request| async move { client.get_backend(request).await }).await?;
            let backend = answer.backend.ok_or_else(gone)?;
            let of = backends(session, &backend.service, Some(ip)).await?;
            Found::Backend(of.into_iter().next().unwrap_or(backend))
        }
        Object::Segment { network } => {
            let request = v1::GetSegmentRequest { network, ..v1::GetSegmentRequest::default() };
            let answer = session.read(request, |request| async move { client.get_segment(request).await }).await?;
            Found::Segment(answer.segment.ok_or_else(gone)?)
        }
        Object::Node { name } => {
            let request = v1::GetStatusRequest { with_versions: true, ..v1::GetStatusRequest::default() };
            let v1::GetStatusResponse { nodes, vip_owners, .. } = session.status_by(request).await?;
            let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
            let missing = || Failure::Refused(format!("there is no node {name}; there are: {}", names.join(", ")));
            let node = nodes.into_iter().find(|node| node.name == name).ok_or_else(missing)?;
            Found::Node(node, vip_owners.into_iter().filter(|vip| vip.owner == name).collect())
        }
    })
}

async fn backends(session: &Session, service: &str, ip: Option<IpAddr>) -> Result<Vec<v1::Backend>, Failure> {
    let request = v1::ListBackendsRequest {
        service: service.to_owned(),
        address: ip.map(|ip| ip.to_string()).unwrap_or_default(),
        with_flows: true,
        ..v1::ListBackendsRequest::default()
    };
    Ok(session.read_all(request).await?.backends)
}

pub(super) async fn get(session: &Session, object: &Object) -> Result<(), Failure> {
    let format = session.format();
    match find(session, object).await? {
        Found::Vip(row) => output::list(format, "vips", &[row]),
        Found::Service(row) => output::list(format, "services", &[row]),
        Found::Backend(row) => output::list(format, "backends", &[row]),
        Found::Segment(row) => output::list(format, "segments", &[row]),
        Found::Node(row, _) => output::list(format, "nodes", &[row]),
    }
}

/// What belongs to an object.
#[derive(Default, serde::Serialize)]
struct Around {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vips: Vec<v1::Vip>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<v1::Service>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    backends: Vec<v1::Backend>,
    events: Vec<v1::WatchEventsResponse>,
}

pub(super) async fn describe(session: &Session, object: &Object) -> Result<(), Failure> {
    let found = find(session, object).await?;
    let mut around = Around::default();
    let name = match &found {
        Found::Vip(vip) => {
            let request = v1::ListServicesRequest { vip: vip.address.clone(), ..v1::ListServicesRequest::default() };
            around.services = session.read_all(request).await?.services;
            for service in &around.services {
                around.backends.extend(backends(session, &service.name, None).await?);
            }
            name(&VIP, vip)
        }
        Found::Service(service) => {
            around.backends = backends(session, &service.name, None).await?;
            name(&SERVICE, service)
        }
        Found::Backend(backend) => name(&BACKEND, backend),
        Found::Segment(segment) => name(&SEGMENT, segment),
        Found::Node(node, vips) => {
            around.vips.clone_from(vips);
            format!("node {}", node.name)
        }
    };
    around.events = events(session, &name).await?;
    if session.format().is_data() {
        let what = match &found {
            Found::Vip(row) => value("vip", row),
            Found::Service(row) => value("service", row),
            Found::Backend(row) => value("backend", row),
            Found::Segment(row) => value("segment", row),
            Found::Node(row, _) => value("node", row),
        }?;
        return output::object(session.format(), &Described { what, around });
    }
    let fields = match &found {
        Found::Vip(row) => fields(&VIP, row),
        Found::Service(row) => fields(&SERVICE, row),
        Found::Backend(row) => fields(&BACKEND, row),
        Found::Segment(row) => fields(&SEGMENT, row),
        Found::Node(row, _) => cells(row),
    };
    let fields: Vec<(String, String)> = fields.into_iter().map(|(name, value)| for_people(&name, value)).collect();
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let lines = fields.into_iter().map(|(name, value)| format!("{name:width$}  {value}\n"));
    output::print(&format!("{name}\n\n{}", lines.collect::<String>()))?;
    section("vips", &around.vips)?;
    section("services", &around.services)?;
    section("backends", &around.backends)?;
    section("events", &around.events)
}

/// A field of the API without what its name says of the unit, which stands at the value.
fn for_people(name: &str, value: String) -> (String, String) {
    type Shown = fn(u64) -> String;
    const UNITS: [(&str, Shown); 4] = [
        ("_ms", |number| humantime::format_duration(Duration::from_millis(number)).to_string()),
        ("_s", |number| humantime::format_duration(Duration::from_secs(number)).to_string()),
        ("_percent", |number| format!("{number} %")),
        ("_eighths", |number| format!("{number}/8")),
    ];
    let known = UNITS
        .iter()
        .find_map(|(suffix, shown)| Some((name.strip_suffix(suffix)?.to_owned(), shown(value.parse().ok()?))));
    let (name, value) = known.unwrap_or_else(|| (name.to_owned(), value));
    (name.replace('_', " "), value)
}

#[derive(serde::Serialize)]
struct Described {
    #[serde(flatten)]
    what: BTreeMap<&'static str, serde_json::Value>,
    #[serde(flatten)]
    around: Around,
}

fn value(
    noun: &'static str,
    row: &impl serde::Serialize,
) -> Result<BTreeMap<&'static str, serde_json::Value>, Failure> {
    Ok(BTreeMap::from([(noun, serde_json::to_value(row).map_err(std::io::Error::other)?)]))
}

fn name(shape: &'static Shape, row: &impl Message) -> String {
    of_message(shape, row).name()
}

fn fields(shape: &'static Shape, row: &impl Message) -> Vec<(String, String)> {
    let fields = of_message(shape, row).fields(Fields::All);
    fields.into_iter().map(|(name, value)| (name, value.to_string())).collect()
}

/// As a list shows them.
fn cells<T: Row>(row: &T) -> Vec<(String, String)> {
    T::COLUMNS.iter().map(|column| (*column).to_owned()).zip(row.cells()).collect()
}

fn section<T: Row>(noun: &'static str, rows: &[T]) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    output::print("\n")?;
    output::list(Format::Table, noun, rows)
}

/// What has happened to an object, as far as the asked node remembers.
async fn events(session: &Session, object: &str) -> Result<Vec<v1::WatchEventsResponse>, Failure> {
    let mut client = session.node();
    let request = v1::WatchEventsRequest { once: true, ..v1::WatchEventsRequest::default() };
    let mut stream = session.read(request, |request| async move { client.watch_events(request).await }).await?;
    let mut of = std::collections::VecDeque::new();
    while let Some(event) = stream.message().await.map_err(|status| Failure::from_status(&status, None))? {
        if event.objects.iter().any(|known| known == object) {
            of.push_back(event);
            if of.len() > LAST_EVENTS {
                of.pop_front();
            }
        }
    }
    Ok(of.into())
}

pub(super) async fn watch(session: &Session, filter: WatchFilter) -> Result<(), Failure> {
    let mut resume_from = match filter.from {
        Some(revision) => revision,
        None => session.status(true).await?.revision,
    };
    let kinds = filter.kinds.into_iter().map(Into::into).collect();
    let request = v1::WatchRequest { from_revision: resume_from, kinds };
    let mut client = session.table();
    let mut stream = session.read(request, |request| async move { client.watch(request).await }).await?;
    loop {
        let part = match stream.message().await {
            Ok(Some(part)) => part,
            Ok(None) => return Ok(()),
            Err(status) => {
                complain(&format!("lbctl: to go on from here: lbctl watch --from {resume_from}"));
                return Err(Failure::from_status(&status, None));
            }
        };
        if part.compacted && filter.from.is_some_and(|from| from > 0) {
            complain("lbctl: warning: what has changed since is not known any more: here is all that there is");
        }
        if part.revision > 0 {
            resume_from = part.revision;
        }
        match session.format() {
            Format::Table | Format::Wide | Format::Name => {
                for change in declared::changes(&part.changes, Fields::All) {
                    let (sign, line) = change.line();
                    output::signed(sign, &line)?;
                }
            }
            // Also one without a change: from its revision a program can go on.
            format => output::one_of_many(format, &part)?,
        }
    }
}
