//! `[node]`.

use std::path::PathBuf;

use lb_raft_store::table::{Name, Role};

use super::reader::Section;

/// Who this node is, as far as the file says.
pub(super) struct Node {
    pub(super) name: Option<Name>,
    pub(super) role: Role,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) user: Option<String>,
}

pub(super) fn read(node: &mut Section) -> Node {
    Node {
        name: node.required("name", |text| text.parse::<Name>().map_err(|error| error.to_string())),
        role: node.optional("role", parse_role).unwrap_or_default(),
        data_dir: node.required("data_dir", absolute_path),
        user: node
            .optional("user", |text| if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }),
    }
}

fn parse_role(text: &str) -> Result<Role, String> {
    match text {
        "lb" => Ok(Role::Lb),
        "witness" => Ok(Role::Witness),
        _ => Err(format!("{text:?} is neither \"lb\" nor \"witness\"")),
    }
}

pub(super) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(format!("{text:?} is not an absolute path")) }
}
