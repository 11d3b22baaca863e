//! Every call to a worker, with its deadline. Who the workers are is in
//! `registry.rs`; what an answer means for a job is in `jobs.rs`.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tonic::{
    Request, Response, Status as GrpcStatus, Streaming,
    transport::{Channel, Endpoint, Uri},
};

use super::{
    error::Error,
    jobs::{Record, Status, Stop},
    lineage::Epoch,
    store::Env,
    wire,
};
use crate::{
    api,
    identity::tls::Peer,
    ids::{JobId, WorkerId},
    net::dial::{self, Security},
    proto::{self, worker_client::WorkerClient},
};

/// What one follower may have in flight, which is the most memory it costs here.
const STREAM_WINDOW: u32 = 1 << 20;

/// More than all followers' windows together, so that followers who do not
/// read can never hold up another call on the connection.
const CONNECTION_WINDOW: u32 = 1 << 30;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// While a stream is open, a connection that has fallen silent is noticed
/// after these two.
const KEEPALIVE: Duration = Duration::from_secs(4);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// The one connection to a worker, made at the first call and again whenever
/// it broke. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct WorkerRpc {
    worker: Arc<str>,
    address: Arc<str>,
    client: WorkerClient<Channel>,
    calls: Calls,
    followers: Arc<Mutex<Followers>>,
}

/// What all calls to workers have in common.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    /// Of every call but those that are streams.
    pub(super) deadline: Duration,
    /// Which start of the scheduler this is.
    pub(super) epoch: Epoch,
    /// The most followers at once of one worker.
    pub(super) followers: u32,
    /// The most followers at once of one job.
    pub(super) job_followers: u32,
    pub(super) security: Security,
}

/// The followers of one worker, counted.
#[derive(Debug, Default)]
struct Followers {
    count: u32,
    of: HashMap<JobId, u32>,
}

/// One follower among those of its worker and its job; given back when dropped.
#[derive(Debug)]
struct Following {
    followers: Arc<Mutex<Followers>>,
    job: JobId,
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut followers = lock(&self.followers);
        followers.count -= 1;
        if let Entry::Occupied(mut of_job) = followers.of.entry(self.job) {
            *of_job.get_mut() -= 1;
            if *of_job.get() == 0 {
                of_job.remove();
            }
        }
    }
}

fn lock(followers: &Mutex<Followers>) -> MutexGuard<'_, Followers> {
    followers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From where, and what, of a job's output.
#[derive(Clone, Debug, Default)]
pub(super) struct OutputRequest {
    pub(super) offset: u64,
    pub(super) follow: bool,
    pub(super) tail: Option<u64>,
    pub(super) since_us: Option<i64>,
    pub(super) stream: proto::OutputStream,
    /// How much the job has written, where that is recorded.
    pub(super) written: Option<u64>,
}

/// A job's output on its way. Dropping it ends the stream on the worker.
#[derive(Debug)]
pub(super) struct Output {
    messages: Streaming<proto::StreamJobResponse>,
    _following: Following,
}

