use std::time::Duration;

use super::*;

const MINIMAL: &str = r#"
[tls]
insecure = true
[node]
name = "lb1"
data_dir = "/var/lib/lbd"
[cluster]
listen = "127.0.0.1:7401"
[dataplane]
interfaces = ["eth0"]
"#;

fn parsed(text: &str) -> Result<Config, Vec<Fault>> {
    parse(text.parse().unwrap())
}

fn faults(text: &str) -> Vec<String> {
    parsed(text).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn a_minimal_file_has_defaults_for_the_rest() {
    let config = parsed(MINIMAL).unwrap();
    assert_eq!(config.role, Role::Lb);
    assert_eq!(config.cluster.name.as_str(), "lb");
    assert_eq!(config.cluster.advertise, "127.0.0.1:7401");
    assert!(!config.cluster.bootstrap && config.tls.paths.is_none());
    assert_eq!(config.api, [ApiListener::Unix("/run/lbd/lbd.sock".into())]);
    let dataplane = Dataplane {
        interfaces: vec!["eth0".into()],
        engine: None,
        workers: 1,
        realtime: false,
        busy_poll: Duration::ZERO,
        cpus: Vec::new(),
        accelerator: Accelerate::Off,
        flows: 1 << 21,
    };
    assert_eq!(config.dataplane, Some(dataplane));
}

#[test]
fn every_fault_is_reported_with_its_key() {
    let all = faults(
        r#"
        nodes = 1
        [node]
        name = "l b"
        rol = "lb"
        data_dir = "relative"
        [cluster]
        listen = ["10.0.0.1"]
        bootstrap = "yes"
        [api]
        listen = "nowhere"
        [dataplane]
        interfaces = [1]
        engine = "turbo"
        workers = 0
        cpus = [2, 3, 2]
        flows = 100
        [metrics]
        listen = "everywhere"
        [tls]
        ca = "relative"
        "#,
    );
    let keys = [
        "node.name",
        "node.data_dir",
        "node.rol",
        "cluster.listen",
        "cluster.bootstrap",
        "api.listen",
        "dataplane.interfaces",
        "dataplane.engine",
        "dataplane.workers",
        "dataplane.cpus",
        "dataplane.flows",
        "metrics.listen",
        "tls.cert",
        "tls.key",
        "tls.ca",
        "nodes",
    ];
    for key in keys {
        assert!(all.iter().any(|fault| fault.starts_with(&format!("{key}: "))), "{key} is missing in {all:#?}");
    }
    assert_eq!(all.len(), keys.len(), "{all:#?}");
}

#[test]
fn tcp_needs_certificates_or_the_word_that_it_does_without() {
    let with = |tls: &str| MINIMAL.replace("[tls]\ninsecure = true", tls);
    let all = r#"cert = "/a.pem"
key = "/a.key"
ca = "/ca.pem""#;
    let paths = parsed(&with(&format!("[tls]\n{all}"))).unwrap().tls.paths.unwrap();
    assert_eq!((paths.cert, paths.key, paths.crl), ("/a.pem".into(), "/a.key".into(), None));
    let fault = |tls: &str| faults(&with(tls)).join("\n");
    assert!(fault("").starts_with("tls.cert: is required: the cluster's TCP listener"), "loopback, too: {}", fault(""));
    assert!(fault("[tls]\ninsecure = false").contains("lbctl pki"));
    assert!(fault(&format!("[tls]\n{all}\ninsecure = true")).starts_with("tls.insecure: is true, and certificates"));
    assert!(fault("[tls]\ncert = \"/a.pem\"").contains("tls.key: is required beside the others"));
    assert!(fault("[tls]\ncrl = \"/crl.pem\"").contains("tls.ca: is required beside the others"));
    assert!(fault("[tls]\ncert = \"a.pem\"").starts_with("tls.cert: "));
    let api = format!("{}\n[api]\nlisten = \"127.0.0.1:7400\"", with(""));
    assert!(faults(&api)[0].contains("the cluster's and the API's TCP listener"));
}

#[test]
fn metrics_are_read_where_it_is_said() {
    let with = |section: &str| format!("{MINIMAL}\n{section}");
    assert_eq!(parsed(MINIMAL).unwrap().metrics, None);
    let listen = "[metrics]\nlisten = \"127.0.0.1:9400\"";
    for (more, per_backend) in [("", true), ("\nper_backend = false", false)] {
        let metrics = parsed(&with(&format!("{listen}{more}"))).unwrap().metrics;
        assert_eq!(metrics, Some(Metrics { listen: "127.0.0.1:9400".parse().unwrap(), per_backend }));
    }
    assert!(faults(&with("[metrics]"))[0].starts_with("metrics.listen: is required"));
    let taken = faults(&with("[metrics]\nlisten = \"127.0.0.1:7401\""));
    assert!(taken[0].contains("is listened to already"), "{taken:?}");
}

#[test]
fn numbers_have_their_ends() {
    let with = |line: &str| parsed(&MINIMAL.replace("[\"eth0\"]", &format!("[\"eth0\"]\n{line}"))).is_ok();
    let interfaces = |count: usize| {
        let names: Vec<String> = (0..count).map(|number| format!("eth{number}")).collect();
        parsed(&MINIMAL.replace("[\"eth0\"]", &format!("{names:?}"))).is_ok()
    };
    assert_eq!([0, 1, 64, 65].map(interfaces), [false, true, true, false]);
    let all = [("workers", [1i64, 64], [0, 65]), ("flows", [1 << 16, 1 << 28], [(1 << 16) - 1, (1 << 28) + 1])];
    for (key, sound, wrong) in all {
        for number in sound {
            assert!(with(&format!("{key} = {number}")), "{key} = {number}");
        }
        for number in wrong.into_iter().chain([-1]) {
            assert!(!with(&format!("{key} = {number}")), "{key} = {number}");
        }
    }
}

#[test]
fn an_unspecified_address_needs_an_advertised_one() {
    let any = MINIMAL.replace("127.0.0.1:7401", "0.0.0.0:7401");
    assert!(faults(&any)[0].starts_with("cluster.advertise: is required"));
}

#[test]
fn a_witness_has_no_dataplane_and_needs_none() {
    let witness = MINIMAL.replace("[node]", "[node]\nrole = \"witness\"");
    assert!(faults(&witness)[0].starts_with("dataplane.interfaces: a witness"));
    let witness = witness.replace("[dataplane]\ninterfaces = [\"eth0\"]", "");
    assert_eq!(parsed(&witness).unwrap().dataplane, None);
}

#[test]
fn values_that_would_do_harm_are_refused() {
    let twice = MINIMAL.replace("[\"eth0\"]", "[\"eth0\", \"eth0\"]");
    assert!(faults(&twice)[0].starts_with("dataplane.interfaces: \"eth0\" is listed twice"));
    let nowhere = MINIMAL.replace("[dataplane]", "advertise = \"0.0.0.0:0\"\n[dataplane]");
    assert!(faults(&nowhere)[0].starts_with("cluster.advertise: "));
    assert!(faults(&format!("{MINIMAL}\n[api]\nlisten = []"))[0].starts_with("api.listen: is empty"));
}

#[test]
fn an_address_that_others_cannot_dial_is_refused() {
    let with = |advertise: &str| MINIMAL.replace("[dataplane]", &format!("advertise = {advertise:?}\n[dataplane]"));
    for (advertise, word) in [
        ("http://10.77.1.4:7401", "http://"),
        ("fd00::1:7401", "brackets"),
        ("[fe80::1]:7401", "one link"),
        ("[2001:db8::1]:7401", "another IP family"),
        ("lb1", "no port"),
    ] {
        let fault = faults(&with(advertise)).remove(0);
        assert!(fault.starts_with("cluster.advertise: ") && fault.contains(word), "{fault}");
    }
    let listen = |listen: &str| MINIMAL.replace("\"127.0.0.1:7401\"", &format!("{listen:?}"));
    let api = |listen: &str| format!("{MINIMAL}\n[api]\nlisten = [{listen:?}]");
    for (address, word) in [
        ("[fe80::1]:7401", "one link"),
        ("127.0.0.1:0", "port 0"),
        ("224.0.0.5:7401", "no single machine"),
        ("[ff02::1]:7401", "no single machine"),
    ] {
        for (key, text) in [("cluster.listen: ", listen(address)), ("api.listen: ", api(address))] {
            let all = faults(&text);
            assert!(all.iter().any(|f| f.starts_with(key) && f.contains(word)), "{key}{address}: {all:?}");
        }
    }
    assert!(faults(&listen("fd00::1")).iter().any(|fault| fault.contains("brackets")));
    for taken in ["127.0.0.1:7401", "0.0.0.0:7401"] {
        assert!(faults(&api(taken)).iter().any(|fault| fault.contains("cannot have one port both")), "{taken}");
    }
    let twice = format!("{MINIMAL}\n[api]\nlisten = [\"127.0.0.1:7400\", \"127.0.0.1:7400\"]");
    assert!(faults(&twice).iter().any(|fault| fault.contains("listed twice")));
}

#[test]
fn what_is_legal_and_suspicious_is_warned_of() {
    let suspicions = |text: &str| parsed(text).unwrap().suspicions().join("\n");
    let exposed = MINIMAL.replace("127.0.0.1:7401", "10.77.1.1:7401");
    assert_eq!(suspicions(&exposed), "");
    let with = |line: &str| exposed.replace("[dataplane]", &format!("{line}\n[dataplane]"));
    assert!(suspicions(&with("bootstrap = true")).contains("NEW cluster"));
    assert!(suspicions(&with("advertise = \"127.0.0.1:7401\"")).contains("reaches no other machine"));
    assert!(suspicions(&with("advertise = \"10.77.9.9:7401\"")).contains("none of cluster.listen"));
}

#[test]
fn the_example_in_deploy_has_no_fault() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/lbd.example.toml");
    load(&path).unwrap();
}

