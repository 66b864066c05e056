//! Clusters by name: where their nodes are and whom to show oneself as, so that neither has to stand on the command line.
//!
//! ```toml
//! # ~/.config/lbctl/config.toml
//! default = "lab"                     # where nothing is said
//!
//! [clusters.lab]
//! endpoints = ["10.77.1.1:7400", "10.77.1.2:7400"]
//! cert = "alice.pem"                  # beside this file
//! key = "alice.key"
//! ca = "ca.pem"
//! ```

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    connect::{DEFAULT_ENDPOINT, Shown, Target},
    exit::Failure,
};

/// What the command line and the environment say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) cluster: Option<String>,
    pub(crate) endpoints: Vec<Target>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
}

/// Where to call, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) targets: Vec<Target>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
}

impl Reach {
    pub(crate) fn shown(&self) -> Shown<'_> {
        Shown { cert: self.cert.as_deref(), key: self.key.as_deref(), ca: self.ca.as_deref() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contexts {
    default: Option<String>,
    #[serde(default)]
    clusters: BTreeMap<String, Context>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    endpoints: Vec<String>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
}

/// Where the file is: `LBCTL_CONFIG`, or in the user's configuration (XDG Base Directory Specification).
fn path() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    of("LBCTL_CONFIG").or_else(|| {
        let dir = of("XDG_CONFIG_HOME").or_else(|| Some(of("HOME")?.join(".config")))?;
        Some(dir.join("lbctl/config.toml"))
    })
}

/// What is said goes before what the file has. A default cluster is for who says neither a cluster nor an endpoint.
pub(crate) fn reach(said: Said) -> Result<Reach, Failure> {
    match path() {
        Some(path) => reach_by(said, &path),
        None => match &said.cluster {
            None => Ok(of(said, None)),
            Some(name) => Err(Failure::Usage(format!(
                "--cluster {name}: neither LBCTL_CONFIG nor HOME says where clusters are named"
            ))),
        },
    }
}

fn reach_by(said: Said, path: &Path) -> Result<Reach, Failure> {
    if said.cluster.is_none() && !said.endpoints.is_empty() {
        return Ok(of(said, None));
    }
    let contexts = read(path, said.cluster.as_deref())?;
    let Some(name) = said.cluster.clone().or(contexts.default) else { return Ok(of(said, None)) };
    let Some(context) = contexts.clusters.get(&name) else {
        let known: Vec<&str> = contexts.clusters.keys().map(String::as_str).collect();
        let has = if known.is_empty() { "it names none".to_owned() } else { format!("it has: {}", known.join(", ")) };
        return Err(Failure::of_file(path, format!("there is no cluster {name}; {has}")));
    };
    let wrong = |problem: String| Failure::of_file(path, format!("clusters.{name}: {problem}"));
    let endpoint =
        |text: &String| text.parse::<Target>().map_err(|problem| wrong(format!("endpoints: {text:?}: {problem}")));
    let targets = context.endpoints.iter().map(endpoint).collect::<Result<Vec<_>, _>>()?;
    if targets.is_empty() {
        return Err(wrong("endpoints: it names none".to_owned()));
    }
    // Beside the file, unless they say otherwise.
    let beside = |file: &Option<PathBuf>| Some(path.parent().unwrap_or(Path::new("")).join(file.as_ref()?));
    let (cert, key, ca) = (beside(&context.cert), beside(&context.key), beside(&context.ca));
    Ok(of(said, Some(Reach { targets, cert, key, ca })))
}

fn of(said: Said, context: Option<Reach>) -> Reach {
    let context = context.unwrap_or_else(|| {
        let default = Target::Unix(DEFAULT_ENDPOINT.trim_start_matches("unix:").into());
        Reach { targets: vec![default], cert: None, key: None, ca: None }
    });
    Reach {
        targets: if said.endpoints.is_empty() { context.targets } else { said.endpoints },
        cert: said.cert.or(context.cert),
        key: said.key.or(context.key),
        ca: said.ca.or(context.ca),
    }
}

/// No file is one without clusters, unless one was asked for.
fn read(path: &Path, wanted: Option<&str>) -> Result<Contexts, Failure> {
    let wrong = |problem: String| Failure::of_file(path, problem);
    match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).map_err(|error| wrong(error.to_string().trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound && wanted.is_none() => Ok(Contexts::default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(wrong(
            "it is missing, and --cluster names a cluster of it: 'man lbctl' and docs/lbctl.md show one".to_owned(),
        )),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// The clusters that the file names; none where it cannot be read.
pub(crate) fn names() -> Vec<String> {
    let contexts = path().and_then(|path| read(&path, None).ok()).unwrap_or_default();
    contexts.clusters.into_keys().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "default = \"lab\"\n[clusters.lab]\nendpoints = [\"10.0.0.1:7400\", \"unix:/run/x\"]\ncert = \"a.pem\"\n\
                        key = \"/keys/a.key\"\nca = \"ca.pem\"\n[clusters.prod]\nendpoints = [\"lb.example:7400\"]\n";

    fn by(text: &str, said: Said) -> Result<Reach, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, text).unwrap();
        let reach = reach_by(said, &path).map_err(|failure| failure.to_string())?;
        // Whatever the directory is called.
        let short =
            |file: Option<PathBuf>| file.map(|file| file.strip_prefix(dir.path()).map(Path::to_owned).unwrap_or(file));
        Ok(Reach { cert: short(reach.cert), key: short(reach.key), ca: short(reach.ca), ..reach })
    }

    #[test]
    fn what_is_said_goes_before_what_the_file_has() {
        let (cluster, endpoint) = (|name: &str| Some(name.to_owned()), Target::Https("10.9.9.9:1".into()));
        let lab = by(FILE, Said::default()).unwrap();
        assert_eq!(lab.targets, [Target::Https("10.0.0.1:7400".into()), Target::Unix("/run/x".into())]);
        assert_eq!((lab.cert, lab.key), (Some("a.pem".into()), Some("/keys/a.key".into())));
        let prod = by(FILE, Said { cluster: cluster("prod"), ..Said::default() }).unwrap();
        assert_eq!((prod.targets, prod.cert), (vec![Target::Https("lb.example:7400".into())], None));
        let both = Said { cluster: cluster("lab"), endpoints: vec![endpoint.clone()], ..Said::default() };
        let both = by(FILE, Said { ca: Some("other.pem".into()), ..both }).unwrap();
        assert_eq!(
            (both.targets, both.cert, both.ca),
            (vec![endpoint.clone()], Some("a.pem".into()), Some("other.pem".into()))
        );
        // An endpoint alone is nobody's cluster.
        let alone = by(FILE, Said { endpoints: vec![endpoint], ..Said::default() }).unwrap();
        assert_eq!(alone.cert, None);
        let local = by("", Said::default()).unwrap();
        assert_eq!(local.targets, [DEFAULT_ENDPOINT.parse().unwrap()]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let named = |name: &str| Said { cluster: Some(name.to_owned()), ..Said::default() };
        for (text, said, words) in [
            (FILE, named("lba"), "there is no cluster lba; it has: lab, prod"),
            ("", named("lab"), "there is no cluster lab; it names none"),
            ("default = \"x\"", Said::default(), "there is no cluster x"),
            (
                "[clusters.a]\nendpoints = [\"nowhere\"]",
                named("a"),
                "clusters.a: endpoints: \"nowhere\": it is neither",
            ),
            ("[clusters.a]\nendpoints = []", named("a"), "clusters.a: endpoints: it names none"),
            ("[clusters.a]\nendpoint = \"x:1\"", named("a"), "unknown field `endpoint`"),
            ("nonsense", Said::default(), "config.toml: TOML parse error at line 1"),
        ] {
            let problem = by(text, said).unwrap_err();
            assert!(problem.contains(words), "{words:?} is not in {problem:?}");
        }
        let missing = reach_by(named("lab"), Path::new("/no/such/file")).unwrap_err().to_string();
        assert!(missing.contains("/no/such/file: it is missing, and --cluster names"), "{missing}");
        assert!(reach_by(Said::default(), Path::new("/no/such/file")).is_ok());
    }
}
