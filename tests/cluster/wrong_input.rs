//! Wrong input in every field of every method, made from the descriptors: it is refused with the field's name, and the connection
//! lives on.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use lb_tests::{
    grpc,
    site::{Plan, Site},
};
use prost::{
    Message as _,
    bytes::{Buf, BufMut},
};
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MethodDescriptor, Value};
use tonic::{
    Code, Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};
use tonic_types::StatusExt as _;

/// Bytes as they are.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; from.remaining()];
        from.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

/// Values that a field cannot have, and such that it may have and nobody would expect.
fn values(field: &FieldDescriptor, depth: usize) -> Vec<Value> {
    let single = match field.kind() {
        Kind::String => ["nowhere!", "-1", "256.0.0.1", "../../etc/passwd", "\u{0}", "ü", "10.0.0.0/99"]
            .map(|text| Value::String(text.to_owned()))
            .into_iter()
            .chain([Value::String("x".repeat(5000))])
            .collect(),
        Kind::Bytes => vec![Value::Bytes(vec![0xff; 100].into())],
        Kind::Uint32 => vec![Value::U32(u32::MAX)],
        Kind::Uint64 => vec![Value::U64(u64::MAX)],
        Kind::Int32 => vec![Value::I32(-1)],
        Kind::Bool => vec![Value::Bool(true)],
        Kind::Enum(_) => vec![Value::EnumNumber(99), Value::EnumNumber(-1)],
        Kind::Message(of) if depth > 0 => {
            let inner = of.fields().flat_map(|field| {
                let of = of.clone();
                values(&field, depth - 1).into_iter().map(move |value| {
                    let mut message = DynamicMessage::new(of.clone());
                    message.set_field(&field, value);
                    Value::Message(message)
                })
            });
            [Value::Message(DynamicMessage::new(of.clone()))].into_iter().chain(inner).collect()
        }
        _ => Vec::new(),
    };
    match field.is_list() {
        true => single.into_iter().map(|value| Value::List(vec![value])).collect(),
        false => single,
    }
}

/// So long is waited for the first message of a stream.
const SILENT: Duration = Duration::from_millis(500);

pub(crate) async fn call(channel: &Channel, method: &MethodDescriptor, message: Vec<u8>) -> Result<(), Status> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path = path.parse().map_err(|_| Status::internal("no path"))?;
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(futures::stream::iter([message]));
    request.set_timeout(Duration::from_secs(3));
    let mut answers = client.streaming(request, path, Raw).await?.into_inner();
    // A stream that has begun and says nothing yet was let in.
    tokio::time::timeout(SILENT, answers.message()).await.map_or(Ok(()), |answer| answer.map(drop))
}

/// Each of them is one request, in which nothing else is said.
pub(crate) fn in_every_field() -> anyhow::Result<()> {
    let mut site = Site::build(Plan { nodes: 1, servers: 0, two_interfaces: false, engine: "ring" })?;
    site.start()?;
    let socket = site.nodes[0].socket();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let channel = grpc::connect(socket).await?;
        let pool = DescriptorPool::decode(lb_proto::DESCRIPTORS)?;
        let (mut asked, mut refused) = (0, 0);
        for service in pool.services() {
            for method in service.methods() {
                for field in method.input().fields() {
                    for value in values(&field, 3) {
                        let mut message = DynamicMessage::new(method.input());
                        message.set_field(&field, value.clone());
                        asked += 1;
                        let Err(status) = call(&channel, &method, message.encode_to_vec()).await else { continue };
                        let what = || format!("{} with {} = {value:.200}: {status}", method.full_name(), field.name());
                        refused += 1;
                        let expected = [
                            Code::InvalidArgument,
                            Code::NotFound,
                            Code::FailedPrecondition,
                            Code::AlreadyExists,
                            Code::ResourceExhausted,
                            Code::DeadlineExceeded,
                            Code::Unimplemented,
                        ];
                        ensure!(expected.contains(&status.code()), "{}", what());
                        let details = status.get_error_details();
                        let info = details.error_info().with_context(what)?;
                        let names = info.metadata.get("subject").is_some_and(|subject| !subject.is_empty());
                        ensure!(names || status.code() != Code::InvalidArgument, "no field is named: {}", what());
                        let violates = details.bad_request().is_some_and(|bad| !bad.field_violations.is_empty());
                        ensure!(violates || status.code() != Code::InvalidArgument, "{}", what());
                    }
                }
            }
        }
        println!("{asked} requests, {refused} refusals");
        ensure!(asked > 1000 && refused > 500, "{asked} requests, {refused} refusals");
        Ok(())
    })?;
    ensure!(site.nodes[0].is_running(), "the node has ended");
    let log = site.nodes[0].log();
    let panic = log.lines().skip_while(|line| !line.contains("panicked")).take(3).collect::<Vec<_>>().join(" ");
    ensure!(panic.is_empty(), "{panic}");
    Ok(())
}
