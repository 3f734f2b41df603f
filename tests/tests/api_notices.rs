//! Events about pods that were asked into the mesh and are not in it, as an API server takes and shows them: the small one,
//! and the real one (`WEFT_TEST_KUBECONFIG`), which refuses an Event that lacks something.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use mesh_agent::capture::compile::Caught;
use mesh_agent::capture::{Complaint, Pod, SocketSource, State};
use mesh_agent::lifecycle::shutdown;
use mesh_agent::model::{Workload, WorkloadName, WorkloadUid};
use mesh_agent::{discovery, notices};
use mesh_tests::api::stage::{Stage, on_stage};
use serde_json::{Value, json};
use socket2::Socket;
use tokio::sync::watch;

/// A complaint must last for 5 s.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct NoSockets;

impl SocketSource for NoSockets {
    fn tcp_socket(&self, _v6: bool) -> io::Result<Socket> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The pod as the mesh knows it.
fn workload(object: &Value) -> Arc<Workload> {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("pod.json"), object.to_string()).expect("written");
    let loaded = discovery::load(dir.path()).expect("readable");
    loaded.snapshot.workloads().next().expect("one pod").clone()
}

/// The Events of a namespace, the earliest first, when there are so many and the last one is as it should be.
async fn events(stage: &Stage, count: usize, is_so: impl Fn(&Value) -> bool) -> Vec<Value> {
    let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", stage.namespace());
    let until = async {
        loop {
            let (code, list) = stage.get(&path).await;
            assert_eq!(code, 200, "{list}");
            let mut all = list["items"].as_array().expect("a list").clone();
            all.sort_by_key(|event| event["eventTime"].as_str().map(str::to_owned));
            if all.len() == count && all.last().is_none_or(&is_so) {
                return all;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, until).await.expect("in time")
}

#[test]
fn a_pod_that_cannot_be_caught_has_events_of_it() {
    on_stage(|stage| async move {
        let object = stage.pod("late", "node-1").await;
        let uid = object["metadata"]["uid"].as_str().expect("a UID");
        let name = WorkloadName { namespace: stage.namespace().into(), name: "late".into() };
        let complaint =
            Complaint { pod: Some((name, WorkloadUid(uid.into()))), reason: "no process".to_owned() };
        let failing = || Arc::new(State { problems: vec![complaint.clone()], ..State::default() });
        let (states, published) = watch::channel(failing());
        let (_trigger, shutdown) = shutdown::channel();
        notices::start(stage.client(), "node-1", published, shutdown);

        let first = events(&stage, 1, |_| true).await.remove(0);
        assert_eq!(
            (&first["type"], &first["reason"], &first["note"]),
            (&json!("Warning"), &json!("EnrolmentFailed"), &json!("no process"))
        );
        assert_eq!((&first["regarding"]["kind"], &first["regarding"]["uid"]), (&json!("Pod"), &json!(uid)));
        assert_eq!(first["reportingController"], "weft.dev/agent");
        assert_eq!(first["reportingInstance"], "node-1");
        if stage.small().is_none() {
            // What `kubectl describe pod` asks for.
            let (_, list) =
                stage.get(&stage.path(&format!("events?fieldSelector=involvedObject.uid%3D{uid}"))).await;
            let said: Vec<_> = list["items"].as_array().expect("a list").iter().collect();
            assert_eq!(said.len(), 1, "{list}");
            assert_eq!(
                (&said[0]["message"], &said[0]["reportingComponent"]),
                (&json!("no process"), &json!("weft.dev/agent"))
            );
        }

        // It is over, and comes back.
        states.send_replace(Arc::default());
        tokio::time::sleep(Duration::from_millis(100)).await;
        states.send_replace(failing());
        let again = events(&stage, 1, |event| event["series"]["count"] == 2).await.remove(0);
        assert_eq!(again["metadata"]["name"], first["metadata"]["name"]);

        let workload = workload(&object);
        assert_eq!(&*workload.uid.0, uid);
        let caught = Caught {
            uid: workload.uid.clone(),
            netns_cookie: 1,
            slot: 0,
            outbound_ports: Vec::new(),
            cgroup_id: None,
        };
        let pod = Arc::new(Pod::new(workload, Box::new(NoSockets), 1));
        states.send_replace(Arc::new(State { pods: vec![(pod, caught)], ..State::default() }));
        let both = events(&stage, 2, |event| event["reason"] == "Enrolled").await;
        assert_eq!(both[1]["type"], "Normal");
    });
}