/// The manual page and the example have each key that can be set, in its section.
#[test]
fn the_manual_has_every_key() {
    let manual = include_str!("../../../deploy/man/lbd.toml.5");
    let example = include_str!("../../../deploy/config/lbd.example.toml");
    let section_of = |text: &str, heading: &str| -> String {
        text.split_once(heading)
            .map(|(_, rest)| rest.split("\n.SS").next().unwrap_or_default().to_owned())
            .unwrap_or_default()
    };
    for section in ["node", "cluster", "api", "tls", "metrics", "dataplane"] {
        // A key that is not known names those that are.
        let known = match section {
            "dataplane" => faults(&MINIMAL.replace("[dataplane]", "[dataplane]\nunknown = 1")),
            "metrics" => faults(&format!("{MINIMAL}[metrics]\nlisten = \"127.0.0.1:9400\"\nunknown = 1")),
            "api" => faults(&format!("{MINIMAL}[api]\nunknown = 1")),
            of => faults(&MINIMAL.replace(&format!("[{of}]"), &format!("[{of}]\nunknown = 1"))),
        };
        let (_, keys) = known[0].split_once("known are: ").unwrap();
        for key in keys.split(", ") {
            let page = section_of(manual, &format!(".SS [{section}]"));
            assert!(page.contains(&format!("\n.B {key}\n")), "{section}.{key} is not in lbd.toml(5)");
            let is_set = |line: &str| line.trim_start_matches(['#', ' ']).split([' ', '=']).next() == Some(key);
            assert!(example.lines().any(is_set), "{section}.{key} is not in the example");
        }
    }
}
