//! `GET /events`: what has changed, to whoever watches.

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use futures_util::stream;

use super::{
    super::{
        Scheduler,
        error::Error,
        events::{self, Watcher},
        logs::{Format, LAST_EVENT_ID},
    },
    Params,
};
use crate::api::{self, EventData, EventKind};

pub(super) async fn watch(
    State(scheduler): State<Scheduler>,
    headers: HeaderMap,
    Params(mut asked): Params<api::EventsQuery>,
) -> Result<Response, Error> {
    if let Some(last) = headers.get(LAST_EVENT_ID) {
        let id = last.to_str().ok().and_then(|text| text.parse().ok());
        let bad = || Error::BadRequest("last-event-id is no id of an event".to_owned());
        asked.after = Some(id.ok_or_else(bad)?);
    }
    let watcher = events::watch(&scheduler, &asked).await?;
    let (encode, content_type): (fn(&api::Event) -> Bytes, _) = match Format::accepted(&headers) {
        Format::Ndjson => (line, api::NDJSON),
        Format::Text | Format::Events | Format::Protobuf => (event, "text/event-stream"),
    };
    let events = stream::try_unfold(watcher, move |mut watcher: Watcher| async move {
        let event = watcher.next().await?;
        Ok::<_, Error>(Some((encode(&event), watcher)))
    });
    let mut response = Body::from_stream(events).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    let content_type = HeaderValue::from_static(content_type);
    headers.insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

/// Nothing in an event is a map with odd keys, so that it always has a JSON form.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn line(event: &api::Event) -> Bytes {
    let mut text = json(event);
    text.push('\n');
    text.into()
}

fn event(event: &api::Event) -> Bytes {
    let id = event.id;
    let (name, data) = match &event.data {
        EventData::Job(job) => (EventKind::Job.as_str(), json(job)),
        EventData::Group(group) => (EventKind::Group.as_str(), json(group)),
        EventData::Worker(worker) => (EventKind::Worker.as_str(), json(worker)),
        EventData::Reset(reset) => ("reset", json(reset)),
        // Without data no event is fired, and the id is remembered all the same.
        EventData::KeepAlive => return format!(": keep-alive\nid: {id}\n\n").into(),
    };
    format!("id: {id}\nevent: {name}\ndata: {data}\n\n").into()
}
