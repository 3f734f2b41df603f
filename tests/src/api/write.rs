//! How objects change: what the server stamps on them, what it keeps from the old one, when a write is refused, and how an
//! object ends.

mod stamp;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::apply;
use super::owners::{self, Owner};
use super::patch;
use super::refusal::Refusal;
use super::resource::{Kept, Resource};
use super::state::{State, definitions, namespaces, new_uid, time_now};
use super::store::{Key, Stored};
pub use stamp::text;
use stamp::{
    check_types, grace_seconds, is_empty, is_spec_changed, keep_what_is_not_written, name_of, set_defaults,
};

/// What is written, and by whom.
#[derive(Clone, Debug)]
pub struct Target {
    /// The kind.
    pub resource: Arc<Resource>,
    /// The namespace, for kinds in namespaces.
    pub namespace: Option<String>,
    /// The name; empty where the object says it.
    pub name: String,
    /// The status alone is written.
    pub is_status: bool,
    /// The writer.
    pub manager: String,
    /// Nothing is kept.
    pub is_dry: bool,
    /// A new object keeps the UID and the time that it names.
    pub is_as_given: bool,
}

/// How a patch is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 7386.
    Merge,
    /// RFC 6902.
    Json,
    /// For built-in kinds.
    Strategic,
    /// Server-side apply.
    Apply {
        /// Take what others own.
        force: bool,
    },
}

/// What a deletion did.
#[derive(Clone, Debug)]
pub enum Deleted {
    /// The object is gone.
    Gone(Arc<Stored>),
    /// It ends when somebody has done its work.
    Ending(Arc<Stored>),
}

impl Target {
    fn key(&self) -> Key {
        Key::new(self.namespace.as_deref(), &self.name)
    }

    fn kept(&self) -> &Kept {
        &self.resource.kept
    }

    fn is(&self, group: &str, plural: &str) -> bool {
        &*self.kept().group == group && &*self.kept().plural == plural
    }

    fn writer(&self, operation: &str) -> Owner {
        Owner {
            manager: self.manager.clone(),
            operation: operation.to_owned(),
            subresource: if self.is_status { "status".to_owned() } else { String::new() },
            api_version: self.resource.api_version(),
            time: time_now(),
            fields: BTreeSet::new(),
        }
    }
}

impl State {
    /// The object that a request names.
    ///
    /// # Errors
    /// There is none.
    pub fn named(&self, target: &Target) -> Result<Arc<Stored>, Refusal> {
        let found = self.store.get(target.kept(), &target.key());
        found.cloned().ok_or_else(|| Refusal::not_found(target.kept(), &target.name))
    }

    /// Makes an object.
    ///
    /// # Errors
    /// There is one already, or it cannot be.
    pub fn create(&mut self, target: &Target, mut object: Value) -> Result<Arc<Stored>, Refusal> {
        check_types(target, &mut object)?;
        let mut target = target.clone();
        target.name = name_of(&target, &mut object)?;
        self.check_namespace(&target)?;
        if !text(&object["metadata"]["resourceVersion"]).is_empty() {
            return Err(Refusal::new(400, "resourceVersion should not be set on objects to be created"));
        }
        if self.store.get(target.kept(), &target.key()).is_some() {
            return Err(Refusal::already_exists(target.kept(), &target.name));
        }
        // Nodes say their status when they register.
        if target.resource.status && !target.is("", "nodes") {
            object.as_object_mut().map(|object| object.remove("status"));
        }
        let bare = json!({ "metadata": {} });
        let writer = target.writer("Update");
        let owners = owners::after_update(&target.resource, &bare, &object, Vec::new(), writer);
        owners::write(&mut object, &owners);
        Ok(self.keep_new(&target, object))
    }

