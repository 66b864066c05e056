//! `lbctl status`.

use lb_proto::v1;

use crate::{
    exit::Failure,
    output::{self, Summary as _},
    session::Session,
};

/// `check`: what is wrong is a failure.
pub(super) async fn status(session: &Session, check: bool) -> Result<(), Failure> {
    let status = session.status(false).await?;
    match session.format() {
        format if format.is_data() => output::object(format, &status)?,
        format => {
            output::print(&status.summary())?;
            if !status.nodes.is_empty() {
                output::list(format, "nodes", &status.nodes)?;
            }
            if !status.vip_owners.is_empty() {
                output::print("\n")?;
                output::list(format, "vip_owners", &status.vip_owners)?;
            }
        }
    }
    if !check {
        return Ok(());
    }
    // Those without an owner are among the warnings.
    let is_new = |vip: &v1::Vip| !vip.problem.is_empty() && !vip.owner.is_empty();
    let silent = |vip: &v1::Vip| is_new(vip).then(|| format!("VIP {}: {}", vip.address, vip.problem));
    let vips: Vec<String> = status.vip_owners.iter().filter_map(silent).collect();
    let waiting = (!status.waiting.is_empty()).then(|| status.waiting.clone());
    let wrong: Vec<String> = waiting.into_iter().chain(status.warnings).chain(vips).collect();
    if wrong.is_empty() { Ok(()) } else { Err(Failure::Refused(wrong.join("\n"))) }
}
