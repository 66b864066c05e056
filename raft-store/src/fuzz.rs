//! What others wrote is decoded without a panic, whatever it is, and what is decoded says the same when it is written
//! again. In each `cargo test` for a moment; for longer `BOLERO_RANDOM_ITERATIONS=20000000 cargo test -p lb-raft-store fuzz`, or
//! guided by coverage with cargo-bolero and a nightly compiler: `cargo bolero test -p lb-raft-store fuzz::...`.

use prost::Message as _;

use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};

use crate::{
    codec::{
        self,
        record::{self, PeerRequest, peer_request::Request},
    },
    raft::{SnapshotMeta, TypeConfig, records::entry},
    table::{
        Command, Table, decode_command, decode_reply, decode_saved, decode_table, encode_command, encode_reply,
        encode_table, golden::bytes, restore,
    },
};

/// A table that the version before feature level 2 wrote.
const TABLE: &[u8] = include_bytes!("table/golden/table.bin");

/// A command of each kind.
fn commands() -> Vec<Vec<u8>> {
    include_str!("table/golden/commands.txt").lines().map(|line| bytes(line.split_once(' ').unwrap().1)).collect()
}

/// The fuzzer's input as bytes to decode: as it is, or as changes of something sound, which reach further in.
fn bytes_of(input: &[u8], sound: &[Vec<u8>]) -> Vec<u8> {
    let Some((&which, rest)) = input.split_first() else { return Vec::new() };
    let Some(at) = usize::from(which).checked_sub(1) else { return rest.to_vec() };
    let mut bytes = sound[at % sound.len()].clone();
    for change in rest.chunks_exact(4) {
        let [low, high, how, value] = change.try_into().unwrap_or_default();
        let at = usize::from(u16::from_le_bytes([low, high])) % (bytes.len() + 1);
        match how % 3 {
            0 => bytes.insert(at, value),
            1 if at < bytes.len() => bytes[at] = value,
            _ if at < bytes.len() => drop(bytes.remove(at)),
            _ => {}
        }
    }
    bytes
}

fn table() -> Table {
    decode_table(TABLE).unwrap()
}

#[test]
fn commands_are_decoded_or_refused_and_applied_or_rejected() {
    let (sound, table) = (commands(), table());
    bolero::check!().for_each(|input: &[u8]| {
        let Ok(command) = decode_command(&bytes_of(input, &sound)) else { return };
        assert_eq!(decode_command(&encode_command(&command)).as_ref(), Ok(&command));
        let applied = table.clone().apply(table.revision() + 1, &command);
        let reply = encode_reply(&applied.reply);
        assert_eq!(encode_reply(&decode_reply(&reply).unwrap()), reply);
    });
}

#[test]
fn tables_and_snapshots_are_decoded_or_refused_and_restored() {
    let (sound, present) =
        (vec![TABLE.to_vec(), include_bytes!("../tests/fixtures/snapshot-level-1").to_vec()], table());
    bolero::check!().for_each(|input: &[u8]| {
        let Ok(saved) = decode_saved(&bytes_of(input, &sound)) else { return };
        let again = encode_table(&saved);
        assert_eq!(encode_table(&decode_table(&again).unwrap()), again);
        if let Some(body) = restore(&present, &saved) {
            drop(present.clone().apply(present.revision() + 1, &Command::from(body)));
        }
    });
}

#[test]
fn replies_are_decoded_or_refused() {
    let sound: Vec<Vec<u8>> = {
        let (mut table, first) = (table(), table().revision() + 1);
        let of = |bytes: &Vec<u8>| decode_command(bytes).unwrap();
        let apply = |(at, command): (u64, Command)| encode_reply(&table.apply(at, &command).reply);
        (first..).zip(commands().iter().map(of)).map(apply).collect()
    };
    bolero::check!().for_each(|input: &[u8]| {
        let Ok(reply) = decode_reply(&bytes_of(input, &sound)) else { return };
        let again = encode_reply(&reply);
        assert_eq!(encode_reply(&decode_reply(&again).unwrap()), again);
    });
}

#[test]
fn entries_of_the_log_are_decoded_or_refused() {
    let id = record::LogId { term: 3, index: 9 };
    let of = |payload| record::Entry { id: Some(id), payload }.encode_to_vec();
    let mut sound: Vec<Vec<u8>> =
        commands().into_iter().map(|command| of(Some(record::entry::Payload::Command(command)))).collect();
    sound.push(of(None));
    bolero::check!().for_each(|input: &[u8]| {
        let Ok(record) = codec::decode::<record::Entry>(&bytes_of(input, &sound)) else { return };
        let Ok(decoded) = entry(record) else { return };
        let again = record::Entry::from(&decoded).encode_to_vec();
        assert_eq!(record::Entry::from(&entry(codec::decode(&again).unwrap()).unwrap()).encode_to_vec(), again);
    });
}

/// What a node may ask of another one.
fn requests() -> Vec<Vec<u8>> {
    let vote = || Some(record::Vote { term: 3, node: 1, committed: true });
    let last = || Some(record::LogId { term: 3, index: 9 });
    let entries = |command: &Vec<u8>| {
        vec![record::Entry { id: last(), payload: Some(record::entry::Payload::Command(command.clone())) }]
    };
    let membership = record::Membership {
        configs: vec![record::Voters { voters: vec![1, 2, 3] }],
        nodes: (1..4).map(|node| (node, format!("10.9.0.1{node}:7401"))).collect(),
    };
    let ballot = || record::Ballot { vote: vote(), last: last(), transfer: true, granted: false };
    let meta = record::SnapshotMeta { last: last(), membership_id: last(), membership: Some(membership) };
    let mut requests: Vec<Request> = commands()
        .iter()
        .map(|command| {
            let append = record::Append { vote: vote(), previous: last(), entries: entries(command), commit: last() };
            Request::Append(append)
        })
        .collect();
    requests.extend([
        Request::Vote(ballot()),
        Request::PreVote(ballot()),
        Request::Transfer(record::Transfer { vote: vote(), to: 2, last: last() }),
        Request::Snapshot(record::Snapshot { vote: vote(), meta: Some(meta), data: TABLE.to_vec() }),
    ]);
    let request = |request| PeerRequest { cluster: vec![7; 16], from: 1, to: 2, request: Some(request) };
    requests.into_iter().map(|kind| request(kind).encode_to_vec()).collect()
}

#[test]
fn what_other_nodes_ask_is_decoded_or_refused() {
    let sound = requests();
    bolero::check!().for_each(|input: &[u8]| {
        let Ok(PeerRequest { request: Some(request), .. }) = PeerRequest::decode(bytes_of(input, &sound).as_slice())
        else {
            return;
        };
        match request {
            Request::Append(append) => drop(AppendEntriesRequest::<TypeConfig>::try_from(append)),
            Request::Vote(ballot) | Request::PreVote(ballot) => drop(VoteRequest::<TypeConfig>::try_from(ballot)),
            Request::Transfer(transfer) => drop(TransferLeaderRequest::<TypeConfig>::try_from(transfer)),
            Request::Snapshot(snapshot) => {
                drop(snapshot.meta.map(SnapshotMeta::try_from));
                drop(decode_table(&snapshot.data));
            }
            // Bytes and numbers that are decoded elsewhere.
            _ => {}
        }
    });
}
