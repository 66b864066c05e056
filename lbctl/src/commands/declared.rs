//! `lbctl apply`, `diff`, `export` and `schema`: the table as a file says it.

use std::{
    fs,
    io::{self, IsTerminal as _, Read as _, Write as _},
    path::Path,
};

use lb_proto::v1::{self, cluster_service_client::ClusterServiceClient, table_service_client::TableServiceClient};
use prost::Message as _;
use tonic::Code;

use crate::{
    cli::{Apply, Declared, Format},
    declared::{
        self, BACKEND, Changed, Document, Fields, Object, Planned, SEGMENT, SERVICE, SETTINGS, VIP, of_message,
    },
    exit::{Failure, complain},
    output,
    session::{MAX_ANSWER_LEN, Session},
};

/// Of the mutations in one message: well below what a message may have.
const MESSAGE_LEN: usize = 1 << 20;

/// The table, and which revision that is.
struct Present {
    objects: Vec<Object>,
    settings: Object,
    revision: u64,
}

async fn present(session: &Session) -> Result<Present, Failure> {
    let client = TableServiceClient::new(session.channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN);
    macro_rules! all {
        ($request:ident, $method:ident) => {{
            let list = |request| {
                let mut client = client.clone();
                async move { client.$method(request).await }
            };
            session.read_all(v1::$request::default(), list).await?
        }};
    }
    // Whatever changes while the others are read is later than this, and the change is refused then.
    let vips = all!(ListVipsRequest, list_vips);
    let services = all!(ListServicesRequest, list_services);
    let backends = all!(ListBackendsRequest, list_backends);
    let segments = all!(ListSegmentsRequest, list_segments);
    let mut cluster = ClusterServiceClient::new(session.channel.clone());
    let request = v1::GetSettingsRequest {};
    let settings = session.read(request, |request| async move { cluster.get_settings(request).await }).await?;
    let settings = of_message(&SETTINGS, &settings.settings.unwrap_or_default());
    let revision = vips.revision;
    // One that is going is as good as gone.
    let vips = vips.vips.iter().filter(|vip| !vip.deleting).map(|row| of_message(&VIP, row));
    let objects = vips
        .chain(services.services.iter().map(|row| of_message(&SERVICE, row)))
        .chain(backends.backends.iter().map(|row| of_message(&BACKEND, row)))
        .chain(segments.segments.iter().map(|row| of_message(&SEGMENT, row)))
        .collect();
    Ok(Present { objects, settings, revision })
}

pub(super) async fn export(session: &Session) -> Result<(), Failure> {
    let Present { objects, settings, .. } = present(session).await?;
    let document = declared::document(&objects, Some(&settings));
    // For a file; a table would be none.
    let format = if session.format() == Format::Json { Format::Json } else { Format::Yaml };
    output::object(format, &document)
}

pub(super) fn schema() -> Result<(), Failure> {
    output::object(Format::Json, &declared::schema())
}

pub(super) async fn diff(session: &Session, what: Declared) -> Result<(), Failure> {
    let wanted = read(&what.file)?;
    let (_, dry) = dry_run(session, &what, &wanted).await?;
    let Dry { changes, .. } = dry;
    match session.format() {
        format if format.is_data() => {
            output::object(format, &std::collections::BTreeMap::from([("changes", &changes)]))?;
        }
        _ => show(&changes)?,
    }
    // As diff(1) does.
    if changed(&changes).is_empty() { Ok(()) } else { Err(Failure::Differs) }
}

pub(super) async fn apply(session: &Session, apply: Apply) -> Result<(), Failure> {
    let Apply { what, yes, dry_run: only_shown } = apply;
    let wanted = read(&what.file)?;
    let (planned, dry) = dry_run(session, &what, &wanted).await?;
    let is_table = !session.format().is_data();
    if is_table {
        show(&dry.changes)?;
    }
    let what = what.file.display();
    let count = changed(&dry.changes).len();
    if only_shown || (count == 0 && !dry.is_too_long) {
        return match session.format() {
            format if format.is_data() => output::object(format, &dry.response),
            _ if count > 0 => output::print(&format!("{}: nothing is done\n", told(count))),
            _ => output::print(&format!("{what}: unchanged\n")),
        };
    }
    if is_table && !yes && io::stdin().is_terminal() && io::stderr().is_terminal() && !asked(&told(count))? {
        return Err(Failure::Usage("nothing is done".to_owned()));
    }
    // What stays as it is need not go through the log of all nodes.
    let rows: std::collections::BTreeSet<_> =
        changed(&dry.changes).into_iter().map(|change| (change.shape, change.key)).collect();
    let is_sent = |of: &Planned| dry.is_too_long || rows.contains(&of.row());
    let planned: Vec<Planned> = planned.into_iter().filter(is_sent).collect();
    let done = send(session, &planned, dry.revision, false)
        .await
        .map_err(|error| Failure::from_status(&of_rows(error, &planned), Some(&session.request_id)))?;
    let what = if dry.is_too_long { format!("{what} applied") } else { format!("{what} applied: {}", told(count)) };
    session.changed(what, done)
}

