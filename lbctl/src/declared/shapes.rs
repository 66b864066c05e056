//! What can be declared: for each kind of row its messages in the API, what names a row, and which of its fields are its
//! owner's to set.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, MessageDescriptor};

use super::Object;

/// A kind of row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// As the key in a file.
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    message: &'static str,
    /// The request whose fields can be changed.
    update: &'static str,
    /// The fields that name a row.
    pub(crate) key: &'static [&'static str],
    /// Those that are set when it is created and never after.
    pub(super) fixed: &'static [&'static str],
}

pub(crate) static VIP: Shape = Shape {
    plural: "vips",
    singular: "vip",
    message: "lb.v1.Vip",
    update: "lb.v1.UpdateVipRequest",
    key: &["address"],
    fixed: &[],
};
pub(crate) static SERVICE: Shape = Shape {
    plural: "services",
    singular: "service",
    message: "lb.v1.Service",
    update: "lb.v1.UpdateServiceRequest",
    key: &["name"],
    fixed: &["vip", "table_size"],
};
pub(crate) static BACKEND: Shape = Shape {
    plural: "backends",
    singular: "backend",
    message: "lb.v1.Backend",
    update: "lb.v1.UpdateBackendRequest",
    key: &["service", "address"],
    fixed: &[],
};
pub(crate) static SEGMENT: Shape = Shape {
    plural: "segments",
    singular: "segment",
    message: "lb.v1.Segment",
    update: "lb.v1.UpdateSegmentRequest",
    key: &["network"],
    fixed: &[],
};
/// Of the whole cluster: there is one.
pub(crate) static SETTINGS: Shape = Shape {
    plural: "settings",
    singular: "settings",
    message: "lb.v1.ClusterSettings",
    update: "lb.v1.ClusterSettings",
    key: &[],
    fixed: &[],
};

/// The kinds of which there are lists, each after those that it needs.
pub(crate) static SHAPES: [&Shape; 4] = [&SEGMENT, &VIP, &SERVICE, &BACKEND];

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(lb_proto::DESCRIPTORS).expect("the API's own descriptors are sound"));

/// A message of the API.
pub(super) fn descriptor(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(name).unwrap_or_else(|| panic!("the API has no message {name}"))
}

impl Shape {
    pub(super) fn descriptor(&self) -> MessageDescriptor {
        descriptor(self.message)
    }

    pub(super) fn update(&self) -> MessageDescriptor {
        descriptor(self.update)
    }

    /// Whether a field is for whoever writes a file; the others are set by the cluster.
    pub(super) fn is_settable(&self, field: &FieldDescriptor) -> bool {
        self.fixed.contains(&field.name()) || self.update().get_field_by_name(field.name()).is_some()
    }

    /// Its fields that can be set, those that name it first.
    pub(super) fn settable(&self) -> Vec<FieldDescriptor> {
        let (mut first, mut rest): (Vec<_>, Vec<_>) = self
            .descriptor()
            .fields()
            .filter(|field| self.is_settable(field))
            .partition(|field| self.key.contains(&field.name()));
        first.sort_by_key(|field| self.key.iter().position(|name| *name == field.name()));
        first.append(&mut rest);
        first
    }
}

impl Object {
    /// How a person calls it, such as "backend web 10.1.0.11".
    pub(crate) fn name(&self) -> String {
        [self.shape.singular.to_owned()].into_iter().chain(self.key()).collect::<Vec<_>>().join(" ")
    }

    /// What names it, addresses in their usual form.
    pub(super) fn key(&self) -> Vec<String> {
        self.shape.key.iter().map(|field| canonical(&self.text(field))).collect()
    }

    /// The text of a field.
    pub(super) fn text(&self, field: &str) -> String {
        let value = self.message.get_field_by_name(field);
        value.and_then(|value| value.as_str().map(ToOwned::to_owned)).unwrap_or_default()
    }
}

/// An address in its usual form (RFC 5952); any other text as it is.
pub(super) fn canonical(text: &str) -> String {
    text.parse::<std::net::IpAddr>().map_or_else(|_| text.to_owned(), |address| address.to_canonical().to_string())
}

/// A row of the table.
pub(crate) fn of_message(shape: &'static Shape, message: &impl Message) -> Object {
    let mut of = DynamicMessage::new(shape.descriptor());
    of.transcode_from(message).expect("a message is what its descriptor says");
    Object { shape, line: 0, message: of }
}

/// The values of an enum as they are written: in lower case, without the enum's own name. The first one stands for "not
/// set".
pub(super) fn labels(kind: &EnumDescriptor) -> Vec<(i32, String)> {
    let first = kind.default_value();
    let prefix = first.name().strip_suffix("UNSPECIFIED").unwrap_or_default();
    let label = |name: &str| name.strip_prefix(prefix).unwrap_or(name).to_lowercase();
    kind.values().map(|value| (value.number(), label(value.name()))).collect()
}
