//! What `lbctl` says to a server that answers with anything: a line that a person understands, and never what a program has
//! of it inside.

use std::{
    collections::HashMap,
    convert::Infallible,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::ensure;
use http::{Request, Response};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use lb_proto::{ERROR_DOMAIN, Reason};
use lb_tests::binaries;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// One of each kind: a list, a change, a stream, and those that ask several things.
const COMMANDS: [&[&str]; 10] = [
    &["status"],
    &["vip", "list"],
    &["vip", "add", "192.0.2.1"],
    &["backend", "remove", "web", "192.0.2.1"],
    &["node", "list"],
    &["stats", "--rates"],
    &["doctor"],
    &["events"],
    &["export"],
    &["cluster", "set", "timing=relaxed"],
];
/// What belongs into a log of `lbctl`'s makers, and not before its users.
const INSIDES: [&str; 9] =
    ["panicked", "Status {", "Some(", "Error {", "Error(", "transport error", "h2 protocol", "hyper", "tonic"];
const TIMEOUT: &str = "2s";
/// Those of the commands that change something.
const CHANGES: [&[&str]; 3] = [COMMANDS[2], COMMANDS[3], COMMANDS[9]];
/// What a server says of an error.
const SAID: &str = "that cannot be: do something else";

fn complaint(socket: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(binaries::directory()?.join("lbctl"));
    command.arg("--endpoint").arg(format!("unix:{}", socket.display())).args(["--timeout", TIMEOUT]).args(arguments);
    let output = command.stdin(Stdio::null()).output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    ensure!(matches!(code, Some(1 | 3 | 4)), "{arguments:?}: {code:?}: {told}");
    ensure!(told.starts_with("lbctl: ") && told.len() < 2000, "{arguments:?}: {told}");
    let inside = INSIDES.iter().find(|inside| told.contains(**inside));
    ensure!(inside.is_none(), "{arguments:?} says {inside:?}: {told}");
    ensure!(!told.chars().any(|c| c.is_control() && c != '\n'), "{arguments:?}: {told:?}");
    Ok(told)
}

/// Answers each connection with some bytes, and closes it.
fn answer_with(socket: &Path, bytes: &'static [u8]) -> anyhow::Result<()> {
    let listener = UnixListener::bind(socket)?;
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let say = |stream: &mut UnixStream| -> std::io::Result<()> {
                stream.write_all(bytes)?;
                // As long as the other end has something to say.
                stream.set_read_timeout(Some(std::time::Duration::from_millis(50)))?;
                while stream.read(&mut [0; 4096])? > 0 {}
                Ok(())
            };
            drop(say(&mut stream));
        }
    });
    Ok(())
}

/// Answers each call with an error of gRPC, as its headers are made.
fn refuse_with(
    socket: &Path,
    refusal: impl Fn() -> Response<tonic::body::Body> + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::UnixListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let refusal = refusal.clone();
                let service = tower::service_fn(move |_: Request<hyper::body::Incoming>| {
                    let answer = refusal();
                    async move { Ok::<_, Infallible>(answer) }
                });
                tokio::spawn(async move {
                    let builder = Builder::new(TokioExecutor::new());
                    drop(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await);
                });
            }
        });
    });
    Ok(())
}

pub(crate) fn is_told_clearly() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let bytes: [(&str, &[u8]); 4] = [
        ("closes", b""),
        ("http1", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nno\n"),
        ("ssh", b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"),
        ("zeros", &[0; 512]),
    ];
    for (name, bytes) in bytes {
        let socket = root.path().join(name);
        answer_with(&socket, bytes)?;
        for arguments in COMMANDS {
            complaint(&socket, arguments)?;
        }
    }
    // Each code of gRPC, one that there is not, and messages that a terminal must not get as they are.
    let codes = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "99"];
    for code in codes {
        let socket = root.path().join(format!("code{code}"));
        refuse_with(&socket, move || {
            let answer = Response::builder().header("content-type", "application/grpc");
            let answer = answer.header("grpc-status", code).header("grpc-message", "it said%1B[31m %00so%0A");
            answer.body(tonic::body::Body::empty()).expect("a response")
        })?;
        for arguments in COMMANDS {
            complaint(&socket, arguments)?;
        }
    }
    // Each error that the API has, as it is sent.
    for reason in Reason::ALL {
        let socket = root.path().join(reason.label());
        let details = ErrorDetails::with_error_info(reason.label(), ERROR_DOMAIN, HashMap::new());
        let status = Status::with_error_details(reason.code(), SAID, details);
        refuse_with(&socket, move || status.clone().into_http())?;
        for arguments in COMMANDS {
            let told = complaint(&socket, arguments)?;
            ensure!(told.contains(SAID), "{} of {arguments:?} is told as: {told}", reason.label());
            let may_be_done = matches!(reason.code(), Code::Unavailable | Code::DeadlineExceeded);
            let is_change = CHANGES.contains(&arguments);
            ensure!(told.contains("To retry safely: --request-id") == (may_be_done && is_change), "{told}");
        }
    }
    Ok(())
}