/// What a file would change.
struct Dry {
    response: v1::MutationResponse,
    changes: Vec<v1::Change>,
    /// The configuration that it was found against.
    revision: u64,
    /// It is more than an answer holds, and therefore not known.
    is_too_long: bool,
}

async fn dry_run(session: &Session, what: &Declared, wanted: &Document) -> Result<(Vec<Planned>, Dry), Failure> {
    let Present { objects, revision, .. } = present(session).await?;
    let planned = declared::plan(wanted, &objects, what.prune).map_err(|faults| refused(&what.file, &faults))?;
    match send(session, &planned, revision, true).await {
        Ok(response) => {
            let changes = response.changes.clone();
            Ok((planned, Dry { response, changes, revision, is_too_long: false }))
        }
        Err(error) if error.code() == Code::ResourceExhausted && error.message().contains("into one answer") => {
            complain(&format!("lbctl: warning: of these {} rows more change than can be shown at once", planned.len()));
            let response = v1::MutationResponse::default();
            Ok((planned, Dry { response, changes: Vec::new(), revision, is_too_long: true }))
        }
        Err(error) => Err(Failure::from_status(&of_rows(error, &planned), None)),
    }
}

async fn send(
    session: &Session,
    planned: &[Planned],
    expected_revision: u64,
    dry_run: bool,
) -> Result<v1::MutationResponse, tonic::Status> {
    let first = || v1::ApplyRequest {
        request_id: session.request_id.clone(),
        expected_revision,
        dry_run,
        ..v1::ApplyRequest::default()
    };
    let mut parts = vec![first()];
    let mut len = 0;
    for Planned { mutation, .. } in planned {
        let more = mutation.encoded_len();
        if len + more > MESSAGE_LEN {
            parts.push(v1::ApplyRequest::default());
            len = 0;
        }
        len += more;
        if let Some(part) = parts.last_mut() {
            part.mutations.push(mutation.clone());
        }
    }
    let mut client = TableServiceClient::new(session.channel.clone()).max_decoding_message_size(MAX_ANSWER_LEN);
    let parts = futures::stream::iter(parts);
    session.answer(parts, |request| async move { client.apply_stream(request).await }).await
}

/// An error names the mutation; whoever reads it knows the rows of the file.
fn of_rows(error: tonic::Status, planned: &[Planned]) -> tonic::Status {
    let named = || {
        let (at, rest) = error.message().strip_prefix("mutations[")?.split_once("]: ")?;
        let object = &planned.get(at.parse::<usize>().ok()?)?.object;
        let line = if object.line == 0 { String::new() } else { format!("line {}: ", object.line) };
        Some(format!("{line}{}: {rest}", object.name()))
    };
    match named() {
        Some(message) => tonic::Status::with_metadata(error.code(), message, error.metadata().clone()),
        None => error,
    }
}

fn read(file: &Path) -> Result<Document, Failure> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().lock().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(file)
    };
    let text = text.map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
    declared::read(&text).map_err(|faults| refused(file, &faults))
}

fn refused(file: &Path, faults: &[String]) -> Failure {
    let lines: Vec<String> = faults.iter().map(|fault| format!("{}: {fault}", file.display())).collect();
    Failure::Usage(lines.join("\nlbctl: "))
}

fn told(count: usize) -> String {
    if count == 1 { "1 row changes".to_owned() } else { format!("{count} rows change") }
}

/// Of what a file can say.
fn changed(changes: &[v1::Change]) -> Vec<Changed> {
    declared::changes(changes, Fields::Settable)
}

/// Prints what changes, in colours where a person looks at it.
fn show(changes: &[v1::Change]) -> Result<(), Failure> {
    changed(changes).iter().flat_map(Changed::lines).try_for_each(|(sign, line)| output::signed(sign, &line))
}

/// Whether a person agrees.
fn asked(what: &str) -> Result<bool, Failure> {
    let mut answer = String::new();
    write!(io::stderr(), "{what}. Go on? [y/N] ")?;
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
