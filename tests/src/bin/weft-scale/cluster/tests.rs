//! Whoever lists and then watches knows the same as whoever lists later.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;

fn small() -> Cluster {
    let sizes = Sizes { nodes: 4, namespaces: 2, pods: 40, services: 8, endpoints: 80 };
    sizes.check().unwrap();
    let given = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "real"}, "spec": {"nodeName": "node-1"}
    });
    Cluster::new(sizes, vec![given]).unwrap()
}

/// Every object of a kind by namespace and name.
fn listed(cluster: &Cluster, kind: usize) -> BTreeMap<String, Value> {
    let object = |number| {
        let mut out = Vec::new();
        cluster.draw(kind, number, Form::Whole, &mut out);
        let object: Value = serde_json::from_slice(&out).unwrap();
        let place = cluster.place(kind, number).unwrap();
        assert_eq!(object["metadata"]["name"], place.name);
        assert_eq!(object["spec"]["nodeName"].as_str().unwrap_or_default(), place.node);
        (key(&object), object)
    };
    (0..cluster.count(kind)).map(object).collect()
}

fn key(object: &Value) -> String {
    format!("{}/{}", object["metadata"]["namespace"], object["metadata"]["name"])
}

#[test]
fn a_list_and_the_events_after_it_give_what_a_later_list_gives() {
    let cluster = small();
    let kinds = [kind_of(Computed::Pods), kind_of(Computed::Slices)];
    let since = cluster.log.revision();
    let mut known = kinds.map(|kind| listed(&cluster, kind));
    let mut watches = kinds.map(|kind| cluster.log.subscribe(kind, since).unwrap());
    let mut events = 0;
    for pod in [3, 17, 3, 39] {
        events += cluster.replace(pod) + cluster.set_ready(pod, false) + cluster.relabel(pod);
    }
    events += cluster.set_ready(3, true);
    let (mut seen, mut newest) = (0, since);
    for (known, watch) in known.iter_mut().zip(&mut watches) {
        while let Ok(event) = watch.try_recv() {
            let line: Value = serde_json::from_slice(&event.whole).unwrap();
            let object = line["object"].clone();
            assert_eq!(object["metadata"]["resourceVersion"], event.revision.to_string());
            seen += 1;
            newest = newest.max(event.revision);
            match line["type"].as_str().unwrap() {
                "DELETED" => assert!(known.remove(&key(&object)).is_some()),
                "ADDED" => assert!(known.insert(key(&object), object).is_none()),
                _ => assert!(known.insert(key(&object), object).is_some()),
            }
        }
    }
    assert_eq!((seen, newest), (events, cluster.log.revision()));
    assert_eq!(known, kinds.map(|kind| listed(&cluster, kind)));
}

#[test]
fn a_change_says_what_the_kernel_shall_show() {
    let cluster = small();
    let mut pods = cluster.log.subscribe(kind_of(Computed::Pods), cluster.log.revision()).unwrap();
    let mut slices = cluster.log.subscribe(kind_of(Computed::Slices), cluster.log.revision()).unwrap();
    let effects = |events: &mut super::super::log::Events| -> Vec<Effect> {
        std::iter::from_fn(|| events.try_recv().ok()).flat_map(|event| event.effects.lock().clone()).collect()
    };
    let (pod, old) = (5, plan::first_ip(5));
    cluster.set_ready(pod, false);
    let gone =
        |service| Effect::Endpoint { pod, vip: cluster.plan().cluster_ip(service), ip: old, present: false };
    assert_eq!((effects(&mut pods), effects(&mut slices)), (vec![], vec![gone(0), gone(4)]));
    cluster.replace(pod);
    let new = plan::new_ip(0);
    let come =
        |service| Effect::Endpoint { pod, vip: cluster.plan().cluster_ip(service), ip: new, present: true };
    let moved = [(old, false), (new, true)].map(|(ip, present)| Effect::Address { pod, ip, present });
    assert_eq!((effects(&mut pods), effects(&mut slices)), (moved.to_vec(), vec![come(0), come(4)]));
    cluster.relabel(pod);
    assert_eq!(effects(&mut pods), []);
}

#[test]
fn given_objects_stand_beside_the_computed_ones() {
    let cluster = small();
    let pods = listed(&cluster, kind_of(Computed::Pods));
    assert_eq!(pods.len(), 41);
    assert!(pods.contains_key("\"real\"/\"web\""));
    let unknown = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "x"}});
    assert!(Cluster::new(Sizes::default(), vec![unknown]).is_err());
}
