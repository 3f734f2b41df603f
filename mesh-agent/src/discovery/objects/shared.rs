//! What many objects say alike is kept once: names of nodes, accounts and namespaces, and the labels that the pods of one
//! owner share. In a large mesh that is most of what objects are made of.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use super::{Key, Object};

/// Below this many there is nothing worth forgetting.
const KNOWN_MIN: usize = 1024;

/// Texts and labels that are in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared {
    texts: Pool<str>,
    labels: Pool<BTreeMap<String, String>>,
}

#[derive(Debug)]
struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// How many there were when those that nobody else has were last forgotten.
    kept: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), kept: 0 }
    }
}

impl<T: ?Sized> Clone for Pool<T> {
    fn clone(&self) -> Self {
        Self { known: self.known.clone(), kept: self.kept }
    }
}

impl<T: ?Sized + Hash + Eq> Pool<T> {
    fn share(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.known.get(&**value) {
            *value = known.clone();
            return;
        }
        if self.known.len() >= KNOWN_MIN.max(2 * self.kept) {
            self.known.retain(|one| Arc::strong_count(one) > 1);
            self.kept = self.known.len();
        }
        self.known.insert(value.clone());
    }
}

impl Shared {
    /// Makes the key use what others use.
    pub(super) fn share_key(&mut self, key: &mut Key) {
        self.texts.share(&mut key.namespace);
        self.texts.share(&mut key.name);
    }

    /// Makes the object use what others use. One that somebody else holds stays as it is.
    pub(super) fn share(&mut self, object: &mut Arc<Object>) {
        let Some(object) = Arc::get_mut(object) else { return };
        let texts = &mut self.texts;
        match object {
            Object::Pod(pod) => {
                self.labels.share(&mut pod.labels);
                texts.share(&mut pod.node);
                texts.share(&mut pod.service_account);
                pod.owner.iter_mut().for_each(|owner| texts.share(owner));
                let names = pod.ports.iter_mut().filter_map(|port| port.name.as_mut());
                names.for_each(|name| texts.share(name));
                pod.addresses.shrink_to_fit();
                pod.ports.shrink_to_fit();
            }
            Object::Service(service) => service.ports.iter_mut().for_each(|port| {
                texts.share(&mut port.name);
                port.app_protocol.iter_mut().for_each(|protocol| texts.share(protocol));
            }),
            Object::EndpointSlice(slice) => {
                slice.service.iter_mut().for_each(|service| texts.share(service));
                slice.ports.iter_mut().for_each(|port| texts.share(&mut port.name));
                for endpoint in &mut slice.endpoints {
                    let all = [&mut endpoint.pod, &mut endpoint.node, &mut endpoint.zone];
                    all.into_iter().flatten().for_each(|text| texts.share(text));
                }
                slice.endpoints.shrink_to_fit();
            }
            Object::Node(node) => node.zone.iter_mut().for_each(|zone| texts.share(zone)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_become_one_and_unused_ones_are_forgotten() {
        let mut pool = Pool::<str>::default();
        let mut first: Arc<str> = "node-1".into();
        let mut second: Arc<str> = "node-1".into();
        pool.share(&mut first);
        pool.share(&mut second);
        assert!(Arc::ptr_eq(&first, &second));
        for n in 0..10 * KNOWN_MIN {
            pool.share(&mut Arc::from(format!("gone-{n}")));
        }
        assert!(pool.known.len() <= KNOWN_MIN && pool.known.contains("node-1"));
    }
}
