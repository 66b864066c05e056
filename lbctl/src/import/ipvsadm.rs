//! The rules that `ipvsadm -Sn` saves (ipvsadm(8)).

use std::net::SocketAddr;

use lb_proto::v1;

use super::{
    Imported,
    services::{self, PERSISTENCE, Real, Virtual},
};

/// Reads rules.
pub(crate) fn ipvsadm(text: &str) -> Imported {
    let (mut found, mut notes): (Vec<Virtual>, Vec<(u64, String)>) = (Vec::new(), Vec::new());
    for (line, text) in (1..).zip(text.lines()) {
        let words: Vec<&str> = text.split_whitespace().collect();
        // A script has the command before each rule.
        let words = words.strip_prefix(&["ipvsadm"]).unwrap_or(&words);
        match words.split_first() {
            None => {}
            Some((first, _)) if first.starts_with('#') => {}
            Some((&("-A" | "--add-service"), rest)) => match virtual_server(line, rest, &mut notes) {
                Ok(of) => found.push(of),
                Err(why) => notes.push((line, format!("left out: {why}"))),
            },
            Some((&("-a" | "--add-server"), rest)) => match real_server(line, rest, &mut notes) {
                Ok((address, protocol, real)) => {
                    let is_its = |of: &&mut Virtual| (of.address, of.protocol) == (address, protocol);
                    match found.iter_mut().rev().find(is_its) {
                        Some(of) => of.backends.push(real),
                        None => notes.push((line, format!("left out: there is no virtual server {address} before it"))),
                    }
                }
                Err(why) => notes.push((line, format!("left out: {why}"))),
            },
            Some((other, _)) => notes.push((line, format!("left out: '{other}' adds nothing (-A and -a do)"))),
        }
    }
    services::rows(found, notes)
}

/// What an option is followed by.
fn value<'a>(words: &[&'a str], names: &[&str]) -> Option<&'a str> {
    let at = words.iter().position(|word| names.contains(word))?;
    words.get(at + 1).copied()
}

/// Which virtual server is meant.
fn meant(words: &[&str]) -> Result<(SocketAddr, v1::Protocol), String> {
    let protocols = [(&["-t", "--tcp-service"][..], v1::Protocol::Tcp), (&["-u", "--udp-service"], v1::Protocol::Udp)];
    for (names, protocol) in protocols {
        if let Some(text) = value(words, names) {
            return Ok((address(text)?, protocol));
        }
    }
    if let Some(mark) = value(words, &["-f", "--fwmark-service"]) {
        return Err(format!(
            "a service by the firewall mark {mark} has no address of its own: declare one for each VIP and port"
        ));
    }
    if value(words, &["--sctp-service"]).is_some() {
        return Err("SCTP is not balanced: TCP and UDP are".to_owned());
    }
    Err("it names no virtual server (-t or -u ADDRESS:PORT)".to_owned())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let known = text.parse().or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, 0)));
    known.map_err(|_| format!("'{text}' is no ADDRESS:PORT; 'ipvsadm -Sn' saves numbers"))
}

fn virtual_server(line: u64, words: &[&str], notes: &mut Vec<(u64, String)>) -> Result<Virtual, String> {
    let (address, protocol) = meant(words)?;
    // Nothing is checked by IPVS itself.
    let mut service = v1::Service { checks: Some(v1::CheckList::default()), ..v1::Service::default() };
    let (affinity, said) = services::scheduler(value(words, &["-s", "--scheduler"]).unwrap_or("wlc"));
    service.affinity = affinity.into();
    notes.extend(said.map(|said| (line, said)));
    if words.iter().any(|word| ["-p", "--persistent"].contains(word)) {
        service.affinity = v1::Affinity::Source.into();
        notes.push((line, PERSISTENCE.to_owned()));
    }
    for (names, what) in [
        (&["-o", "--ops"][..], "one-packet scheduling: each packet by itself; a flow of UDP keeps its backend here"),
        (&["-b", "--sched-flags"], "flags of the scheduler"),
        (&["-M", "--netmask"], "a netmask of persistence: the whole source address counts here"),
        (&["--pe"], "a persistence engine"),
    ] {
        if words.iter().any(|word| names.contains(word)) {
            notes.push((line, format!("not carried over: {what}")));
        }
    }
    Ok(Virtual { line, name: None, address, protocol, service, backends: Vec::new() })
}

fn real_server(
    line: u64,
    words: &[&str],
    notes: &mut Vec<(u64, String)>,
) -> Result<(SocketAddr, v1::Protocol, Real), String> {
    let (of, protocol) = meant(words)?;
    let real = value(words, &["-r", "--real-server"]).ok_or("it names no real server (-r ADDRESS:PORT)")?;
    let weight = value(words, &["-w", "--weight"]).unwrap_or("1");
    let weight = weight.parse().map_err(|_| format!("'{weight}' is no weight"))?;
    let is = |names: &[&str]| words.iter().any(|word| names.contains(word));
    let method = match () {
        () if is(&["-m", "--masquerading"]) => "NAT",
        () if is(&["-i", "--ipip"]) => "TUN",
        () => "DR",
    };
    notes.extend(services::method(method).map(|said| (line, said)));
    for names in [&["-x", "--u-threshold"], &["-y", "--l-threshold"]] {
        if value(words, names).is_some_and(|limit| limit != "0") {
            notes.push((line, format!("not carried over: a threshold of connections ({})", names[1])));
        }
    }
    Ok((of, protocol, Real { line, address: address(real)?, weight, is_spare: false }))
}
