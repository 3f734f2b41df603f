//! What a directory of objects means: identity, enrolment, endpoints, conflicts, and policies that fail closed.

use super::super::testing::{World, pod};
use super::*;
use crate::model::{Workload, WorkloadName};

mod histories;
mod naive;
mod pods;
mod policies;
mod services;

const ENROLLED: &str =
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {weft.dev/mesh: enabled}}\n";

/// Compiles the documents; there must be no problem.
#[track_caller]
fn compiled(documents: &[&str]) -> Compiled {
    let (compiled, problems) = World::new(&[("a.yaml", &documents.join("---\n"))]).load();
    assert_eq!(problems, Vec::<String>::new());
    compiled
}

#[track_caller]
fn problems(documents: &[&str]) -> (Compiled, Vec<String>) {
    World::new(&[("a.yaml", &documents.join("---\n"))]).load()
}

fn workload(compiled: &Compiled, name: &str) -> Arc<Workload> {
    let name = WorkloadName { namespace: "shop".into(), name: name.into() };
    compiled.snapshot.workload_by_name(&name).unwrap_or_else(|| panic!("no workload {name}")).clone()
}

/// By name.
fn services(compiled: &Compiled) -> Vec<Arc<Service>> {
    let mut services: Vec<_> = compiled.snapshot.services().cloned().collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    services
}

/// Pod `shop/web` with these metadata and spec entries.
fn web(metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop{metadata}}}\nspec: {{nodeName: node-1{spec}}}\n\
         status: {{podIP: 10.0.0.1}}\n"
    )
}
