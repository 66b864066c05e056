//! The operators' API is a promise: what is in `proto/lb/v1/frozen.txt` stays, under its name, its number and its type.

use std::{collections::BTreeSet, fs};

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, field_descriptor_proto::Label,
};

use crate::root;

fn of_field(message: &str, field: &FieldDescriptorProto) -> String {
    let kind = match field.type_name() {
        "" => format!("{:?}", field.r#type()).to_lowercase(),
        named => named.trim_start_matches('.').to_owned(),
    };
    let label = match (field.label(), field.proto3_optional()) {
        (Label::Repeated, _) => "repeated ",
        (_, true) => "optional ",
        _ => "",
    };
    format!("{message}.{} = {} {label}{kind}", field.name(), field.number())
}

fn of_message(package: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let name = format!("{package}.{}", message.name());
    lines.extend(message.field.iter().map(|field| of_field(&name, field)));
    message.nested_type.iter().for_each(|nested| of_message(&name, nested, lines));
}

fn of_enum(package: &str, kind: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    let value = |value: &prost_types::EnumValueDescriptorProto| {
        format!("{package}.{}.{} = {}", kind.name(), value.name(), value.number())
    };
    lines.extend(kind.value.iter().map(value));
}

/// A line for each field, value and method.
fn lines() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(lb_proto::DESCRIPTORS).unwrap();
    let mut lines = BTreeSet::new();
    for file in set.file.iter().filter(|file| file.package() == "lb.v1") {
        file.message_type.iter().for_each(|message| of_message(file.package(), message, &mut lines));
        file.enum_type.iter().for_each(|kind| of_enum(file.package(), kind, &mut lines));
        for service in &file.service {
            lines.extend(service.method.iter().map(|method| {
                let stream = |is: bool| if is { "stream " } else { "" };
                format!(
                    "{}.{}/{}({}{}) returns ({}{})",
                    file.package(),
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type().trim_start_matches('.'),
                    stream(method.server_streaming()),
                    method.output_type().trim_start_matches('.')
                )
            }));
        }
    }
    lines
}

#[test]
fn what_was_promised_of_the_api_is_there() {
    let path = root().join("proto/lb/v1/frozen.txt");
    let frozen: BTreeSet<String> = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    let now = lines();
    let gone: Vec<&String> = frozen.difference(&now).collect();
    assert!(gone.is_empty(), "a breaking change: {gone:#?}");
    let new: Vec<&str> = now.difference(&frozen).map(String::as_str).collect();
    assert!(new.is_empty(), "new, and to be promised in {}:\n{}", path.display(), new.join("\n"));
}
