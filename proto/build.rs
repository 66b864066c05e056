//! Compiles the .proto files with protox: no `protoc` is needed on the machine.

use std::{env, error::Error, fmt::Write as _, fs, path::PathBuf};

use prost::Message as _;
use prost_types::{
    FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

fn main() -> Result<(), Box<dyn Error>> {
    let public = ["lb/v1/table.proto", "lb/v1/cluster.proto", "lb/v1/node.proto"];
    println!("cargo:rerun-if-changed=lb");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let operators = protox::compile(public, ["."])?;
    fs::write(out.join("labels.rs"), labels(&operators)?)?;
    let mut builder = tonic_prost_build::configure()
        .type_attribute(".", "#[cfg_attr(feature = \"serde\", derive(serde::Serialize))]");
    for (path, attribute) in enum_fields(&operators) {
        builder = builder.field_attribute(path, attribute);
    }
    for path in masks(&operators) {
        // Of requests alone, which nobody prints.
        builder = builder.field_attribute(path, "#[cfg_attr(feature = \"serde\", serde(skip))]");
    }
    for path in oneofs(&operators) {
        // Under the name of the oneof stands the field that is set.
        let names = "#[cfg_attr(feature = \"serde\", serde(rename_all = \"snake_case\"))]";
        builder = builder.type_attribute(&path, names);
    }
    // For reflection: the operators' services, without the nodes' own.
    fs::write(out.join("descriptors.bin"), operators.encode_to_vec())?;
    let all = protox::compile(public.into_iter().chain(["lb/v1/raft.proto"]), ["."])?;
    builder.compile_fds(all)?;
    Ok(())
}

/// An `impl Label` for each enum: its values' names in lower case, without that of the enum.
fn labels(descriptors: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    for kind in descriptors.file.iter().flat_map(|file| &file.enum_type) {
        let name = kind.name();
        let first = kind.value.first().map(|value| value.name()).unwrap_or_default();
        let prefix = first.strip_suffix("UNSPECIFIED").ok_or(format!("{name} does not begin with UNSPECIFIED"))?;
        writeln!(text, "impl Label for v1::{name} {{")?;
        writeln!(text, "    fn label(self) -> &'static str {{")?;
        writeln!(text, "        match self as i32 {{")?;
        for value in &kind.value {
            let label = value.name().strip_prefix(prefix).ok_or(format!("{name} has {}", value.name()))?;
            writeln!(text, "            {} => {:?},", value.number(), label.to_lowercase())?;
        }
        writeln!(text, "            _ => UNKNOWN,\n        }}\n    }}\n}}")?;
    }
    Ok(text)
}

/// The fields that hold a value of an enum, and how they are serialized: by its label.
fn enum_fields(descriptors: &FileDescriptorSet) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    for file in &descriptors.file {
        for message in &file.message_type {
            for field in
                message.field.iter().filter(|field| field.r#type() == Type::Enum && field.label() != Label::Repeated)
            {
                let path = format!(".{}.{}.{}", file.package(), message.name(), field.name());
                let kind = field.type_name().rsplit('.').next().unwrap_or_default();
                let how = if field.proto3_optional() { "optional_by_label" } else { "by_label" };
                let with = format!("serialize_with = \"crate::labels::{how}::<{kind}, _>\"");
                fields.push((path, format!("#[cfg_attr(feature = \"serde\", serde({with}))]")));
            }
        }
    }
    fields
}

/// The fields that say which others are meant.
fn masks(descriptors: &FileDescriptorSet) -> Vec<String> {
    let mut paths = Vec::new();
    for file in &descriptors.file {
        for message in &file.message_type {
            for field in message.field.iter().filter(|field| field.type_name() == ".google.protobuf.FieldMask") {
                paths.push(format!(".{}.{}.{}", file.package(), message.name(), field.name()));
            }
        }
    }
    paths
}

/// The oneofs that are written as such; an optional field is one, too.
fn oneofs(descriptors: &FileDescriptorSet) -> Vec<String> {
    let mut paths = Vec::new();
    for file in &descriptors.file {
        for message in &file.message_type {
            for (at, oneof) in (0..).zip(&message.oneof_decl) {
                let is_its = |field: &&prost_types::FieldDescriptorProto| field.oneof_index == Some(at);
                if message.field.iter().filter(is_its).any(|field| !field.proto3_optional()) {
                    paths.push(format!(".{}.{}.{}", file.package(), message.name(), oneof.name()));
                }
            }
        }
    }
    paths
}
