//! How a command fails, and with which exit code: the one place where the two are mapped.

use std::{error::Error as _, fmt, path::Path, process::ExitCode, time::Duration};

use lb_proto::REQUEST_ID_METADATA;
use tonic::{Code, Status};

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server refused it; its message says what to try.
    Refused(String),
    /// A comparison has found a difference, which is all that is to say.
    Differs,
    /// Something on the command line is wrong that its parser cannot know.
    Usage(String),
    /// No endpoint can be reached.
    Unreachable(String),
    /// No quorum, or no answer in time.
    Undecided {
        message: String,
        /// With it a retry is safe.
        request_id: Option<String>,
    },
    /// Writing the output.
    Output(std::io::Error),
    /// The change is done, and could not be told.
    Unsaid(std::io::Error),
}

impl Failure {
    /// Something is wrong with a file.
    pub(crate) fn of_file(path: &Path, problem: impl fmt::Display) -> Self {
        Self::Usage(format!("{}: {problem}", path.display()))
    }

    /// What was waited for has not become so.
    pub(crate) fn late(within: Duration, why: &str) -> Self {
        let message = format!("not within {}: {why}", humantime::format_duration(within));
        Self::Undecided { message, request_id: None }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        self.code().into()
    }

    fn code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Differs => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::Undecided { .. } => 4,
            Self::Output(_) | Self::Unsaid(_) if self.is_silent() => 0,
            Self::Output(_) => 1,
            Self::Unsaid(_) => 5,
        }
    }

    /// For programs: one object in a line.
    pub(crate) fn to_json(&self) -> String {
        let mut error = serde_json::json!({ "exit_code": self.code(), "message": self.to_string() });
        if let Self::Undecided { request_id: Some(id), .. } = self {
            error["request_id"] = id.clone().into();
        }
        serde_json::json!({ "error": error }).to_string()
    }

    /// There is nothing to say of it: whoever read our output has read enough, or has read all.
    pub(crate) fn is_silent(&self) -> bool {
        match self {
            Self::Output(error) | Self::Unsaid(error) => error.kind() == std::io::ErrorKind::BrokenPipe,
            Self::Differs => true,
            _ => false,
        }
    }

    /// Of the output of a change that is done.
    pub(crate) fn after_change(self) -> Self {
        match self {
            Self::Output(error) => Self::Unsaid(error),
            other => other,
        }
    }

    /// From an answer to the request with that id.
    pub(crate) fn from_status(status: &Status, request_id: Option<&str>) -> Self {
        match status.code() {
            // What changes nothing leaves nothing undecided.
            Code::Unavailable | Code::Unknown if request_id.is_none() && is_of_nobody(status) => {
                Self::Unreachable(message(status))
            }
            // `Unknown` is a connection that broke in the middle: the server never says so itself.
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                let of_server = status.metadata().get(REQUEST_ID_METADATA).and_then(|id| id.to_str().ok());
                let request_id = request_id.or(of_server).map(ToOwned::to_owned);
                Self::Undecided { message: message(status), request_id }
            }
            _ => Self::Refused(message(status)),
        }
    }
}

/// What the libraries of gRPC say of answers that are none, without a server's having said it.
const MADE_HERE: [&str; 5] =
    ["transport error", "protocol error", "grpc-status header missing", "h2 ", "error decoding"];

/// No server has said it.
fn is_of_nobody(status: &Status) -> bool {
    let said = status.message();
    status.details().is_empty() && (status.source().is_some() || MADE_HERE.iter().any(|made| said.contains(made)))
}

/// What a server says, as a terminal may have it; or what may be the matter where it says nothing that can be understood.
fn message(status: &Status) -> String {
    let said = status.message();
    if said.is_empty() {
        return format!("the server refuses it: {}", status.code().description().to_lowercase());
    }
    if is_of_nobody(status) {
        return "the connection has ended without an answer, or what answers there is no lbd: is it what api.listen of a node has (and \
                not cluster.listen, which is for nodes), http:// or https:// as it is there, and does it run ('systemctl status \
                lbd')?"
            .to_owned();
    }
    said.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(message) | Self::Usage(message) | Self::Unreachable(message) => f.write_str(message),
            Self::Differs => f.write_str("there are differences"),
            Self::Undecided { message, request_id: None } => f.write_str(message),
            Self::Undecided { message, request_id: Some(id) } => {
                write!(f, "{message}\nThe change may or may not have happened. To retry safely: --request-id {id}")
            }
            Self::Output(error) => write!(f, "writing the output: {error}"),
            Self::Unsaid(error) => write!(f, "the change is done; only writing the output failed: {error}"),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error)
    }
}

/// Says something to a person. If nobody reads it, nothing can be done about it.
pub(crate) fn complain(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    #[test]
    fn output_that_fails_after_a_change_is_told_apart_and_a_broken_pipe_is_silent() {
        let full = || Failure::Output(Error::from_raw_os_error(28));
        assert!(!full().is_silent() && full().exit_code() == ExitCode::FAILURE);
        let unsaid = full().after_change();
        assert_eq!(unsaid.exit_code(), ExitCode::from(5));
        assert!(unsaid.to_string().starts_with("the change is done"), "{unsaid}");
        let pipe = || Failure::Output(ErrorKind::BrokenPipe.into());
        for silent in [pipe(), pipe().after_change()] {
            assert!(silent.is_silent() && silent.exit_code() == ExitCode::SUCCESS);
        }
        let refused = Failure::Refused("no".into()).after_change();
        assert_eq!(refused.exit_code(), ExitCode::from(1));
    }
}
