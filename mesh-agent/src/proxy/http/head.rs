//! The head of a request while it is routed, edited and sent: what every try is made from.
//!
//! Between stations 5 and 12. Host and path are kept apart from the headers until a request is sent, since HTTP/1 and HTTP/2
//! write them in different places.

use http::header::HOST;
use http::uri::Uri;
use http::{HeaderMap, HeaderValue, Method, Request, Version};

use super::body::RequestBody;
use super::headers;
use crate::model::{Filter, HeaderEdit, PathFault, RequestPath};
use crate::route::{RequestHead, filters};

/// Why a head cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The path.
    Path(PathFault),
    /// The host is no host, or there are two.
    Host,
    /// A value with white space around it: who trims it reads another one than who does not (RFC 9113 section 8.2.1). In
    /// HTTP/1 the parser has trimmed it.
    HeaderValue,
}

impl Unreadable {
    /// Stable label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Path(fault) => fault.label(),
            Self::Host => "host",
            Self::HeaderValue => "header_value",
        }
    }
}

/// A request's head.
#[derive(Clone, Debug)]
pub struct Head {
    /// Method.
    pub method: Method,
    /// The target as it came.
    uri: Uri,
    /// Path in its normal form and query; `None`: the target has none (CONNECT) or is `*`.
    path_and_query: Option<String>,
    path_bytes: usize,
    /// What the request is for.
    pub host: Option<HeaderValue>,
    /// Headers, `Host` among them only as far as `host` does not say it.
    pub headers: HeaderMap,
    /// What the client wants to change to.
    pub upgrade: Option<HeaderValue>,
}

impl Head {
    /// Takes a request's head apart: paths are normalised, what concerns one hop only is taken off.
    ///
    /// # Errors
    /// The path has no normal form, or the host is none.
    pub fn of<B>(request: &mut Request<B>) -> Result<Self, Unreadable> {
        let host = headers::host(request)?;
        if request.version() == Version::HTTP_2 && request.headers().values().any(has_white_space_around) {
            return Err(Unreadable::HeaderValue);
        }
        let uri = request.uri().clone();
        let mut map = std::mem::take(request.headers_mut());
        map.remove(HOST);
        // HTTP/2 begins with its preface; the upgrade to it is gone since RFC 9113 (section 3.1).
        let upgrade =
            headers::upgrade(&map).filter(|protocol| !protocol.as_bytes().eq_ignore_ascii_case(b"h2c"));
        headers::strip_hop_by_hop(&mut map);
        map.remove(headers::FORWARDED_CLIENT_CERT);
        let mut head = Self {
            method: request.method().clone(),
            path_and_query: None,
            path_bytes: 0,
            host,
            headers: map,
            upgrade,
            uri,
        };
        head.read_path()?;
        Ok(head)
    }

    fn read_path(&mut self) -> Result<(), Unreadable> {
        let is_http = self.uri.scheme_str().is_none_or(|scheme| matches!(scheme, "http" | "https"));
        if self.method == Method::CONNECT && self.uri.scheme().is_none() {
            return if self.host.is_some() { Ok(()) } else { Err(Unreadable::Host) };
        }
        let path = RequestPath::parse(self.uri.path()).map_err(Unreadable::Path)?;
        // `*` is for OPTIONS, a target without a path for CONNECT (RFC 9112 section 3.2).
        match (path.is_asterisk(), path.is_authority()) {
            (true, _) if self.method == Method::OPTIONS => return Ok(()),
            (false, false) if is_http => {}
            _ => return Err(Unreadable::Path(PathFault::NotAbsolute)),
        }
        self.path_bytes = path.as_str().len();
        self.path_and_query = Some(match self.uri.query() {
            Some(query) => format!("{}?{query}", path.as_str()),
            None => path.as_str().to_owned(),
        });
        Ok(())
    }

    /// The path in its normal form; `*` or nothing for targets without one.
    pub fn path(&self) -> &str {
        match &self.path_and_query {
            Some(text) => &text[..self.path_bytes],
            None if self.method == Method::CONNECT => "",
            None => "*",
        }
    }

    /// Path and query.
    pub fn path_and_query(&self) -> &str {
        self.path_and_query.as_deref().unwrap_or("/")
    }

    fn query(&self) -> Option<&str> {
        self.path_and_query.as_ref()?.get(self.path_bytes + 1..)
    }

    /// The host as text.
    pub fn host(&self) -> Option<&str> {
        self.host.as_ref()?.to_str().ok()
    }

    /// For routing.
    pub fn ask(&self) -> RequestHead<'_> {
        let path = if self.path_and_query.is_some() { self.path() } else { "/" };
        RequestHead {
            host: self.host(),
            method: &self.method,
            path,
            query: self.query(),
            headers: &self.headers,
        }
    }

    /// Carries out the filters that change a request. `prefix` is what the rule matched of the path.
    pub fn edit(&mut self, edits: &[Filter], prefix: Option<&str>) {
        for filter in edits {
            match filter {
                Filter::RequestHeaders(edit) => self.edit_headers(edit),
                Filter::Rewrite(rewrite) => {
                    if let Some(hostname) = &rewrite.hostname {
                        self.host = HeaderValue::from_str(hostname).ok();
                    }
                    if let (Some(_), Some(path)) = (&rewrite.path, &self.path_and_query) {
                        let path = filters::rewrite(rewrite, prefix, path);
                        self.path_bytes = path.find('?').unwrap_or(path.len());
                        self.path_and_query = Some(path);
                    }
                }
                Filter::ResponseHeaders(_) | Filter::Redirect(_) | Filter::Mirror(_) | Filter::Cors(_) => {}
            }
        }
    }

    /// `Host` is a header to who writes a filter, whatever the version.
    fn edit_headers(&mut self, edit: &HeaderEdit) {
        filters::edit_headers(edit, &mut self.headers);
        if let Some(host) = self.headers.remove(HOST) {
            self.host = Some(host);
        }
    }

    /// A request with this head. The headers go with it; [`Head::recover`] brings them back.
    pub fn request(&mut self, body: RequestBody, is_h2: bool) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = std::mem::take(&mut self.headers);
        *request.uri_mut() = self.uri.clone();
        let version = if is_h2 { Version::HTTP_2 } else { Version::HTTP_11 };
        if !is_h2 && let Some(protocol) = &self.upgrade {
            headers::set_upgrade(request.headers_mut(), protocol.clone());
        }
        headers::address(&mut request, self.host.clone(), self.path_and_query.as_deref(), version);
        headers::settle_trailer(request.headers_mut(), version);
        request
    }

    /// Takes the headers of a request back that was not sent.
    pub fn recover(&mut self, mut request: Request<RequestBody>) {
        self.headers = std::mem::take(request.headers_mut());
        self.headers.remove(HOST);
        headers::strip_hop_by_hop(&mut self.headers);
    }
}

fn has_white_space_around(value: &HeaderValue) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_space(value.as_bytes().first()) || is_space(value.as_bytes().last())
}
