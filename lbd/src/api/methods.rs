//! All methods: who may call them, and what work they are. What is not here cannot be called, and a method that is served
//! without being here keeps the daemon from starting.

use lb_proto::tls::Role::{self, Admin, Node, Operator, Viewer};
use prost::Message as _;
use prost_types::FileDescriptorSet;

/// What kind of work a method is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Read,
    Write,
    Stream,
}

use Work::{Read, Stream, Write};

/// What is said of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Method {
    pub(super) name: &'static str,
    /// Who may call it: this role, and each that may more. [`Node`] is for everybody who has a certificate.
    pub(super) role: Role,
    pub(super) work: Work,
}

const fn of(name: &'static str, role: Role, work: Work) -> Method {
    Method { name, role, work }
}

const METHODS: &[(&str, &[Method])] = &[
    (
        "lb.v1.TableService",
        &[
            of("ListVips", Viewer, Read),
            of("GetVip", Viewer, Read),
            of("CreateVip", Operator, Write),
            of("UpdateVip", Operator, Write),
            of("DeleteVip", Operator, Write),
            of("ListServices", Viewer, Read),
            of("GetService", Viewer, Read),
            of("CreateService", Operator, Write),
            of("UpdateService", Operator, Write),
            of("DeleteService", Operator, Write),
            of("ListBackends", Viewer, Read),
            of("GetBackend", Viewer, Read),
            of("CreateBackend", Operator, Write),
            of("UpdateBackend", Operator, Write),
            of("DeleteBackend", Operator, Write),
            of("ListSegments", Viewer, Read),
            of("GetSegment", Viewer, Read),
            of("CreateSegment", Operator, Write),
            of("UpdateSegment", Operator, Write),
            of("DeleteSegment", Operator, Write),
            // Settings among the mutations are for admins, as by UpdateSettings.
            of("Apply", Operator, Write),
            of("ApplyStream", Operator, Write),
            of("Watch", Viewer, Stream),
        ],
    ),
    (
        "lb.v1.ClusterService",
        &[
            of("GetStatus", Viewer, Read),
            of("AddNode", Admin, Write),
            of("RemoveNode", Admin, Write),
            of("DrainNode", Operator, Write),
            of("UndrainNode", Operator, Write),
            of("SetNodeAddress", Admin, Write),
            of("FenceNode", Admin, Write),
            of("MoveVip", Operator, Write),
            of("Rebalance", Operator, Write),
            of("GetSettings", Viewer, Read),
            of("UpdateSettings", Admin, Write),
            of("SaveSnapshot", Admin, Read),
            of("RestoreSnapshot", Admin, Write),
        ],
    ),
    (
        "lb.v1.NodeService",
        &[
            of("GetStats", Viewer, Read),
            of("ListFlows", Viewer, Read),
            of("Explain", Viewer, Read),
            of("WatchEvents", Viewer, Stream),
            of("Diagnose", Viewer, Read),
            // It shows what clients and servers say to each other.
            of("Capture", Admin, Stream),
        ],
    ),
    ("grpc.health.v1.Health", &[of("Check", Node, Read), of("Watch", Node, Stream), of("List", Node, Read)]),
    ("grpc.reflection.v1.ServerReflection", &[of("ServerReflectionInfo", Node, Stream)]),
    ("grpc.reflection.v1alpha.ServerReflection", &[of("ServerReflectionInfo", Node, Stream)]),
];

/// By the path of a call, such as "/lb.v1.TableService/ListVips".
pub(super) fn method(path: &str) -> Option<&'static Method> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let (_, methods) = METHODS.iter().find(|(name, _)| *name == service)?;
    methods.iter().find(|of| of.name == method)
}

/// The methods of described services of which nothing is said here.
pub(super) fn unruled(descriptors: &[u8]) -> Vec<String> {
    let Ok(files) = FileDescriptorSet::decode(descriptors) else { return vec!["the descriptors".to_owned()] };
    let mut missing = Vec::new();
    for file in &files.file {
        for service in &file.service {
            let paths =
                service.method.iter().map(|method| format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            missing.extend(paths.filter(|path| method(path).is_none()));
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn each_method_that_is_served_has_its_rule() {
        let all = [
            lb_proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        assert_eq!(all.map(unruled).concat(), Vec::<String>::new());
        let ours = FileDescriptorSet::decode(lb_proto::DESCRIPTORS).unwrap();
        let described: usize =
            ours.file.iter().flat_map(|file| &file.service).map(|service| service.method.len()).sum();
        let ruled: usize = METHODS.iter().filter(|(name, _)| name.starts_with("lb.")).map(|(_, all)| all.len()).sum();
        assert_eq!(described, ruled, "a rule is of a method that there is no more");
    }

    #[test]
    fn what_is_not_known_is_not_called() {
        for path in ["", "/", "/lb.v1.TableService", "/lb.v1.TableService/", "/lb.v1.RaftService/Call", "/nonsense/x"] {
            assert_eq!(method(path), None, "{path}");
        }
    }

    /// `docs/security.md` shows who may call what.
    #[test]
    fn the_documented_matrix_is_the_one_that_holds() {
        let mut matrix = "| method | node | viewer | operator | admin |\n|---|---|---|---|---|\n".to_owned();
        for (service, methods) in METHODS {
            for method in *methods {
                let may = Role::ALL.map(|role| if role >= method.role { "yes" } else { "" });
                let [node, viewer, operator, admin] = may;
                writeln!(matrix, "| `{service}/{}` | {node} | {viewer} | {operator} | {admin} |", method.name).unwrap();
            }
        }
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md");
        let documented = std::fs::read_to_string(file).unwrap();
        assert!(documented.contains(&matrix), "docs/security.md should have this table:\n\n{matrix}");
    }
}