    /// Stamps a new object and keeps it.
    fn keep_new(&mut self, target: &Target, mut object: Value) -> Arc<Stored> {
        let metadata = &mut object["metadata"];
        for (field, stamp) in [("uid", new_uid as fn() -> String), ("creationTimestamp", time_now)] {
            if !target.is_as_given || metadata[field].is_null() {
                metadata[field] = stamp().into();
            }
        }
        if let Some(metadata) = metadata.as_object_mut() {
            for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"] {
                metadata.remove(field);
            }
        }
        if target.resource.generation {
            metadata["generation"] = 1.into();
        }
        set_defaults(target, &mut object);
        if target.is_dry {
            return Arc::new(Stored::new(target.key(), self.store.revision(), object));
        }
        let stored = self.store.put(target.kept(), target.key(), object);
        self.look_at(target.kept());
        stored
    }

    /// Replaces an object.
    ///
    /// # Errors
    /// There is none, or not the one that was meant.
    pub fn update(&mut self, target: &Target, mut object: Value) -> Result<Arc<Stored>, Refusal> {
        check_types(target, &mut object)?;
        let name = text(&object["metadata"]["name"]).to_owned();
        if name != target.name {
            let message = format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                target.name
            );
            return Err(Refusal::new(400, message));
        }
        if target.is("coordination.k8s.io", "leases") && self.named(target).is_err() {
            object["metadata"].as_object_mut().map(|metadata| metadata.remove("resourceVersion"));
            return self.create(target, object);
        }
        let old = self.named(target)?;
        if text(&object["metadata"]["resourceVersion"]).is_empty() && !target.resource.unconditional {
            let why = "Invalid value: 0x0: must be specified for an update";
            let field = "metadata.resourceVersion";
            return Err(Refusal::invalid(target.kept(), &target.resource.kind, &target.name, field, why));
        }
        self.change(target, &old, object, None)
    }

    /// Patches an object. The second value is whether it is new.
    ///
    /// # Errors
    /// The patch cannot be carried out, or meets fields of others.
    pub fn patch(
        &mut self,
        target: &Target,
        kind: PatchKind,
        patch: &Value,
    ) -> Result<(Arc<Stored>, bool), Refusal> {
        if let PatchKind::Apply { force } = kind {
            return self.apply(target, patch, force);
        }
        let old = self.named(target)?;
        let mut object = old.object.clone();
        object["apiVersion"] = target.resource.api_version().into();
        // A patch that names no revision is about whatever is there.
        object["metadata"].as_object_mut().map(|metadata| metadata.remove("resourceVersion"));
        match kind {
            PatchKind::Merge => patch::merge(&mut object, patch),
            PatchKind::Json => patch::json(&mut object, patch)?,
            PatchKind::Strategic => patch::strategic(&target.resource, &mut object, patch),
            PatchKind::Apply { .. } => unreachable!("handled above"),
        }
        check_types(target, &mut object)?;
        Ok((self.change(target, &old, object, None)?, false))
    }

    fn apply(
        &mut self,
        target: &Target,
        wanted: &Value,
        force: bool,
    ) -> Result<(Arc<Stored>, bool), Refusal> {
        let mut wanted = wanted.clone();
        check_types(target, &mut wanted)?;
        if !wanted["metadata"]["managedFields"].is_null() {
            return Err(Refusal::new(400, "metadata.managedFields must be nil"));
        }
        if let Some(wanted) = wanted.as_object_mut()
            && target.resource.status
        {
            if target.is_status {
                wanted.retain(|field, _| {
                    ["apiVersion", "kind", "metadata", "status"].contains(&field.as_str())
                });
            } else {
                wanted.remove("status");
            }
        }
        let writer = target.writer("Apply");
        let old = match self.named(target) {
            Ok(old) => old,
            Err(refusal) if target.is_status => return Err(refusal),
            Err(_) => {
                self.check_namespace(target)?;
                let mut bare = json!({
                    "apiVersion": wanted["apiVersion"], "kind": wanted["kind"],
                    "metadata": { "name": target.name },
                });
                if let Some(namespace) = &target.namespace {
                    bare["metadata"]["namespace"] = namespace.clone().into();
                }
                let object = apply::apply(&target.resource, &bare, &wanted, writer, force)?;
                return Ok((self.keep_new(target, object), true));
            }
        };
        let said = wanted["metadata"]["resourceVersion"].clone();
        let mut object = apply::apply(&target.resource, &old.object, &wanted, writer, force)?;
        let owners = owners::read(&object);
        object["metadata"]["resourceVersion"] = said;
        Ok((self.change(target, &old, object, Some(owners))?, false))
    }

    /// Takes a changed object, as far as the request may change it.
    fn change(
        &mut self,
        target: &Target,
        old: &Arc<Stored>,
        mut object: Value,
        owners: Option<Vec<Owner>>,
    ) -> Result<Arc<Stored>, Refusal> {
        let before = &old.object;
        let said = text(&object["metadata"]["resourceVersion"]);
        if !said.is_empty() && said != text(&before["metadata"]["resourceVersion"]) {
            return Err(Refusal::modified(target.kept(), &target.name));
        }
        let (said, uid) = (text(&object["metadata"]["uid"]), text(&before["metadata"]["uid"]));
        if !said.is_empty() && said != uid {
            let why = format!("Precondition failed: UID in precondition: {said}, UID in object meta: {uid}");
            return Err(Refusal::conflict(target.kept(), &target.name, &why));
        }
        keep_what_is_not_written(target, before, &mut object);
        let owners = owners.unwrap_or_else(|| {
            let (present, writer) = (owners::read(before), target.writer("Update"));
            owners::after_update(&target.resource, before, &object, present, writer)
        });
        owners::write(&mut object, &owners);
        if is_spec_changed(before, &object) && target.resource.generation {
            let generation = before["metadata"]["generation"].as_u64().unwrap_or_default();
            object["metadata"]["generation"] = (generation + 1).into();
        }
        object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
        set_defaults(target, &mut object);
        if object == *before {
            return Ok(Arc::clone(old));
        }
        if target.is_dry {
            return Ok(Arc::new(Stored::new(old.key.clone(), old.revision, object)));
        }
        let metadata = &object["metadata"];
        let is_ending = !metadata["deletionTimestamp"].is_null();
        let is_held = !is_empty(&metadata["finalizers"])
            || metadata["deletionGracePeriodSeconds"].as_u64().is_some_and(|seconds| seconds > 0);
        if is_ending && !is_held {
            let last = Arc::new(Stored::new(old.key.clone(), old.revision, object));
            self.end(target.kept(), &old.key);
            return Ok(last);
        }
        let stored = self.store.put(target.kept(), old.key.clone(), object);
        self.look_at(target.kept());
        Ok(stored)
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// There is none, or not the one that was meant.
    pub fn delete(&mut self, target: &Target, options: &Value) -> Result<Deleted, Refusal> {
        let old = self.named(target)?;
        for field in ["uid", "resourceVersion"] {
            let (wanted, found) = (&options["preconditions"][field], &old.object["metadata"][field]);
            if !wanted.is_null() && wanted != found {
                let why = format!(
                    "Precondition failed: {field} in precondition: {}, {field} in object meta: {}",
                    text(wanted),
                    text(found)
                );
                return Err(Refusal::conflict(target.kept(), &target.name, &why));
            }
        }
        if target.is_dry {
            return Ok(Deleted::Gone(old));
        }
        let grace = grace_seconds(target, &old.object, options);
        if target.is("", "namespaces") {
            return Ok(self.end_namespace(&old));
        }
        if grace == 0 && is_empty(&old.object["metadata"]["finalizers"]) {
            let gone = self.end(target.kept(), &old.key).expect("it was just there");
            return Ok(Deleted::Gone(gone));
        }
        Ok(Deleted::Ending(self.mark_ending(target.kept(), &old, grace, target.resource.generation)))
    }

    /// Says in an object that it ends.
    fn mark_ending(&mut self, kept: &Kept, old: &Arc<Stored>, grace: u64, counts: bool) -> Arc<Stored> {
        let before = &old.object["metadata"];
        let is_sooner = before["deletionGracePeriodSeconds"].as_u64().is_some_and(|seconds| grace < seconds);
        if !before["deletionTimestamp"].is_null() && !is_sooner {
            return Arc::clone(old);
        }
        let mut object = old.object.clone();
        let metadata = &mut object["metadata"];
        metadata["deletionTimestamp"] = time_now().into();
        metadata["deletionGracePeriodSeconds"] = grace.into();
        if counts {
            metadata["generation"] = (metadata["generation"].as_u64().unwrap_or_default() + 1).into();
        }
        self.store.put(kept, old.key.clone(), object)
    }

    /// Ends a namespace and all in it; what holds an object in it holds the namespace.
    fn end_namespace(&mut self, old: &Arc<Stored>) -> Deleted {
        let name = old.key.name.to_string();
        for (kept, key) in self.store.in_namespace(&name) {
            let Some(stored) = self.store.get(&kept, &key).cloned() else { continue };
            if is_empty(&stored.object["metadata"]["finalizers"]) {
                self.store.remove(&kept, &key);
            } else {
                self.mark_ending(&kept, &stored, 0, false);
            }
        }
        let marked = self.mark_ending(&namespaces(), old, 0, false);
        self.end_empty_namespace(&name).map_or(Deleted::Ending(marked), Deleted::Gone)
    }

    fn end_empty_namespace(&mut self, name: &str) -> Option<Arc<Stored>> {
        let is_over = self.namespace(name) == Some(true) && self.store.in_namespace(name).is_empty();
        if !is_over {
            return None;
        }
        self.store.remove(&namespaces(), &Key::new(None, name))
    }

    /// Removes an object, and what lived by it.
    fn end(&mut self, kept: &Kept, key: &Key) -> Option<Arc<Stored>> {
        let gone = self.store.remove(kept, key)?;
        if *kept == definitions() {
            let names = &gone.object["spec"];
            let kept = Kept::new(text(&names["group"]), text(&names["names"]["plural"]));
            let keys: Vec<Key> = self.store.all(&kept).map(|stored| stored.key.clone()).collect();
            for key in keys {
                self.store.remove(&kept, &key);
            }
        }
        self.look_at(kept);
        self.end_empty_namespace(&key.namespace);
        Some(gone)
    }

    /// Follows changes of objects that the server itself goes by.
    fn look_at(&mut self, kept: &Kept) {
        if *kept == definitions() {
            self.read_definitions();
        }
    }

    fn check_namespace(&self, target: &Target) -> Result<(), Refusal> {
        let Some(namespace) = &target.namespace else { return Ok(()) };
        match self.namespace(namespace) {
            None => Err(Refusal::not_found(&namespaces(), namespace)),
            Some(true) => {
                let mut refusal = Refusal::new(
                    403,
                    format!(
                        "{} \"{}\" is forbidden: unable to create new content in namespace {namespace} because it is being \
                         terminated",
                        target.kept().qualified(),
                        target.name
                    ),
                );
                refusal.details = json!({ "causes": [{ "reason": "NamespaceTerminating" }] });
                Err(refusal)
            }
            Some(false) => Ok(()),
        }
    }
}
