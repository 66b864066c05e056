//! `lbctl apply`, `diff`, `export` and `schema`: the table as a file says it.

use std::{
    fs,
    io::{self, IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
};

use futures::StreamExt as _;
use lb_proto::v1::{self, cluster_service_client::ClusterServiceClient};
use prost::Message as _;
use tonic::Code;

use crate::{
    cli::{Apply, Declared, Format},
    declared::{
        self, BACKEND, Changed, Document, Fields, Object, Others, Planned, SEGMENT, SERVICE, SETTINGS, Shown, VIP,
        of_message,
    },
    exit::{Failure, complain},
    output::{self, progress},
    session::Session,
};

/// Of the mutations in one message: well below what a message may have.
const MESSAGE_LEN: usize = 1 << 20;

/// The table, and which revision that is.
struct Present {
    objects: Vec<Object>,
    settings: Object,
    revision: u64,
}

/// So often it is read anew where it has changed meanwhile.
const READINGS: usize = 5;

/// All of one revision. Where it never stands still for so long, what is sent is refused; a file can be torn, and says so.
async fn present(session: &Session) -> Result<Present, Failure> {
    for _ in 1..READINGS {
        if let (present, true) = reading(session).await? {
            return Ok(present);
        }
    }
    let (present, is_whole) = reading(session).await?;
    if !is_whole {
        complain("lbctl: warning: the table changes while it is read: its parts may not fit together");
    }
    Ok(present)
}

/// The table, and whether it has stood still meanwhile.
async fn reading(session: &Session) -> Result<(Present, bool), Failure> {
    let mut cluster = ClusterServiceClient::new(session.channel.clone());
    // Whatever changes while the others are read is later than this, and what is sent is refused then.
    let vips = session.read_all(v1::ListVipsRequest::default()).await?;
    let services = session.read_all(v1::ListServicesRequest::default()).await?;
    let backends = session.read_all(v1::ListBackendsRequest::default()).await?;
    let segments = session.read_all(v1::ListSegmentsRequest::default()).await?;
    let request = v1::GetSettingsRequest {};
    let settings = session.read(request, |request| async move { cluster.get_settings(request).await }).await?;
    let last = session.read_all(v1::ListVipsRequest::default()).await?.revision;
    let settings = of_message(&SETTINGS, &settings.settings.unwrap_or_default());
    let revision = vips.revision;
    // One that is going is as good as gone.
    let vips = vips.vips.iter().filter(|vip| !vip.deleting).map(|row| of_message(&VIP, row));
    let objects = vips
        .chain(services.services.iter().map(|row| of_message(&SERVICE, row)))
        .chain(backends.backends.iter().map(|row| of_message(&BACKEND, row)))
        .chain(segments.segments.iter().map(|row| of_message(&SEGMENT, row)))
        .collect();
    Ok((Present { objects, settings, revision }, last == revision))
}

/// The table, as a file that says it.
pub(super) async fn document(session: &Session) -> Result<Shown, Failure> {
    let Present { objects, settings, .. } = present(session).await?;
    Ok(declared::document(&objects, Some(&settings)))
}

pub(super) async fn export(session: &Session) -> Result<(), Failure> {
    let document = document(session).await?;
    output::object(session.format().of_file(), &document)
}

pub(super) fn schema() -> Result<(), Failure> {
    output::object(Format::Json, &declared::schema())
}

pub(super) async fn diff(session: &Session, what: Declared) -> Result<(), Failure> {
    let wanted = Wanted::of(what)?;
    let (_, Dry { response, changed, is_too_long, .. }) = dry_run(session, &wanted).await?;
    match session.format() {
        format if format.is_data() => {
            output::object(format, &std::collections::BTreeMap::from([("changes", &response.changes)]))?;
        }
        _ => show(&changed)?,
    }
    // As diff(1) does.
    if changed.is_empty() && !is_too_long { Ok(()) } else { Err(Failure::Differs) }
}

pub(super) async fn apply(session: &Session, apply: Apply) -> Result<(), Failure> {
    let Apply { what, yes, dry_run } = apply;
    let how = if dry_run {
        How::Shown
    } else if yes {
        How::Done
    } else {
        How::Asked
    };
    become_as(session, &Wanted::of(what)?, how).await
}

/// What the table shall be.
pub(super) struct Wanted {
    pub(super) file: PathBuf,
    pub(super) document: Document,
    pub(super) others: Others,
    /// What has happened when it is so, such as "applied".
    pub(super) done: &'static str,
}

impl Wanted {
    fn of(Declared { file, prune }: Declared) -> Result<Self, Failure> {
        let document = parsed(&file, &read(&file)?)?;
        Ok(Self { file, document, others: if prune { Others::Go } else { Others::Stay }, done: "applied" })
    }
}

/// What is done about the differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// They are shown alone.
    Shown,
    /// A person is asked first, if there is one.
    Asked,
    Done,
}

