//! The rule as tables, and its promises as properties.

use proptest::prelude::*;

use super::*;

#[track_caller]
fn normal(target: &str) -> String {
    match RequestPath::parse(target) {
        Ok(path) => path.as_str().to_owned(),
        Err(fault) => fault.label().to_owned(),
    }
}

fn readings(target: &str) -> Vec<String> {
    RequestPath::parse(target).unwrap().readings().iter().map(str::to_owned).collect()
}

#[test]
fn a_path_is_brought_into_its_normal_form_or_refused() {
    let table = [
        ("/", "/"),
        ("/admin", "/admin"),
        ("/admin/", "/admin/"),
        ("/admin?x=/../y", "/admin"),
        ("/ADMIN", "/ADMIN"),
        ("/a//b", "/a//b"),
        ("/a;v=1/b", "/a;v=1/b"),
        ("/.well-known/x", "/.well-known/x"),
        ("/a/...", "/a/..."),
        ("/%61dmin", "/admin"),
        ("/%7euser/%2D%5f", "/~user/-_"),
        ("/a%2fb%5cc", "/a%2Fb%5Cc"),
        ("/a%2541", "/a%2541"),
        ("/a%40b", "/a%40b"),
        ("/./admin", "/admin"),
        ("/x/../admin", "/admin"),
        ("/x/%2e%2E/admin", "/admin"),
        ("/x/.%2e/admin", "/admin"),
        ("/../../admin", "/admin"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        ("/..", "/"),
        ("//..", "/"),
        ("/a//../b", "/a/b"),
        ("\\admin", "/admin"),
        ("/x\\..\\admin", "/admin"),
        ("/x%5C..%5Cadmin", "/x%5C..%5Cadmin"),
        ("/admin%2f..", "/admin%2F.."),
        ("/\u{e9}", "/%C3%A9"),
        ("/%e9", "/%E9"),
        ("/%c3%a9", "/%C3%A9"),
        ("*", "*"),
        ("", ""),
        ("admin", "path_not_absolute"),
        ("?x", "path_not_absolute"),
        ("*x", "path_not_absolute"),
        ("http://host/admin", "path_not_absolute"),
        ("/admin#", "path_fragment"),
        ("/a%", "path_bad_escape"),
        ("/a%2", "path_bad_escape"),
        ("/a%zz", "path_bad_escape"),
        ("/a%+1", "path_bad_escape"),
        ("/a%2%35", "path_bad_escape"),
        ("/a%u002f", "path_bad_escape"),
        ("/%00", "path_control"),
        ("/admin%00.png", "path_control"),
        ("/a%0d%0aHost:%20b", "path_control"),
        ("/a%7f", "path_control"),
        ("/a\tb", "path_control"),
        ("/a b", "path_control"),
        ("/%c0%af", "path_overlong"),
        ("/x/%c0%ae%c0%ae/admin", "path_overlong"),
        ("/%e0%80%af", "path_overlong"),
        ("/%f0%80%80%af", "path_overlong"),
        ("/%C0x", "/%C0x"),
    ];
    for (target, expected) in table {
        assert_eq!(normal(target), expected, "{target:?}");
    }
}

#[test]
fn an_ordinary_path_is_borrowed_and_has_one_reading() {
    for target in ["/", "/shop.v1.Orders/List", "/a-b_c~d/e.f/g:h@i!$&'()*+,=", "*"] {
        let path = RequestPath::parse(target).unwrap();
        assert!(path.is_as_written(), "{target}");
        assert!(
            matches!(path.readings(), Readings::One(reading) if std::ptr::eq(reading, target)),
            "{target}"
        );
    }
}

#[test]
fn what_the_client_wrote_otherwise_is_told() {
    for (target, as_written) in
        [("/a", true), ("/a?b", true), ("/.a", true), ("/a%2Fb", true), ("//a;b", true)]
    {
        assert_eq!(RequestPath::parse(target).unwrap().is_as_written(), as_written, "{target}");
    }
    for target in ["/%61", "/a%2fb", "/./a", "\\a", "/\u{e9}"] {
        assert!(!RequestPath::parse(target).unwrap().is_as_written(), "{target}");
    }
}

#[test]
fn every_way_to_read_a_path_is_listed() {
    let table: &[(&str, &[&str])] = &[
        ("//admin", &["//admin", "/admin", "/"]),
        ("/a//b", &["/a//b", "/a/b"]),
        ("//x/admin", &["//x/admin", "/x/admin", "/admin"]),
        ("/admin;x=1", &["/admin;x=1", "/admin"]),
        ("/x/..;/admin", &["/x/..;/admin", "/x/../admin", "/admin"]),
        ("/admin%2F..", &["/admin%2F..", "/admin/..", "/"]),
        ("/x%2f..%2fadmin", &["/x%2F..%2Fadmin", "/x/../admin", "/admin"]),
        ("/x%5c..%5cadmin", &["/x%5C..%5Cadmin", "/x/../admin", "/admin"]),
        ("/admin%3Bx", &["/admin%3Bx", "/admin;x", "/admin"]),
        ("/admin%3Fx", &["/admin%3Fx", "/admin"]),
        ("/admin%23x", &["/admin%23x", "/admin"]),
        ("/%2561dmin", &["/%2561dmin", "/admin"]),
        ("/%252561dmin", &["/%252561dmin", "/%2561dmin", "/admin"]),
        ("/100%25", &["/100%25"]),
        ("/a%40b%20c", &["/a@b%20c"]),
        ("/[a]", &["/%5Ba%5D"]),
    ];
    for (target, expected) in table {
        assert_eq!(readings(target), *expected, "{target}");
    }
}

#[test]
fn a_path_that_can_be_read_in_too_many_ways_or_in_a_forbidden_one_is_unknown() {
    let many = format!("/%{}2F", "25".repeat(30));
    let long = format!("/{}//", "a".repeat(40_000));
    for target in ["", "/a%2500", "/a%25c0%25af", &many, &long] {
        assert_eq!(RequestPath::parse(target).unwrap().readings(), Readings::Unknown, "{target}");
    }
}

fn any_target() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "/",
        "/",
        "//",
        "\\",
        ".",
        "..",
        "a",
        "B",
        "admin",
        ";",
        ";x=1",
        "%2e",
        "%2E",
        "%2f",
        "%5C",
        "%25",
        "%61",
        "%3B",
        "%3f",
        "%23",
        "%40",
        "@",
        "%20",
        "%e9",
        "\u{e9}",
        "%25%32%66",
        "%252f",
        "?",
        "~",
        "%7E",
        "{",
        "%0",
    ]);
    prop::collection::vec(pieces, 0..10).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_normal_form_is_its_own_normal_form(target in any_target()) {
        if let Ok(path) = RequestPath::parse(&target) {
            let again = RequestPath::parse(path.as_str()).unwrap();
            prop_assert_eq!(again.as_str(), path.as_str());
            prop_assert!(again.is_as_written());
            prop_assert_eq!(again.readings(), path.readings());
        }
    }

    #[test]
    fn the_normal_form_is_absolute_and_holds_no_dot_segment(target in any_target()) {
        if let Ok(path) = RequestPath::parse(&target) {
            prop_assert!(path.as_str().starts_with('/'));
            prop_assert!(!path.as_str().split('/').any(|segment| segment == "." || segment == ".."));
            prop_assert!(!path.as_str().contains(['\\', '?', '#']));
            prop_assert!(path.as_str().is_ascii());
            prop_assert_eq!(path.is_as_written(), target.split('?').next() == Some(path.as_str()));
        }
    }

    #[test]
    fn the_normal_form_of_a_reading_is_a_reading(target in any_target()) {
        if let Ok(path) = RequestPath::parse(&target) {
            let all: Vec<String> = path.readings().iter().map(str::to_owned).collect();
            prop_assert!(all.is_empty() || all[0] == path.comparable());
            for reading in &all {
                let normal = RequestPath::parse(reading).unwrap();
                prop_assert!(all.contains(&normal.comparable().into_owned()), "{} of {:?}", normal.as_str(), all);
                for further in normal.readings().iter() {
                    prop_assert!(all.contains(&further.to_owned()), "{} of {:?}", further, all);
                }
            }
        }
    }

    #[test]
    fn no_text_makes_parsing_panic(target in any::<String>()) {
        if let Ok(path) = RequestPath::parse(&target) {
            prop_assert!(path.is_asterisk() || path.is_authority() || path.as_str().starts_with('/'));
            let _ = path.readings();
        }
    }
}
