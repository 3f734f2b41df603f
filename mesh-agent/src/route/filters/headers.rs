//! `RequestHeaderModifier` and `ResponseHeaderModifier`.

use http::HeaderMap;

use crate::model::HeaderEdit;

/// Carries out an edit: set, then add, then remove.
///
/// What is added becomes a line of its own, which means the same as one line joined by commas (RFC 9110 section 5.3) and
/// is right for `set-cookie` too.
pub fn edit_headers(edit: &HeaderEdit, headers: &mut HeaderMap) {
    for (name, value) in &edit.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &edit.add {
        headers.append(name, value.clone());
    }
    for name in &edit.remove {
        headers.remove(name);
    }
}
