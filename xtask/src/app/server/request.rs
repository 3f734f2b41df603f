//! A request head as this server reads it.

use super::body::Body;

/// A request.
#[derive(Debug)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its target up to the question mark, as received.
    pub path: &'a str,
    /// What follows the question mark.
    pub query: Option<&'a str>,
    /// Everything between request line and empty line.
    fields: &'a str,
    /// What follows the head.
    pub body: Body,
    /// The client waits for `100 Continue`.
    pub expects_continue: bool,
    /// The connection ends after the answer.
    pub close: bool,
}

/// The head is not one of HTTP/1.
#[derive(Debug)]
pub struct Malformed;

impl<'a> Request<'a> {
    /// Parses a head that ends with the line end of its last line.
    pub fn parse(head: &'a [u8]) -> Result<Self, Malformed> {
        let head = std::str::from_utf8(head).map_err(|_not_text| Malformed)?;
        let (line, fields) = head.split_once("\r\n").ok_or(Malformed)?;
        let mut words = line.split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Malformed);
        };
        if !matches!(version, "HTTP/1.1" | "HTTP/1.0") || method.is_empty() || target.is_empty() {
            return Err(Malformed);
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let close = version == "HTTP/1.0";
        let mut request =
            Self { method, path, query, fields, body: Body::Sized(0), expects_continue: false, close };
        request.read_fields()?;
        Ok(request)
    }

    /// Header fields in their order: name as received, value without surrounding space.
    pub fn fields(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let lines = self.fields.split("\r\n").filter(|line| !line.is_empty());
        lines.map(|line| line.split_once(':').map_or((line, ""), |(name, value)| (name, value.trim())))
    }

    /// The `Host` header; empty when absent.
    pub fn host(&self) -> &'a str {
        self.fields().find(|(name, _)| name.eq_ignore_ascii_case("host")).map_or("", |(_, value)| value)
    }

    fn read_fields(&mut self) -> Result<(), Malformed> {
        let (mut length, mut chunked, mut expects) = (None, false, false);
        for (name, value) in self.fields() {
            // The length tells the few names apart that matter here, without comparing all of them.
            match name.len() {
                14 if name.eq_ignore_ascii_case("content-length") => {
                    let value: u64 = value.parse().map_err(|_not_a_number| Malformed)?;
                    if length.replace(value).is_some_and(|before| before != value) {
                        return Err(Malformed);
                    }
                }
                17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                    if !value.eq_ignore_ascii_case("chunked") || chunked {
                        return Err(Malformed);
                    }
                    chunked = true;
                }
                10 if name.eq_ignore_ascii_case("connection") => {
                    for option in value.split(',').map(str::trim) {
                        if option.eq_ignore_ascii_case("close") {
                            self.close = true;
                        } else if option.eq_ignore_ascii_case("keep-alive") {
                            self.close = false;
                        }
                    }
                }
                6 if name.eq_ignore_ascii_case("expect") => {
                    expects = value.eq_ignore_ascii_case("100-continue");
                }
                0 => return Err(Malformed),
                _ => {}
            }
        }
        self.body = match (length, chunked) {
            (Some(_), true) => return Err(Malformed),
            (_, true) => Body::chunked(),
            (length, false) => Body::Sized(length.unwrap_or(0)),
        };
        self.expects_continue = expects && !self.body.is_none();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_stay_open_as_the_version_and_the_header_say() {
        let close = |head: &str| Request::parse(head.as_bytes()).unwrap().close;
        assert!(!close("GET / HTTP/1.1\r\nHost: a\r\n"));
        assert!(close("GET / HTTP/1.1\r\nConnection: x, Close\r\n"));
        assert!(close("GET / HTTP/1.0\r\n"));
        assert!(!close("GET / HTTP/1.0\r\nconnection: keep-alive\r\n"));
    }

    #[test]
    fn the_target_is_split_at_its_first_question_mark() {
        let request = Request::parse(b"GET /a%20b?c=d?e HTTP/1.1\r\nHOST: x:80 \r\n").unwrap();
        assert_eq!((request.path, request.query, request.host()), ("/a%20b", Some("c=d?e"), "x:80"));
    }
}
