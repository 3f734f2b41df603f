//! Which version of each object is in force here? One that discovery has published and capture has written.

use std::sync::Arc;

use tokio::sync::watch;

use crate::model::{Generations, Publication, Versions};

/// Follows both.
#[derive(Debug)]
pub(super) struct InForce {
    versions: watch::Receiver<Versions>,
    in_kernel: watch::Receiver<Publication>,
    /// Published, and not in the kernel when last looked at.
    waiting: Option<Versions>,
    current: Option<Arc<Generations>>,
}

impl InForce {
    pub(super) fn new(versions: watch::Receiver<Versions>, in_kernel: watch::Receiver<Publication>) -> Self {
        Self { versions, in_kernel, waiting: None, current: None }
    }

    /// What is in force now; `None` while nothing has been written since the agent started. What an earlier agent left in the
    /// kernel is not spoken about.
    pub(super) fn look(&mut self) -> Option<Arc<Generations>> {
        let newest = self.versions.borrow_and_update().clone();
        let written = *self.in_kernel.borrow_and_update();
        if written == Publication::default() {
            return None;
        }
        // The one that waits comes first: otherwise a mesh that changes without a pause would never be told about.
        for versions in self.waiting.take().into_iter().chain([newest]) {
            if !written.covers(&versions.publication) {
                self.waiting = Some(versions);
                break;
            }
            self.current = Some(versions.generations);
        }
        self.current.clone()
    }

    /// Completes when [`InForce::look`] may have another answer, or never if nobody is left who could give it one. Cancel
    /// safe.
    pub(super) async fn changed(&mut self) {
        let changed = tokio::select! {
            changed = self.versions.changed() => changed,
            changed = self.in_kernel.changed() => changed,
        };
        if changed.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication(version: u64) -> Publication {
        Publication { registry: version, policies: version, routes: 1 }
    }

    fn versions(version: u64, generation: i64) -> Versions {
        let generations = Arc::new([("uid".into(), generation)].into());
        Versions { publication: publication(version), generations }
    }

    struct Scene {
        versions: watch::Sender<Versions>,
        in_kernel: watch::Sender<Publication>,
        in_force: InForce,
    }

    fn scene() -> Scene {
        let (versions, in_kernel) = (watch::Sender::default(), watch::Sender::default());
        let in_force = InForce::new(versions.subscribe(), in_kernel.subscribe());
        Scene { versions, in_kernel, in_force }
    }

    impl Scene {
        fn generation(&mut self) -> Option<Option<i64>> {
            self.in_force.look().map(|all| all.get("uid").copied())
        }
    }

    #[test]
    fn a_version_is_in_force_once_it_was_published_and_written() {
        let mut scene = scene();
        scene.versions.send_replace(versions(1, 7));
        assert_eq!(scene.generation(), None, "nothing is written yet");
        scene.in_kernel.send_replace(publication(1));
        assert_eq!(scene.generation(), Some(Some(7)));
        scene.versions.send_replace(versions(2, 8));
        assert_eq!(scene.generation(), Some(Some(7)));
        scene.in_kernel.send_replace(Publication { policies: 1, ..publication(2) });
        assert_eq!(scene.generation(), Some(Some(7)), "the policies are still the old ones");
        scene.in_kernel.send_replace(publication(3));
        assert_eq!(scene.generation(), Some(Some(8)));
    }

    #[test]
    fn changes_without_a_pause_are_told_about() {
        let mut scene = scene();
        for version in 1..100 {
            scene.in_kernel.send_replace(publication(version));
            scene.versions.send_replace(versions(version + 1, i64::try_from(version).unwrap()));
            let told = scene.generation().flatten();
            assert!(version < 3 || told >= Some(i64::try_from(version).unwrap() - 2), "{version}: {told:?}");
        }
    }

    #[test]
    fn a_mesh_without_such_objects_is_told_of_as_that() {
        let mut scene = scene();
        assert_eq!(scene.generation(), None);
        scene.in_kernel.send_replace(publication(1));
        assert_eq!(scene.generation(), Some(None));
    }
}
