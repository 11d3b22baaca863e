//! The generated gRPC code of `proto/jobscheduler.proto`. Only the edges of the
//! roles (`grpc.rs`, `worker_rpc.rs`, `session.rs`) and the client touch it.

#![expect(missing_docs, reason = "the .proto file documents every field")]
#![expect(
    clippy::allow_attributes,
    reason = "generated code brings its own attributes"
)]

tonic::include_proto!("jobscheduler");

/// The compiled file descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/jobscheduler.descriptors"));

/// The metadata entry of a gRPC error that carries its code word.
pub const CODE: &str = "jobctl-code";

/// The code word of a refusal of who was revoked.
pub const REVOKED: &str = "revoked";
