//! `lbctl doctor`.

use lb_proto::v1::{self, Severity};

use crate::{
    exit::Failure,
    output::{self, Attention},
    session::Session,
};

pub(super) async fn run(session: &Session, local: bool) -> Result<(), Failure> {
    let mut client = session.node();
    let request = v1::DiagnoseRequest { local };
    let answer = session.read(request, |request| async move { client.diagnose(request).await }).await?;
    let is_wrong = answer.found.iter().any(|finding| finding.severity() != Severity::Info);
    match session.format() {
        format if format.is_data() => output::object(format, &answer)?,
        _ if answer.found.is_empty() => output::print("nothing is wrong, as far as can be seen\n")?,
        _ => together(answer.found).iter().try_for_each(tell)?,
    }
    if is_wrong { Err(Failure::Differs) } else { Ok(()) }
}

/// What several nodes have found alike is told once.
fn together(found: Vec<v1::Finding>) -> Vec<v1::Finding> {
    let mut all: Vec<v1::Finding> = Vec::with_capacity(found.len());
    for finding in found {
        let is_alike = |of: &&mut v1::Finding| {
            (&of.id, &of.object, &of.explanation, &of.mend)
                == (&finding.id, &finding.object, &finding.explanation, &finding.mend)
        };
        match all.iter_mut().find(is_alike) {
            Some(known) => known.node = format!("{}, {}", known.node, finding.node),
            None => all.push(finding),
        }
    }
    all
}

fn tell(finding: &v1::Finding) -> Result<(), Failure> {
    let (attention, severity) = match finding.severity() {
        Severity::Error => (Attention::Now, "ERROR"),
        Severity::Warning => (Attention::Soon, "WARNING"),
        Severity::Info | Severity::Unspecified => (Attention::None, "INFO"),
    };
    let v1::Finding { id, node, object, explanation, mend, documents, .. } = finding;
    let by = if node.is_empty() { String::new() } else { format!("  ({node})") };
    output::heeded(attention, &format!("{severity:<8}{id}"), &format!("  {object}{by}"))?;
    output::print(&format!("        {explanation}\n        mend: {mend}\n        see:  {documents}\n"))
}
