//! Changes of paths, `Location`, and the filters that need no route.

use http::{HeaderMap, StatusCode};

use super::fixtures::edit;
use crate::model::{BackendTarget, Mirror, PathEdit, Redirect};
use crate::route::filters::{RedirectFrom, edit_headers, edit_path, is_mirrored, redirect};
use crate::route::host_without_port;

/// The table of `HTTPPathModifier.replacePrefixMatch` in Gateway API, and what it leaves open.
#[test]
fn a_replaced_prefix_joins_with_one_slash() {
    let table = [
        // Path, prefix as written, replacement, path for the backend.
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        // Ours.
        ("/foo", "/foo", "/xyz/", "/xyz"),
        ("/foo/bar?a=/foo", "/foo", "/xyz", "/xyz/bar?a=/foo"),
        ("/foo?a", "/foo", "/", "/?a"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/bar", "/", "/", "/bar"),
        ("/foo/bar", "/foo", "xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/bar", "/a/b/c", "/a/b/c"),
        ("/foo//bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo//host.test/x", "/foo", "/", "/host.test/x"),
        ("/foo/a//b", "/foo", "/", "/a//b"),
        ("//bar", "/", "/xyz", "/xyz/bar"),
        ("/foo/", "/foo", "//xyz//", "/xyz/"),
        // Not below the prefix, so nothing is replaced.
        ("/food", "/foo", "/xyz", "/food"),
        ("*", "/", "/xyz", "*"),
    ];
    for (path, prefix, replacement, expected) in table {
        let edit = PathEdit::Prefix(replacement.into());
        assert_eq!(edit_path(&edit, Some(prefix), path), expected, "{path} {prefix} {replacement}");
    }
    assert_eq!(edit_path(&PathEdit::Prefix("/xyz".into()), None, "/foo"), "/foo");
}

#[test]
fn a_replaced_path_keeps_the_query() {
    for (path, full, expected) in [
        ("/a/b?c", "/x", "/x?c"),
        ("/a", "/", "/"),
        ("/a", "", "/"),
        ("/a?", "x/", "/x/?"),
        ("/a", "//x", "/x"),
    ] {
        assert_eq!(edit_path(&PathEdit::Full(full.into()), Some("/a"), path), expected);
    }
}

/// Rules for the port of `HTTPRequestRedirectFilter.port`.
#[test]
fn a_location_names_a_port_only_if_its_scheme_does_not_mean_it() {
    // Scheme, host and port of the filter; host and port of the request; the beginning of Location.
    let table = [
        (None, None, None, "echo", 80, "http://echo/"),
        (None, None, None, "echo:80", 80, "http://echo/"),
        (None, None, None, "echo:8080", 8080, "http://echo:8080/"),
        // The port that was dialled, whatever Host says.
        (None, None, None, "echo:1", 8080, "http://echo:8080/"),
        (None, Some("other"), None, "echo:8080", 8080, "http://other:8080/"),
        (None, None, Some(80), "echo:8080", 8080, "http://echo/"),
        (None, None, Some(443), "echo", 80, "http://echo:443/"),
        (Some("https"), None, None, "echo:8080", 8080, "https://echo/"),
        (Some("http"), None, None, "echo:8080", 8080, "http://echo/"),
        (Some("https"), None, Some(443), "echo:8080", 8080, "https://echo/"),
        (Some("https"), None, Some(80), "echo", 80, "https://echo:80/"),
        (Some("https"), None, Some(8443), "echo", 80, "https://echo:8443/"),
        (None, None, None, "[fd00::1]:8080", 8080, "http://[fd00::1]:8080/"),
        (Some("https"), None, None, "[fd00::1]", 80, "https://[fd00::1]/"),
    ];
    for (scheme, hostname, port, host, dialled, expected) in table {
        let filter = Redirect {
            scheme: scheme.map(Into::into),
            hostname: hostname.map(Into::into),
            path: None,
            port,
            status: StatusCode::FOUND,
        };
        let from = RedirectFrom { scheme: "http", host, port: dialled, prefix: None, path_and_query: "/" };
        let (status, location) = redirect(&filter, from);
        assert_eq!(
            (status, location.as_bytes()),
            (StatusCode::FOUND, expected.as_bytes()),
            "{filter:?} {from:?}"
        );
    }
}

#[test]
fn a_location_holds_what_a_uri_may_hold() {
    let filter = Redirect { scheme: None, hostname: None, path: None, port: None, status: StatusCode::FOUND };
    let path_and_query = "/ä b?c=\u{7f}";
    let from = RedirectFrom { scheme: "https", host: "echo", port: 443, prefix: None, path_and_query };
    assert_eq!(redirect(&filter, from).1, "https://echo/%C3%A4%20b?c=%7F");
}

#[test]
fn a_port_is_what_follows_the_last_colon_outside_of_brackets() {
    let table = [
        ("echo", "echo"),
        ("echo:80", "echo"),
        ("echo:", "echo"),
        ("echo:x", "echo:x"),
        ("[::1]", "[::1]"),
        ("[::1]:80", "[::1]"),
        ("::1", "::1"),
        ("", ""),
        (":80", ""),
    ];
    for (host, expected) in table {
        assert_eq!(host_without_port(host), expected, "{host}");
    }
}

#[test]
fn headers_are_set_then_added_then_removed() {
    let mut headers = HeaderMap::new();
    headers.append("a", "1".parse().expect("a value"));
    headers.append("a", "2".parse().expect("a value"));
    let one = edit(&[("a", "3"), ("c", "1")], &[("a", "4"), ("b", "5"), ("c", "2")], &["C", "gone"]);
    edit_headers(&one, &mut headers);
    assert_eq!(headers.get_all("a").iter().collect::<Vec<_>>(), ["3", "4"]);
    assert_eq!(headers.get_all("b").iter().collect::<Vec<_>>(), ["5"]);
    assert!(!headers.contains_key("c"));
}

#[test]
fn a_mirror_copies_its_share() {
    let mut random = fastrand::Rng::with_seed(3);
    for (share, expected) in [(0.0, 0..=0), (0.25, 2350..=2650), (1.0, 10_000..=10_000)] {
        let mirror = Mirror { backend: BackendTarget::Invalid { reason: "unused".into() }, share };
        let copied = (0..10_000).filter(|_| is_mirrored(&mirror, &mut random)).count();
        assert!(expected.contains(&copied), "{copied} of 10000 at {share}");
    }
}
