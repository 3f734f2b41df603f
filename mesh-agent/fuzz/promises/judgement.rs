//! Policy promises that no way of writing a request leads around it; the words of it stand beside what they are about.

/// # Panics
/// A promise is broken.
pub(crate) fn check(bytes: &[u8]) {
    mesh_agent::policy::promises::of_judgement(bytes);
}
