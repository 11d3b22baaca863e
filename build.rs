//! Compiles `proto/` with protox, so that no machine needs protoc, and nothing else.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/jobscheduler.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Reflection serves this very file, so it can never tell another story than the code.
    fs::write(
        out.join("jobscheduler.descriptors"),
        descriptors.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        .bytes("jobscheduler.StreamJobResponse.output")
        // So that none of these is much larger than the rest of its `oneof`.
        .boxed("jobscheduler.QueryResponse.about.job")
        .boxed("jobscheduler.QueryResponse.about.group")
        .boxed("jobscheduler.WatchJobsResponse.event.job")
        .boxed("jobscheduler.WatchJobsResponse.event.group")
        .boxed("jobscheduler.WatchJobsResponse.event.worker")
        .compile_fds(descriptors)?;
    Ok(())
}
