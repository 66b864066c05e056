//! `lbctl cluster`.

use std::collections::BTreeMap;

use lb_proto::v1::{self, cluster_service_client::ClusterServiceClient};

use super::Session;
use crate::{
    cli::{ClusterCommand, Format},
    exit::Failure,
    output::{self, Change, views},
};

pub(super) async fn run(session: &Session, command: ClusterCommand) -> Result<(), Failure> {
    let mut client = ClusterServiceClient::new(session.channel.clone());
    match command {
        ClusterCommand::Show => {
            let request = v1::GetSettingsRequest {};
            let answer = session.read(request, |request| async move { client.get_settings(request).await }).await?;
            let settings: BTreeMap<String, String> = answer.settings.into_iter().collect();
            match session.format() {
                Format::Table => {
                    let rows: Vec<views::Setting> = settings.into_iter().map(Into::into).collect();
                    output::list(Format::Table, "settings", &rows)
                }
                format => output::object(format, &BTreeMap::from([("settings", settings)])),
            }
        }
        ClusterCommand::Set { settings } => {
            let what: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let (request_id, expected_revision) = (session.request_id.clone(), 0);
            let settings = settings.into_iter().collect();
            let request = v1::UpdateSettingsRequest { request_id: request_id.clone(), expected_revision, settings };
            let set = session.write(request, |request| async move { client.update_settings(request).await }).await?;
            let (revision, unchanged) = (set.revision, set.unchanged);
            output::change(session.format(), &Change { what: what.join(" "), revision, unchanged, request_id })
        }
    }
}