/// Makes the table what is wanted.
pub(super) async fn become_as(session: &Session, wanted: &Wanted, how: How) -> Result<(), Failure> {
    let (planned, dry) = dry_run(session, wanted).await?;
    let is_table = !session.format().is_data();
    if is_table {
        show(&dry.changed)?;
    }
    let what = format!("{} {}", wanted.file.display(), wanted.done);
    let count = dry.changed.len();
    if how == How::Shown || (count == 0 && !dry.is_too_long) {
        return match session.format() {
            format if format.is_data() => output::object(format, &dry.response),
            _ if count > 0 => output::print(&format!("{}: nothing is done\n", told(count))),
            _ => output::print(&format!("{}: unchanged\n", wanted.file.display())),
        };
    }
    let is_asked = is_table && how == How::Asked && io::stdin().is_terminal() && io::stderr().is_terminal();
    if is_asked && !asked(&told(count))? {
        return Err(Failure::Usage("nothing is done".to_owned()));
    }
    // What stays as it is need not go through the log of all nodes.
    let rows: std::collections::BTreeSet<_> =
        dry.changed.into_iter().map(|change| (change.shape, change.key)).collect();
    let planned: Vec<Planned> = match (dry.is_too_long, wanted.others) {
        // Rows that are made anew are no change where they come back as they were.
        (true, _) | (_, Others::MadeAnew) => planned,
        (false, _) => planned.into_iter().filter(|of| rows.contains(&of.row())).collect(),
    };
    let done = send(session, &planned, dry.revision, false)
        .await
        .map_err(|error| Failure::from_status(&of_rows(error, &planned), Some(&session.request_id)))?;
    let what = if dry.is_too_long { what } else { format!("{what}: {}", told(count)) };
    session.changed(what, done)
}

/// What a file would change.
struct Dry {
    response: v1::MutationResponse,
    /// Of what a file can say.
    changed: Vec<Changed>,
    /// The configuration that it was found against.
    revision: u64,
    /// It is more than an answer holds, and therefore not known.
    is_too_long: bool,
}

async fn dry_run(session: &Session, wanted: &Wanted) -> Result<(Vec<Planned>, Dry), Failure> {
    let Present { objects, revision, .. } = present(session).await?;
    let planned = declared::plan(&wanted.document, &objects, wanted.others);
    let planned = planned.map_err(|faults| refused(&wanted.file, &faults))?;
    match send(session, &planned, revision, true).await {
        Ok(response) => {
            let changed = declared::changes(&response.changes, Fields::Settable);
            Ok((planned, Dry { response, changed, revision, is_too_long: false }))
        }
        Err(error) if error.code() == Code::ResourceExhausted && error.message().contains("into one answer") => {
            complain(&format!("lbctl: warning: of these {} rows more change than can be shown at once", planned.len()));
            let response = v1::MutationResponse::default();
            Ok((planned, Dry { response, changed: Vec::new(), revision, is_too_long: true }))
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
    let mut client = session.table();
    let bar = progress::of_rows(if dry_run { "comparing" } else { "applying" }, planned.len());
    let sent = bar.clone();
    let parts = futures::stream::iter(parts);
    // What is on its way is as good as done: the rest is one change.
    let parts = parts.inspect(move |part| sent.inc(part.mutations.len().try_into().unwrap_or(0)));
    let answer = session.answer(parts, |request| async move { client.apply_stream(request).await }).await;
    bar.finish_and_clear();
    answer
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

/// All of a file, or of standard input.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        io::stdin().lock().read_to_end(&mut bytes).map(drop)
    } else {
        fs::read(file).map(|all| bytes = all)
    };
    read.map_err(|error| Failure::of_file(file, error))?;
    Ok(bytes)
}

/// What a file says.
pub(super) fn parsed(file: &Path, bytes: &[u8]) -> Result<Document, Failure> {
    let text = std::str::from_utf8(bytes).map_err(|error| refused(file, &[format!("it is no text: {error}")]))?;
    declared::read(text).map_err(|faults| refused(file, &faults))
}

fn refused(file: &Path, faults: &[String]) -> Failure {
    let lines: Vec<String> = faults.iter().map(|fault| format!("{}: {fault}", file.display())).collect();
    Failure::Usage(lines.join("\nlbctl: "))
}

fn told(count: usize) -> String {
    if count == 1 { "1 row changes".to_owned() } else { format!("{count} rows change") }
}

/// Prints what changes, in colours where a person looks at it.
fn show(changed: &[Changed]) -> Result<(), Failure> {
    changed.iter().flat_map(Changed::lines).try_for_each(|(sign, line)| output::signed(sign, &line))
}

/// Whether a person agrees.
fn asked(what: &str) -> Result<bool, Failure> {
    let mut answer = String::new();
    write!(io::stderr(), "{what}. Go on? [y/N] ")?;
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
