use lb_proto::v1;
use proptest::prelude::*;

use super::{shapes::SHAPES, write::Shown, *};

const TABLE: &str = "
settings: {timing: relaxed}
vips:
  - address: 192.0.2.1
    prefer: lb1
    unmatched: reject
services:
  - name: web
    vip: 192.0.2.1
    ports:
      - {protocol: tcp, first: 80, last: 80}
    checks:
      checks:
        - http: {path: /ready, status_first: 200, status_last: 204}
    on_all_down: fail-open
backends:
  - {service: web, address: 2001:DB8::11, mac: '02:00:00:00:00:01', state: drain}
  - {service: web, address: 192.0.2.12, weight: 0}
";

fn faults(text: &str) -> Vec<String> {
    read(text).map(|document| document.objects.len()).unwrap_err()
}

fn named<'a>(document: &'a Document, name: &str) -> &'a Object {
    document.objects.iter().find(|object| object.name() == name).unwrap()
}

fn yaml(document: &Document) -> String {
    serde_saphyr::to_string(&super::document(&document.objects, document.settings.as_ref())).unwrap()
}

#[test]
fn a_file_becomes_the_messages_that_it_says() {
    let document = read(TABLE).unwrap();
    let vip: v1::Vip = named(&document, "vip 192.0.2.1").message.transcode_to().unwrap();
    assert_eq!((vip.prefer.as_str(), vip.unmatched()), ("lb1", v1::Unmatched::Reject));
    let service: v1::Service = named(&document, "service web").message.transcode_to().unwrap();
    assert_eq!((service.ports[0].first, service.on_all_down()), (80, v1::OnAllDown::FailOpen));
    let Some(v1::check::Probe::Http(http)) = &service.checks.as_ref().unwrap().checks[0].probe else { panic!() };
    assert_eq!((http.path.as_str(), http.status_last), ("/ready", 204));
    let backend: v1::Backend = named(&document, "backend web 2001:db8::11").message.transcode_to().unwrap();
    assert_eq!(
        (backend.mac.as_str(), backend.weight, backend.state()),
        ("02:00:00:00:00:01", None, v1::AdminState::Drain)
    );
    let other: v1::Backend = named(&document, "backend web 192.0.2.12").message.transcode_to().unwrap();
    assert_eq!(other.weight, Some(0), "0 is no default of it");
    let settings: v1::ClusterSettings = document.settings.as_ref().unwrap().message.transcode_to().unwrap();
    assert_eq!((settings.timing.as_deref(), settings.lease_ms), (Some("relaxed"), None));
    // JSON is the same to it.
    let json = serde_json::to_string(&super::document(&document.objects, document.settings.as_ref())).unwrap();
    assert_eq!(yaml(&read(&json).unwrap()), yaml(&document));
    assert!(read("").unwrap().objects.is_empty());
}

#[test]
fn every_fault_is_told_with_its_line_and_what_may_have_been_meant() {
    let text = "\
vips:
  - address: 192.0.2.1
    owner: lb1
  - address: 192.0.2.1
servces: []
services:
  - {name: 80, vip: 192.0.2.1}
  - name: web
    vip: 192.0.2.1
    affinity: sauce
    ports: 80
backends:
  - {service: web, address: 192.0.2.11, wieght: 2}
  - {service: web, address: 192.0.2.12, weight: -1}
  - {service: web, address: 192.0.2.13, weight: 1.5}
  - {service: web}
  - web
";
    let expected = [
        "line 3: 'owner' is set by the cluster: leave it out",
        "line 4: vip 192.0.2.1 stands in line 2 already",
        "line 5: there is no 'servces' in a table (did you mean 'services'?)",
        "line 7: 'name' is 80, and must be a text: put it in quotes",
        "line 7: a service needs 'name'",
        "line 10: 'affinity' is flow, source, and not 'sauce' (did you mean 'source'?)",
        "line 11: 'ports' is a number, and not a list",
        "line 13: there is no field 'wieght' in a backend (did you mean 'weight'?)",
        "line 14: 'weight' is -1, and must be a number from 0 to 4294967295",
        "line 15: 'weight' is 1.5, and must be a whole number",
        "line 16: a backend needs 'address'",
        "line 17: it is a text, and not a mapping with the fields of a backend",
    ];
    assert_eq!(faults(text), expected);
    let [cut] = faults("vips: [").try_into().unwrap();
    assert!(cut.contains("line 1"), "{cut}");
    let [twice] = faults("vips: []\nvips: []").try_into().unwrap();
    assert!(twice.contains("vips"), "{twice}");
    assert_eq!(
        faults("- 1"),
        ["line 1: it is a list, and not a mapping with segments, vips, services, backends, settings"]
    );
    let many = format!("vips:\n{}", "  - {address: 1.2.3.4, x: 1}\n".repeat(30));
    let told = faults(&many);
    assert_eq!((told.len(), told.last().unwrap().as_str()), (21, "and 39 more"));
}

