//! What earlier versions have written opens: stores of feature levels 1 and 3, which had no journal, and a file of
//! `lbctl snapshot save`.

use std::{fs, net::IpAddr, path::Path, sync::Arc, time::Duration};

use lb_raft_store::{
    Consensus, Nobody, Settings, StartError, StoreError,
    table::{
        AdminState, Affinity, Body, Mutation, QuorumLoss, Role, SettingsPatch, Table, Unmatched, VipSettings,
        decode_saved,
    },
};
use tokio::time::Instant;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
const SOON: Duration = Duration::from_secs(20);

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// What was in the table when it was written.
fn is_what_was_written(table: &Table) {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let vip = &table.vip(ip("192.168.2.100")).unwrap().settings;
    assert_eq!((vip.prefer, vip.unmatched), (Some(1), Unmatched::Reject));
    assert_eq!(vip.segment.unwrap().to_string(), "192.168.2.0/24");
    assert!(table.vip(ip("2001:db8::100")).is_some());
    let web = "web".parse().unwrap();
    let service = &table.service(&web).unwrap().settings;
    assert_eq!((service.affinity, service.table_size), (Affinity::Source, 4093));
    assert_eq!(service.ports.iter().map(ToString::to_string).collect::<Vec<_>>(), ["80-89/tcp"]);
    let backend = &table.backend(&web, ip("192.168.2.50")).unwrap().settings;
    assert_eq!((backend.weight.get(), backend.state), (7, AdminState::Drain));
    assert_eq!(backend.mac.unwrap().to_string(), "02:00:00:00:00:05");
    assert_eq!((table.settings().on_quorum_loss, table.settings().failback_s), (QuorumLoss::Hold, 600));
    assert_eq!(table.feature_level(), 1);
}

fn settings(data_dir: &Path) -> Settings {
    Settings {
        cluster_name: "lb".parse().unwrap(),
        name: "lb1".parse().unwrap(),
        role: Role::Lb,
        address: "127.0.0.1:1".into(),
        data_dir: data_dir.to_owned(),
        bootstrap: false,
        log_bytes: Settings::LOG_BYTES,
    }
}

#[tokio::test]
async fn a_store_of_level_1_opens_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    copy(&Path::new(FIXTURES).join("store-level-1"), dir.path());
    let node = Consensus::start(settings(dir.path()), Arc::new(Nobody)).await.unwrap();
    let view = node.read(Instant::now() + SOON).await.unwrap();
    is_what_was_written(&view.table);
    let patch = Body::PatchSettings(SettingsPatch { failback_s: Some(60), ..SettingsPatch::default() }).into();
    let refused = node.propose(&patch, Instant::now() + SOON).await.unwrap_err();
    assert!(refused.to_string().contains("feature level 2"), "{refused}");
    let publish = Body::PublishNode {
        node: 1,
        attachments: vec![],
        heartbeat: vec![],
        feature_level: 2,
        unfit: String::new(),
        starts: 0,
    };
    for body in [publish, Body::RaiseFeatureLevel { level: 2 }] {
        node.propose(&body.into(), Instant::now() + SOON).await.unwrap().result.unwrap();
    }
    node.propose(&patch, Instant::now() + SOON).await.unwrap().result.unwrap();
    assert_eq!(node.view().table.settings().failback_s, 60);
    node.shutdown().await;
}

/// It has a snapshot, and its log begins behind most of it.
#[tokio::test]
async fn a_store_of_level_3_is_given_a_journal_once_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    copy(&Path::new(FIXTURES).join("store-level-3"), dir.path());
    let address = |number: u8| IpAddr::from([192, 168, 2, number]);
    for start in 0..3 {
        let node = loop {
            match Consensus::start(settings(dir.path()), Arc::new(Nobody)).await {
                // By the one before, which is closed on threads of its own.
                Err(StartError::Store(StoreError::Locked { .. })) => tokio::task::yield_now().await,
                started => break started.unwrap(),
            }
        };
        let view = node.read(Instant::now() + SOON).await.unwrap();
        // 200 were created, each third one deleted, and one more created.
        assert_eq!(view.table.vips().count(), 135 + start);
        assert!(view.table.vip(address(200)).is_some() && view.table.vip(address(198)).is_none());
        let settings = VipSettings {
            address: address(202 + start as u8),
            prefer: None,
            segment: None,
            unmatched: Unmatched::Drop,
        };
        let create = Body::Mutate(vec![Mutation::CreateVip(settings)]);
        node.propose(&create.into(), Instant::now() + SOON).await.unwrap().result.unwrap();
        assert!(dir.path().join("journal").is_dir() && !dir.path().join("journal.new").exists());
        node.shutdown().await;
    }
}

#[test]
fn a_snapshot_file_of_level_1_is_read() {
    is_what_was_written(&decode_saved(&fs::read(Path::new(FIXTURES).join("snapshot-level-1")).unwrap()).unwrap());
}
