//! What every request passes before a handler sees it: whether it is meant for
//! this scheduler, who makes it, and whether they may.

use std::net::IpAddr;

use axum::{
    body::{Body, Bytes, HttpBody as _},
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, Method, Uri, header},
    middleware::Next,
    response::Response,
};
use futures_util::{StreamExt as _, future::ready, stream};
use http_body::Frame;
use http_body_util::{BodyStream, StreamBody};

use super::{
    super::{
        Scheduler,
        access::{Access, Caller},
        error::Error,
    },
    V1,
};
use crate::{
    identity::rules,
    net::accept::{self, Connection},
};

/// What a browser says of the page that makes a request (Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Lets a request through, with its [`Caller`], or refuses it.
pub(super) async fn admit(
    State(scheduler): State<Scheduler>,
    route: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    let path = request.uri().path();
    let path = path.strip_prefix(V1).unwrap_or(path);
    let method = match *request.method() {
        Method::HEAD => &Method::GET,
        ref method => method,
    };
    let call = format!("{method} {path}");
    let connection = request.extensions().get::<Connection>();
    let mut caller = Caller::nobody(connection.map(|connection| connection.address));
    let admitted = (|| {
        is_meant(&scheduler.names, request.uri(), request.headers())?;
        let bearer = bearer(request.headers())?;
        let access = &scheduler.access;
        access.identify(&mut caller, connection, bearer)?;
        match is_missing(route.as_ref(), &call, path) {
            // Whoever is known is told that there is no such thing.
            true if caller.role.is_some() => Ok(()),
            true => Err(Error::Unidentified),
            false => caller.may(rules::HTTP, &call),
        }
    })();
    if let Err(error) = admitted {
        scheduler.access.refused(&caller, &call, &error);
        return Err(error);
    }
    request.extensions_mut().insert(caller.clone());
    if caller.role.is_none() {
        let (head, body) = request.into_parts();
        let body = accept::whole(body, scheduler.bounds.headers).await?;
        request = Request::from_parts(head, body);
    }
    let cut = caller.cut.clone();
    let response = tokio::select! {
        response = next.run(request) => response,
        // Of what is held back until something happens, say.
        () = cut.cancelled() => return Err(scheduler.access.why_cut(&caller)),
    };
    Ok(response.map(|body| {
        until_cut(body, caller, scheduler.access, |error| {
            Err(axum::Error::new(error))
        })
    }))
}

/// There is no such route, or not with this method: what is in no rule although
/// it is there, is refused.
fn is_missing(route: Option<&MatchedPath>, call: &str, path: &str) -> bool {
    let has_rule = rules::HTTP.iter().any(|rule| rule.call == call);
    let is_elsewhere = rules::HTTP.iter().any(|rule| {
        rule.call
            .split_once(' ')
            .is_some_and(|(_, known)| known == path)
    });
    !has_rule && (route.is_none() || is_elsewhere)
}

/// Refuses what a web page makes a browser send here: under a name that somebody
/// else has pointed at this address, or from another site.
fn is_meant(names: &[String], uri: &Uri, headers: &HeaderMap) -> Result<(), Error> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let asked = match uri.authority() {
        Some(authority) => authority.as_str(),
        None => text(header::HOST).unwrap_or_default(),
    };
    let host = host_of(asked);
    let is_name = names.iter().any(|name| name.eq_ignore_ascii_case(host));
    // An address cannot be made to mean another one.
    if !is_name && host.parse::<IpAddr>().is_err() {
        return Err(Error::ForeignHost(host.to_owned()));
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let site = origin.split_once("://").map(|(_, site)| site);
        if site != Some(asked) {
            return Err(Error::CrossSite);
        }
    }
    match text(SEC_FETCH_SITE) {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) => Err(Error::CrossSite),
    }
}

/// Refuses whatever a web page makes a browser send.
pub(in super::super) fn is_no_page(headers: &HeaderMap) -> Result<(), Error> {
    match headers.contains_key(header::ORIGIN) || headers.contains_key(SEC_FETCH_SITE) {
        true => Err(Error::CrossSite),
        false => Ok(()),
    }
}

/// Without port and brackets.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

/// The token that a request shows.
pub(in super::super) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Error> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| Error::BadToken)?;
    let (scheme, token) = text.split_once(' ').ok_or(Error::BadToken)?;
    let is_one = values.next().is_none();
    match is_one && scheme.eq_ignore_ascii_case("bearer") {
        true => Ok(Some(token.trim())),
        false => Err(Error::BadToken),
    }
}

/// An answer that is still being sent ends with what its reader may read: `last`
/// makes the end of the error.
pub(in super::super) fn until_cut(
    body: Body,
    caller: Caller,
    access: Access,
    last: impl FnOnce(Error) -> Result<Frame<Bytes>, axum::Error> + Send + 'static,
) -> Body {
    if body.is_end_stream() || body.size_hint().exact().is_some() || caller.role.is_none() {
        return body;
    }
    let over = async move {
        let error = tokio::select! {
            () = caller.cut.cancelled() => access.why_cut(&caller),
            () = access.expired(&caller) => Error::Unidentified,
        };
        last(error)
    };
    // None: nothing follows.
    let end = || stream::once(ready(None));
    let frames = BodyStream::new(body).map(Some).chain(end());
    let over = stream::once(over).map(Some).chain(end());
    let until = stream::select(frames, over);
    let until = until.take_while(|frame| ready(frame.is_some()));
    Body::new(StreamBody::new(until.filter_map(ready)))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn meant(host: &str, headers: &[(HeaderName, &str)]) -> Result<(), Error> {
        let mut all = HeaderMap::new();
        all.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        for (name, value) in headers {
            all.insert(name, HeaderValue::from_str(value).unwrap());
        }
        let names = ["localhost".to_owned(), "jobs.example".to_owned()];
        is_meant(&names, &Uri::from_static("/jobs"), &all)
    }

    #[test]
    fn only_its_own_names_and_pages_reach_a_scheduler() {
        for good in [
            "127.0.0.1:3000",
            "[::1]:3000",
            "10.0.0.1",
            "localhost:1",
            "LOCALHOST",
            "jobs.example:3000",
        ] {
            assert!(meant(good, &[]).is_ok(), "{good}");
            let own = format!("https://{good}");
            assert!(meant(good, &[(header::ORIGIN, &own)]).is_ok(), "{good}");
            let evil = [(header::ORIGIN, "https://evil.example")];
            assert!(matches!(meant(good, &evil), Err(Error::CrossSite)));
            let evil = [(header::ORIGIN, "null")];
            assert!(matches!(meant(good, &evil), Err(Error::CrossSite)));
            let evil = [(SEC_FETCH_SITE, "cross-site")];
            assert!(matches!(meant(good, &evil), Err(Error::CrossSite)));
        }
        for bad in ["evil.example", "evil.example:3000", "", "localhost.evil"] {
            let refused = meant(bad, &[]);
            assert!(matches!(refused, Err(Error::ForeignHost(_))), "{bad}");
        }
    }

    #[test]
    fn a_token_is_taken_in_one_form_only() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                let value = HeaderValue::from_str(value).unwrap();
                headers.append(header::AUTHORIZATION, value);
            }
            bearer(&headers).map(|token| token.map(str::to_owned))
        };
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&["bearer a.b"]).unwrap().unwrap(), "a.b");
        for bad in [&["Basic a.b"][..], &["a.b"], &["Bearer a", "Bearer b"]] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }
}