#[test]
fn rows_are_created_changed_and_pruned_in_an_order_that_holds() {
    let table = read(TABLE).unwrap();
    let wanted = read(
        "
services:
  - {name: dns, vip: 192.0.2.1, ports: [{protocol: udp, first: 53, last: 53}]}
backends:
  - {service: dns, address: 192.0.2.12}
  - {service: web, address: '2001:db8:0::11'}
",
    )
    .unwrap();
    let told = |others| -> Vec<String> {
        let planned = plan(&wanted, &table.objects, others).unwrap();
        let verb = |of: &Planned| match of.mutation.change.as_ref().unwrap() {
            v1::mutation::Change::CreateService(_) | v1::mutation::Change::CreateBackend(_) => "create",
            v1::mutation::Change::UpdateBackend(_) => "update",
            v1::mutation::Change::DeleteService(_) | v1::mutation::Change::DeleteBackend(_) => "delete",
            other => panic!("{other:?}"),
        };
        planned.iter().map(|of| format!("{} {}", verb(of), of.object.name())).collect()
    };
    let kept = ["create service dns", "create backend dns 192.0.2.12", "update backend web 2001:db8::11"];
    assert_eq!(told(Others::Stay), kept);
    // VIPs are not listed, so none goes; those that need others go first.
    let gone = ["delete backend web 192.0.2.12", "delete service web"];
    assert_eq!(told(Others::Go), [&gone[..], &kept[..]].concat());
    let update = plan(&wanted, &table.objects, Others::Stay).unwrap().pop().unwrap().mutation;
    let Some(v1::mutation::Change::UpdateBackend(update)) = update.change else { panic!() };
    assert_eq!(update.update_mask.unwrap().paths, ["weight", "mac", "state", "tier"]);
    assert_eq!((update.weight, update.mac, update.service.as_str()), (None, None, "web"));
}

#[test]
fn what_never_changes_is_refused_before_anything_is_sent() {
    let table = read(TABLE).unwrap();
    let same = read("services: [{name: web, vip: '192.0.2.1', ports: [{protocol: tcp, first: 80}]}]").unwrap();
    plan(&same, &table.objects, Others::Stay).unwrap();
    let other = read("services:\n  - {name: web, vip: 192.0.2.9, table_size: 65537}").unwrap();
    let faults = plan(&other, &table.objects, Others::Stay).unwrap_err();
    assert!(faults[0].starts_with("line 2: 'vip' of service web is 192.0.2.1 for as long as it exists"), "{faults:?}");
    assert!(faults[1].contains("'table_size'") && faults.len() == 2, "{faults:?}");
    // A snapshot is restored all the same: the service and its backends go and come.
    let restored = plan(&other, &table.objects, Others::MadeAnew).unwrap();
    let rows: Vec<String> = restored.iter().map(|of| of.object.name()).collect();
    assert_eq!(rows[2..], ["service web", "service web"], "{rows:?}");
    assert!(rows[..2].iter().all(|row| row.starts_with("backend web ")), "{rows:?}");
}

#[test]
fn a_change_is_told_field_by_field() {
    let web = |weight, state: v1::AdminState| v1::Backend {
        service: "web".into(),
        address: "192.0.2.11".into(),
        weight: Some(weight),
        state: state.into(),
        ..v1::Backend::default()
    };
    let change =
        |before, after| v1::Change { row: Some(v1::change::Row::Backend(v1::BackendChange { before, after })) };
    let lines = |before, after| -> Vec<String> {
        let changes = changes(&[change(before, after)], Fields::Settable);
        changes.iter().flat_map(|change| change.lines()).map(|(sign, line)| format!("{sign} {line}")).collect()
    };
    let (one, two) = (web(1, v1::AdminState::Active), web(2, v1::AdminState::Drain));
    let added = ["+ backend web 192.0.2.11", "+     weight: 1", "+     state: active"];
    assert_eq!(lines(None, Some(one.clone())), added);
    assert_eq!(lines(Some(one.clone()), None), ["- backend web 192.0.2.11"]);
    let changed = ["~ backend web 192.0.2.11", "~     state: active -> drain", "~     weight: 1 -> 2"];
    assert_eq!(lines(Some(one.clone()), Some(two)), changed);
    // What the cluster finds of it is no change of the table that a file says.
    let found = v1::Backend { health: v1::Health::Healthy.into(), revision: 9, ..one.clone() };
    assert!(lines(Some(one), Some(found)).is_empty());
}

#[test]
fn the_schema_has_every_field_that_is_read_and_says_what_it_is() {
    let schema = schema();
    for shape in SHAPES {
        let fields = &schema["properties"][shape.plural]["items"]["properties"];
        let names: Vec<&String> = fields.as_object().unwrap().keys().collect();
        assert_eq!(names.len(), shape.settable().len(), "{names:?}");
    }
    let backend = &schema["properties"]["backends"]["items"];
    assert_eq!(backend["required"], serde_json::json!(["service", "address"]));
    assert!(
        backend["properties"]["weight"]["description"].as_str().unwrap().contains("share of new flows"),
        "{backend}"
    );
    assert!(backend["properties"].get("health").is_none());
}

