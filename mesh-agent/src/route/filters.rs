//! What do a rule's filters do to a request, or answer in its place? Pure functions; the proxy calls them in the order in
//! which the filters are written.
//!
//! Reading order: `headers`, `rewrite`, `redirect`, `cors`, `mirror`.

mod cors;
mod headers;
mod mirror;
mod redirect;
mod rewrite;

pub use cors::{actual, preflight};
pub use headers::edit_headers;
pub use mirror::is_mirrored;
pub use redirect::{RedirectFrom, redirect};
pub use rewrite::{edit_path, rewrite};
