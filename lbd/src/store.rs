//! `lbd store`: what is in this node's store, and whether it is sound. Offline, and without a change.

use std::{fmt::Write as _, process::ExitCode};

use lb_raft_store::StoreReport;
use serde_json::json;

use crate::{
    cli::{Output, StoreCommand},
    config::Config,
    exit::{Exit, Failure},
    terminal,
};

pub(crate) fn run(config: &Config, command: &StoreCommand) -> Result<ExitCode, Failure> {
    let report = lb_raft_store::inspect(&config.data_dir)?;
    let (StoreCommand::Check { output } | StoreCommand::Show { output }) = command;
    match (output, command) {
        (Output::Json, _) => terminal::say(&format!("{:#}", as_json(&report))),
        (Output::Text, StoreCommand::Show { .. }) => terminal::say(shown(&report).trim_end()),
        (Output::Text, StoreCommand::Check { .. }) => terminal::say(&verdict(&report)),
    }
    for damage in &report.damage {
        terminal::complain(&format!("lbd: {damage}"));
    }
    Ok(if report.damage.is_empty() { ExitCode::SUCCESS } else { Exit::Store.into() })
}

fn position(of: Option<(u64, u64)>) -> String {
    of.map_or("none".to_owned(), |(term, index)| format!("term {term}, index {index}"))
}

/// In one line.
fn verdict(report: &StoreReport) -> String {
    if !report.damage.is_empty() {
        return "damaged".to_owned();
    }
    let (sled, last) = (sled(report), position(report.last));
    let worse = report.snapshots.iter().filter(|snapshot| snapshot.problem.is_some()).map(|snapshot| &snapshot.file);
    let worse: String = worse.map(|file| format!("; snapshot {file} is damaged, look after the disk")).collect();
    format!("sound; last entry {last}; sled {sled}{worse}")
}

fn sled(report: &StoreReport) -> String {
    match &report.sled {
        _ if report.journal.is_none() => "holds it all".to_owned(),
        sled if sled.torn.is_some() => {
            format!("is made anew at the next start: {}", sled.torn.as_deref().unwrap_or_default())
        }
        sled if sled.differs > 0 => format!("is mended at the next start, by {} entries", sled.differs),
        _ => "agrees with the journal".to_owned(),
    }
}

fn shown(report: &StoreReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Into a string.
        let _ = writeln!(text, "{name:<13}{value}");
    };
    let node = report.node.as_ref();
    line("node", node.map_or("none yet: it waits to be added".into(), |node| format!("{} ({})", node.name, node.id)));
    line("cluster", node.map_or("none".into(), |node| format!("{} ({})", node.cluster_name, node.cluster)));
    line("store", report.store.to_string());
    line("starts", report.starts.to_string());
    line("last entry", position(report.last));
    let committed = |committed| if committed { ", by a majority" } else { "" };
    let vote = report.vote.map(|(term, node, majority)| format!("term {term}, for node {node}{}", committed(majority)));
    line("last vote", vote.unwrap_or_else(|| "none".into()));
    line("log begins", report.purged.map_or("at index 0".into(), |(_, index)| format!("behind index {index}")));
    if let Some(journal) = &report.journal {
        let bytes: u64 = journal.segments.iter().map(|(_, bytes)| bytes).sum();
        let (segments, record, entries) = (journal.segments.len(), journal.last_record, journal.entries);
        line("journal", format!("{segments} segments, {bytes} bytes; {entries} entries; last record {record}"));
    } else if report.damage.is_empty() {
        line(
            "journal",
            "none yet: this is the store of an earlier version, which is given one at its next start".into(),
        );
    }
    for snapshot in &report.snapshots {
        let sound =
            snapshot.problem.as_ref().map_or_else(|| position(snapshot.last), |what| format!("UNUSABLE: {what}"));
        line("snapshot", format!("{}, {} bytes; {sound}", snapshot.file, snapshot.bytes));
    }
    line("sled", format!("{} bytes; {}", report.sled.bytes, sled(report)));
    line("state", if report.damage.is_empty() { "sound".into() } else { "DAMAGED".into() });
    text
}

fn as_json(report: &StoreReport) -> serde_json::Value {
    let position = |of: Option<(u64, u64)>| of.map(|(term, index)| json!({ "term": term, "index": index }));
    let snapshots = report.snapshots.iter().map(|snapshot| {
        json!({
            "file": snapshot.file,
            "bytes": snapshot.bytes,
            "last": position(snapshot.last),
            "problem": snapshot.problem,
        })
    });
    json!({
        "sound": report.damage.is_empty(),
        "damage": report.damage,
        "node": report.node.as_ref().map(|node| json!({
            "id": node.id,
            "name": node.name,
            "cluster_id": node.cluster.to_string(),
            "cluster": node.cluster_name,
        })),
        "store": report.store.to_string(),
        "starts": report.starts,
        "last_entry": position(report.last),
        "last_vote": report.vote.map(|(term, node, committed)| {
            json!({ "term": term, "node": node, "committed": committed })
        }),
        "purged": position(report.purged),
        "journal": report.journal.as_ref().map(|journal| json!({
            "last_record": journal.last_record,
            "witnessed": journal.witnessed,
            "entries": journal.entries,
            "segments": journal.segments.iter().map(|(file, bytes)| json!({ "file": file, "bytes": bytes }))
                .collect::<Vec<_>>(),
        })),
        "snapshots": snapshots.collect::<Vec<_>>(),
        "sled": { "bytes": report.sled.bytes, "differs": report.sled.differs, "torn": report.sled.torn },
    })
}
