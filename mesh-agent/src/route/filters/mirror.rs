//! `RequestMirror`.

use crate::model::Mirror;

/// Whether this request is among those that are copied.
pub fn is_mirrored(mirror: &Mirror, random: &mut fastrand::Rng) -> bool {
    random.f64() < mirror.share
}
