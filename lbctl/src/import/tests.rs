use lb_proto::v1;

use super::*;
use crate::declared;

fn yaml(imported: &Imported) -> String {
    serde_saphyr::to_string(&declared::document(&imported.document.objects, None)).unwrap()
}

fn service(imported: &Imported, name: &str) -> v1::Service {
    let named = |object: &&declared::Object| object.name() == format!("service {name}");
    imported
        .document
        .objects
        .iter()
        .find(named)
        .unwrap_or_else(|| panic!("{}", yaml(imported)))
        .message
        .transcode_to()
        .unwrap()
}

fn names(imported: &Imported) -> Vec<String> {
    imported.document.objects.iter().map(declared::Object::name).collect()
}

fn has(imported: &Imported, line: u64, words: &str) -> bool {
    imported.notes.iter().any(|(at, note)| *at == line && note.contains(words))
}

const KEEPALIVED: &str = r#"! Configuration File for keepalived
global_defs {
   router_id LVS_A
}
vrrp_instance VI_1 {
    state MASTER
    virtual_router_id 51
    authentication { auth_type PASS
        auth_pass "se cret" }
    virtual_ipaddress {
        192.0.2.1/24 dev eth0
        2001:db8::1
    }
}
virtual_server 192.0.2.1 443 {
    delay_loop 6
    lb_algo wrr
    lb_kind DR
    persistence_timeout 50
    protocol TCP
    sorry_server 192.0.2.200 443
    real_server 192.0.2.11 443
    {
        weight 3
        SSL_GET {
            url {
              path /ready?x=1
              digest ff20ad2481f97b1754ef3e12ecd3a9cc
              status_code 200-204
            }
            connect_timeout 3
            retry 2   # then it is down
        }
    }
    real_server 192.0.2.12 8443 {
        weight 2000
        TCP_CHECK { connect_port 8443
        }
    }
}
virtual_server_group dns {
    192.0.2.53-54 53
    fwmark 7
}
virtual_server group dns {
    lvs_sched sh
    lvs_method NAT
    protocol UDP
    real_server 192.0.2.21 53 {
        DNS_CHECK {
            type A
            name example.com
        }
    }
    real_server 192.0.2.22 53 {
        DNS_CHECK {
            type A
            name example.com
        }
    }
}
virtual_server fwmark 3 {
    real_server 192.0.2.11 80 { }
}
"#;

/// The nearest one counts, wherever it stands in its block (keepalived.conf(5)).
#[test]
fn a_virtual_host_is_that_of_the_check_or_the_real_server_or_the_virtual_one() {
    let host = |of_server: &str, of_real: &str, of_check: &str, of_url: &str| {
        let text = format!(
            "virtual_server 192.0.2.1 80 {{\n real_server 192.0.2.11 80 {{\n HTTP_GET {{\n url {{\n path /\n {of_url}\n }}\n \
             {of_check}\n }}\n {of_real}\n }}\n {of_server}\n }}\n"
        );
        let imported = keepalived(&text).unwrap();
        assert_eq!(imported.notes, [], "{text}");
        let web = service(&imported, "192.0.2.1-tcp-80");
        match web.checks.unwrap().checks.swap_remove(0).probe {
            Some(v1::check::Probe::Http(http)) => http.host,
            other => panic!("{other:?}"),
        }
    };
    let [server, real, check, url] =
        ["server", "real", "check", "url"].map(|name| format!("virtualhost {name}.example"));
    assert_eq!(host("", "", "", ""), "");
    assert_eq!(host(&server, "", "", ""), "server.example");
    assert_eq!(host(&server, &real, "", ""), "real.example");
    assert_eq!(host(&server, &real, &check, ""), "check.example");
    assert_eq!(host(&server, &real, &check, &url), "url.example");
}