fn text() -> impl Strategy<Value = String> {
    // What YAML may take for something else.
    prop_oneof![
        Just("no"),
        Just("1e3"),
        Just("~"),
        Just("0x1f"),
        Just("null"),
        Just("- a: b"),
        Just("a: #b"),
        Just("12:30:45")
    ]
    .prop_map(ToOwned::to_owned)
    .boxed()
    .prop_union("[a-z0-9 .:'\"{}\\[\\]-]{1,12}".boxed())
}

fn backend() -> impl Strategy<Value = v1::Backend> {
    (text(), any::<[u8; 4]>(), proptest::option::of(0u32..1001), text(), 0..4i32, 0..3u32).prop_map(
        |(service, address, weight, mac, state, tier)| v1::Backend {
            service,
            address: std::net::Ipv4Addr::from(address).to_string(),
            weight,
            mac,
            state,
            tier,
            ..v1::Backend::default()
        },
    )
}

fn service() -> impl Strategy<Value = v1::Service> {
    let probe =
        (text(), proptest::collection::vec(any::<u8>(), 0..4), any::<bool>()).prop_map(|(path, bytes, is_http)| {
            match is_http {
                true => v1::check::Probe::Http(v1::HttpProbe {
                    path,
                    tls: Some(v1::TlsProbe::default()),
                    ..v1::HttpProbe::default()
                }),
                false => v1::check::Probe::Udp(v1::UdpProbe { payload: bytes.clone(), answer: bytes }),
            }
        });
    let checks = proptest::collection::vec(probe.prop_map(|probe| v1::Check { port: 0, probe: Some(probe) }), 0..3);
    (text(), proptest::option::of(checks), 0..3i32, 1..65536u32).prop_map(|(name, checks, affinity, port)| {
        v1::Service {
            name,
            vip: "192.0.2.1".into(),
            ports: vec![v1::PortRange { protocol: 1, first: port, last: port }],
            affinity,
            checks: checks.map(|checks| v1::CheckList { checks }),
            ..v1::Service::default()
        }
    })
}

/// The first of each name.
fn document_of(services: Vec<v1::Service>, backends: Vec<v1::Backend>) -> Document {
    let all = services
        .iter()
        .map(|row| of_message(&SERVICE, row))
        .chain(backends.iter().map(|row| of_message(&BACKEND, row)));
    let mut seen = std::collections::BTreeSet::new();
    Document {
        objects: all.filter(|object| seen.insert((object.shape.plural, object.key()))).collect(),
        listed: SHAPES.to_vec(),
        ..Document::default()
    }
}

fn documents() -> impl Strategy<Value = Document> {
    (proptest::collection::vec(service(), 0..4), proptest::collection::vec(backend(), 0..6))
        .prop_map(|(services, backends)| document_of(services, backends))
}

/// What the mutations make of a table: as the cluster does it, for rows whose fields all are given.
fn applied(table: &Document, planned: &[Planned]) -> Document {
    let mut after = table.clone();
    for of in planned {
        after.objects.retain(|object| (object.shape.plural, object.key()) != of.row());
        let deletes = matches!(
            of.mutation.change,
            Some(v1::mutation::Change::DeleteService(_) | v1::mutation::Change::DeleteBackend(_))
        );
        after.objects.extend((!deletes).then(|| of.object.clone()));
    }
    after.objects.sort_by_key(|object| (SHAPES.iter().position(|shape| *shape == object.shape), object.key()));
    after
}

fn sorted(document: &Document) -> Vec<(String, Vec<(String, Shown)>)> {
    let mut rows: Vec<_> = document.objects.iter().map(|object| (object.name(), object.shown())).collect();
    rows.sort_by(|(a, _), (b, _)| a.cmp(b));
    rows
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_as_the_same(document in documents()) {
        let text = yaml(&document);
        let again = read(&text).unwrap_or_else(|faults| panic!("{faults:?} in\n{text}"));
        prop_assert_eq!(sorted(&again), sorted(&document));
        prop_assert_eq!(yaml(&again), text, "an export is stable");
    }

    #[test]
    fn a_plan_with_pruning_makes_of_any_table_the_one_that_is_wanted(from in documents(), to in documents()) {
        // Services whose fixed fields differ are another matter.
        let planned = plan(&to, &from.objects, Others::Go);
        prop_assert_eq!(sorted(&applied(&from, &planned.unwrap())), sorted(&to));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,80}", tail in proptest::sample::select(vec!["", "\nvips: [{}]", "\nbackends: {", "&a [*a]"])) {
        drop(read(&(text + tail)));
    }
}