impl WorkerRpc {
    /// Prepares the connection to a worker, and does not wait for it. `address`
    /// must be host:port; whoever else is there is not called.
    pub(super) fn new(
        id: WorkerId,
        name: &str,
        address: &str,
        calls: Calls,
    ) -> Result<Self, Error> {
        let bad = || Error::BadAddress(address.to_owned());
        let uri: Uri = format!("http://{address}").parse().map_err(|_| bad())?;
        let authority = uri.authority().ok_or_else(bad)?;
        let port = authority.port_u16().filter(|port| *port > 0);
        if authority.as_str() != address
            || port.is_none()
            || authority.host().is_empty()
            || address.contains('@')
        {
            return Err(bad());
        }
        let endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT_TIMEOUT.min(calls.deadline))
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let peer = Peer::Worker(id.into());
        let channel = dial::channel(&endpoint, calls.security.clone(), peer);
        Ok(Self {
            worker: name.into(),
            address: address.into(),
            client: WorkerClient::new(channel),
            calls,
            followers: Arc::default(),
        })
    }

    /// Returns when the job's process runs, with what the worker says of it.
    pub(super) async fn start(&self, record: &Record, env: &Env) -> Result<Option<Status>, Error> {
        let mut client = self.client.clone();
        let request = self.request(wire::start_request(record, env, self.calls.epoch.get()));
        let answer = self.within(client.start_job(request)).await?;
        Ok(answer.status.as_ref().and_then(wire::status))
    }

    /// Returns when the signal was sent; the end of the job is reported later.
    pub(super) async fn stop(&self, job: JobId, stop: Stop) -> Result<(), Error> {
        let mut client = self.client.clone();
        let request = self.request(proto::StopJobRequest {
            job_id: job.to_string(),
            signal: stop.signal.unwrap_or_default(),
            grace_ms: stop.grace.map(api::whole_milliseconds),
            no_wait: true,
            epoch: self.calls.epoch.get(),
        });
        self.within(client.stop_job(request)).await?;
        Ok(())
    }

    /// How the worker says a job stands.
    pub(super) async fn query(&self, job: JobId) -> Result<Option<Status>, Error> {
        let mut client = self.client.clone();
        let request = self.request(proto::QueryJobRequest {
            job_id: job.to_string(),
            epoch: self.calls.epoch.get(),
        });
        let answer = self.within(client.query_job(request)).await?;
        Ok(answer.status.as_ref().and_then(wire::status))
    }

    /// Returns when the worker has answered a call, whatever it said.
    ///
    /// # Errors
    ///
    /// Why it cannot be called, in words that go behind its name.
    pub(super) async fn dial(&self) -> Result<(), String> {
        let mut client = self.client.clone();
        // Nothing is asked but whether it answers: it knows no such job.
        let request = self.request(proto::QueryJobRequest {
            job_id: JobId::random().to_string(),
            epoch: self.calls.epoch.get(),
        });
        let deadline = self.calls.deadline;
        let why = match tokio::time::timeout(deadline, client.query_job(request)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) => match Error::from_status(&self.worker, deadline, &status) {
                Error::WorkerUnreachable { .. } => dial::innermost(&status),
                _ => return Ok(()),
            },
            Err(_) => format!("no answer within {deadline:?}"),
        };
        Err(format!("cannot be dialled at {}: {why}", self.address))
    }

    /// Returns when the worker has agreed to send; the deadline does not bound
    /// the stream itself.
    pub(super) async fn output(&self, job: JobId, asked: OutputRequest) -> Result<Output, Error> {
        let following = self.follow(job)?;
        let mut client = self.client.clone();
        let request = proto::StreamJobRequest {
            job_id: job.to_string(),
            offset: asked.offset,
            no_follow: !asked.follow,
            tail_lines: asked.tail,
            since_us: asked.since_us,
            stream: asked.stream.into(),
            attempt: 0,
            epoch: self.calls.epoch.get(),
            output_bytes: asked.written,
        };
        let messages = self.within(client.stream_job(request)).await?;
        Ok(Output {
            messages,
            _following: following,
        })
    }

    /// One follower more.
    fn follow(&self, job: JobId) -> Result<Following, Error> {
        let mut followers = lock(&self.followers);
        if followers.count >= self.calls.followers {
            return Err(Error::TooManyFollowers {
                worker: self.worker.to_string(),
                limit: self.calls.followers,
            });
        }
        let limit = self.calls.job_followers;
        let of_job = followers.of.entry(job).or_default();
        if *of_job >= limit {
            return Err(Error::TooManyFollowersOfJob { job, limit });
        }
        *of_job += 1;
        followers.count += 1;
        Ok(Following {
            followers: self.followers.clone(),
            job,
        })
    }

    /// Tells the worker, too, when nobody will wait any longer.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.calls.deadline);
        request
    }

    async fn within<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, GrpcStatus>>,
    ) -> Result<T, Error> {
        let began = Instant::now();
        match tokio::time::timeout(self.calls.deadline, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Error::from_status(
                &self.worker,
                self.calls.deadline,
                &status,
            )),
            Err(_) => {
                tracing::warn!(worker = %self.worker, waited = ?began.elapsed(), "no answer to a call");
                Err(Error::too_slow(&self.worker, self.calls.deadline))
            }
        }
    }
}

impl Output {
    /// The next message; None when the worker closed the stream. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<proto::StreamJobResponse>, GrpcStatus> {
        self.messages.message().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rpc(address: &str, seconds: u64) -> Result<WorkerRpc, Error> {
        let calls = Calls {
            deadline: Duration::from_secs(seconds),
            epoch: Epoch::new(1),
            followers: 3,
            job_followers: 2,
            security: Security::Insecure,
        };
        WorkerRpc::new(WorkerId::random(), "w1", address, calls)
    }

    #[tokio::test]
    async fn an_address_is_host_and_port() {
        let new = |address| rpc(address, 1);
        for good in ["127.0.0.1:30000", "[::1]:30000", "worker-1.example:1"] {
            assert!(new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:0",
            "127.0.0.1:70000",
            ":30000",
            "a b:1",
            "me@host:1",
            "host:1/path",
            "http://host:1",
            "::1:30000",
        ] {
            assert!(new(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn followers_are_counted() {
        let rpc = rpc("127.0.0.1:1", 1).unwrap();
        let [one, other, third] = [JobId::random(), JobId::random(), JobId::random()];
        let first = rpc.follow(one).unwrap();
        let second = rpc.clone().follow(one).unwrap();
        let refused = rpc.follow(one).unwrap_err();
        assert!(matches!(refused, Error::TooManyFollowersOfJob { job, limit: 2 } if job == one));
        let of_other = rpc.follow(other).unwrap();
        let refused = rpc.output(third, OutputRequest::default()).await;
        assert!(matches!(
            refused,
            Err(Error::TooManyFollowers { limit: 3, .. })
        ));
        drop(second);
        drop(rpc.follow(one).unwrap());
        drop((first, of_other));
        let left = lock(&rpc.followers);
        assert_eq!((left.count, left.of.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_worker_that_is_not_there_cannot_be_reached() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let rpc = rpc(&address, 5).unwrap();
        let refused = rpc.output(JobId::random(), OutputRequest::default()).await;
        let error = refused.unwrap_err();
        assert_eq!(error.to_string(), "worker w1 cannot be reached");
    }
}