#[test]
fn a_keepalived_configuration_becomes_a_table_and_what_does_not_is_told() {
    let imported = keepalived(KEEPALIVED).unwrap();
    let expected = [
        "vip 2001:db8::1",
        "vip 192.0.2.1",
        "vip 192.0.2.53",
        "vip 192.0.2.54",
        "service 192.0.2.1-tcp-443",
        "service dns",
        "service dns-2",
        "backend 192.0.2.1-tcp-443 192.0.2.200",
        "backend 192.0.2.1-tcp-443 192.0.2.11",
        "backend 192.0.2.1-tcp-443 192.0.2.12",
        "backend dns 192.0.2.21",
        "backend dns 192.0.2.22",
        "backend dns-2 192.0.2.21",
        "backend dns-2 192.0.2.22",
    ];
    assert_eq!(names(&imported), expected);
    let web = service(&imported, "192.0.2.1-tcp-443");
    assert_eq!(
        (web.affinity(), web.check_interval_ms, web.check_timeout_ms, web.fall),
        (v1::Affinity::Source, 6000, 3000, 3)
    );
    let Some(v1::check::Probe::Http(http)) = &web.checks.as_ref().unwrap().checks[0].probe else { panic!("{web:?}") };
    assert_eq!((http.path.as_str(), http.status_first, http.status_last), ("/ready?x=1", 200, 204));
    assert!(http.tls.as_ref().is_some_and(|tls| tls.skip_verify), "keepalived does not look at certificates");
    let dns = service(&imported, "dns-2");
    assert_eq!(
        (dns.vip.as_str(), dns.ports[0].protocol(), dns.affinity()),
        ("192.0.2.54", v1::Protocol::Udp, v1::Affinity::Source)
    );
    for (line, words) in [
        (2, "says nothing of a table"),
        (5, "VRRP is not needed"),
        (19, "persistence becomes affinity: source"),
        (21, "tier 2"),
        (28, "'digest' is left out"),
        (35, "serves port 8443, and its clients port 443"),
        (35, "the weight 2000 is 1000 here"),
        (35, "its checkers differ"),
        (43, "'fwmark 7' is no address"),
        (47, "NAT becomes direct server return"),
        (62, "the firewall mark 3"),
    ] {
        assert!(has(&imported, line, words), "line {line}: {words} is not in {:#?}", imported.notes);
    }
    // What is printed is what 'apply' reads.
    let text = yaml(&imported);
    let read = declared::read(&text).unwrap_or_else(|faults| panic!("{faults:?} in {text}"));
    assert_eq!(read.objects.len(), imported.document.objects.len());
}

#[test]
fn braces_that_do_not_match_are_told_with_their_line() {
    assert_eq!(keepalived("a {\n b {\n }\n").unwrap_err(), "line 1: the block that begins here does not end");
    assert!(keepalived("a {\n}\n}\n").unwrap_err().contains("line 3"));
    assert!(keepalived("{\n}\n").unwrap_err().contains("a block of nothing"));
    assert!(keepalived("").unwrap().document.objects.is_empty());
}

const IPVSADM: &str = "\
-A -t 192.0.2.1:80 -s wlc -p 300
-a -t 192.0.2.1:80 -r 192.0.2.11:80 -g -w 1
-a -t 192.0.2.1:80 -r 192.0.2.12:8080 -m -w 0
-A -u [2001:db8::1]:53 -s mh -b flag-1
-a -u [2001:db8::1]:53 -r [2001:db8::21]:53 -g -w 5 -x 100 -y 50
-A -f 1 -s rr
-a -f 1 -r 192.0.2.11:0 -g -w 1
-A -t web.example:80 -s rr
-C
";

#[test]
fn rules_of_ipvsadm_become_a_table_and_what_does_not_is_told() {
    let imported = ipvsadm(IPVSADM);
    let expected = [
        "vip 192.0.2.1",
        "vip 2001:db8::1",
        "service 192.0.2.1-tcp-80",
        "service 2001-db8--1-udp-53",
        "backend 192.0.2.1-tcp-80 192.0.2.11",
        "backend 192.0.2.1-tcp-80 192.0.2.12",
        "backend 2001-db8--1-udp-53 2001:db8::21",
    ];
    assert_eq!(names(&imported), expected);
    let web = service(&imported, "192.0.2.1-tcp-80");
    assert_eq!((web.affinity(), web.checks), (v1::Affinity::Source, Some(v1::CheckList::default())));
    for (line, words) in [
        (1, "the scheduler wlc becomes consistent hashing"),
        (1, "persistence becomes"),
        (3, "NAT becomes direct server return"),
        (3, "serves port 8080"),
        (4, "flags of the scheduler"),
        (5, "a threshold of connections"),
        (6, "the firewall mark 1"),
        (7, "the firewall mark 1"),
        (8, "'ipvsadm -Sn' saves numbers"),
        (9, "'-C' adds nothing"),
    ] {
        assert!(has(&imported, line, words), "line {line}: {words} is not in {:#?}", imported.notes);
    }
    let text = yaml(&imported);
    declared::read(&text).unwrap_or_else(|faults| panic!("{faults:?} in {text}"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_text_makes_an_importer_panic(
        words in proptest::collection::vec(
            proptest::sample::select(vec![
                "virtual_server", "192.0.2.1", "80", "{", "}", "\n", "real_server", "HTTP_GET", "url", "\"", "group", "fwmark",
                "virtual_server_group", "192.0.2.250-255", "weight", "-1", "delay_loop", "1e9", "connect_timeout", "retry", "#", "!",
                "-A", "-a", "-t", "-r", "-w", "[::1]:1", "status_code", "200-", "sorry_server", "vrrp_instance", "virtual_ipaddress",
            ]),
            0..40,
        ),
    ) {
        let text = words.join(" ");
        if let Ok(imported) = keepalived(&text) {
            drop(declared::read(&yaml(&imported)).unwrap());
        }
        drop(declared::read(&yaml(&ipvsadm(&text))).unwrap());
    }
}
