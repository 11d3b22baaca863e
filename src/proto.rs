//! The generated gRPC code of `proto/jobscheduler.proto`, and what every gRPC server
//! offers beside its own service. Only the edges of the roles (`grpc.rs`,
//! `worker_rpc.rs`, `session.rs`) and the client touch it.

#![expect(missing_docs, reason = "the .proto file documents every field")]
#![expect(
    clippy::allow_attributes,
    reason = "generated code brings its own attributes"
)]

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_reflection::server::{Builder, Error};

tonic::include_proto!("jobscheduler");

/// The compiled file descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/jobscheduler.descriptors"));

/// The metadata entry of a gRPC error that carries its code word.
pub const CODE: &str = "jobctl-code";

/// The code word of a refusal of who was revoked.
pub const REVOKED: &str = "revoked";

/// `services`, which bear these names, with the standard services for health and
/// reflection. The future that comes with them is to be driven: once `closing` is
/// cancelled it has health say so, and ends.
///
/// # Errors
///
/// When the descriptors that are built into this binary are damaged.
pub async fn served(
    services: Routes,
    names: &'static [&'static str],
    closing: CancellationToken,
) -> Result<(Routes, impl Future<Output = ()> + Send + use<>), Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    for name in names {
        health
            .set_service_status(*name, ServingStatus::Serving)
            .await;
    }
    let reflection = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = services
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    let goodbye = async move {
        closing.cancelled().await;
        // The last is the server as a whole, as those ask who name no service.
        for name in names.iter().chain(&[""]) {
            health
                .set_service_status(*name, ServingStatus::NotServing)
                .await;
        }
    };
    Ok((routes, goodbye))
}
