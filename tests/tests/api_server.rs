//! How an API server takes writes, as far as the mesh goes by it: stamps, versions, patches, owners of fields, ends of
//! objects, definitions, tokens. The same tests hold for the small server and for the real one (`WEFT_TEST_KUBECONFIG`),
//! which keeps the small one honest. Lists and watches are in `api_reads.rs`, faults in `api_faults.rs`.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use kube::{Error, ResourceExt as _};
use mesh_tests::api::stage::on_stage;
use serde_json::{Value, json};

/// What a request was refused with.
#[track_caller]
fn refusal<T: std::fmt::Debug>(answer: Result<T, Error>) -> Status {
    match answer.expect_err("this request is refused") {
        Error::Api(status) => *status,
        other => panic!("no answer of the server: {other}"),
    }
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_created_object_gets_a_uid_a_time_and_a_revision() {
    on_stage(|stage| async move {
        let (one, two) = (stage.config_map("one", json!({})).await, stage.config_map("two", json!({})).await);
        assert!(revision(&two) > revision(&one));
        assert_ne!(one["metadata"]["uid"], two["metadata"]["uid"]);
        assert!(
            one["metadata"]["creationTimestamp"].as_str().is_some_and(|time| time.ends_with('Z')),
            "{one}"
        );
        assert_eq!(one["metadata"]["namespace"], stage.namespace());
        let read: ConfigMap = stage.api().get("one").await.unwrap();
        assert_eq!(read.uid().as_deref(), one["metadata"]["uid"].as_str());
    });
}

#[test]
fn a_name_is_made_from_its_beginning() {
    on_stage(|stage| async move {
        let named =
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "generateName": "map-" } });
        let made = stage.create("configmaps", &named).await.unwrap();
        let name = made["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("map-") && name.len() == 9, "{name}");
        let nameless = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": {} });
        assert_eq!(stage.create("configmaps", &nameless).await.unwrap_err().code, 422);
    });
}

#[test]
fn what_is_there_is_not_created_again_and_what_is_not_there_is_not_found() {
    on_stage(|stage| async move {
        let map = stage.config_map("one", json!({})).await;
        let maps = stage.api::<ConfigMap>();
        let mut again: ConfigMap = serde_json::from_value(map).unwrap();
        again.metadata.resource_version = None;
        let refused = refusal(maps.create(&PostParams::default(), &again).await);
        assert_eq!((refused.code, refused.reason.as_str()), (409, "AlreadyExists"));
        assert_eq!(refused.details.as_ref().map(|details| details.kind.as_str()), Some("configmaps"));
        let refused = refusal(maps.get("two").await);
        assert_eq!((refused.code, refused.reason.as_str()), (404, "NotFound"));
        assert_eq!(refused.message, "configmaps \"two\" not found");
        assert_eq!(refusal(maps.delete("two", &DeleteParams::default()).await).code, 404);
        (again.metadata.name, again.metadata.uid) = (Some("two".to_owned()), None);
        assert_eq!(refusal(maps.replace("two", &PostParams::default(), &again).await).code, 404);
    });
}

#[test]
fn an_object_needs_its_namespace() {
    on_stage(|stage| async move {
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "one" } });
        let refused =
            stage.create_all("/api/v1/namespaces/weft-test-none/configmaps", &map).await.unwrap_err();
        assert_eq!(refused.code, 404, "{refused}");
        let elsewhere = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "one", "namespace": "kube-system" } });
        assert_eq!(stage.create("configmaps", &elsewhere).await.unwrap_err().code, 400);
    });
}

#[test]
fn a_write_from_an_old_version_is_refused() {
    on_stage(|stage| async move {
        let maps = stage.api::<ConfigMap>();
        let mut old: ConfigMap = serde_json::from_value(stage.config_map("one", json!({})).await).unwrap();
        let mut new = old.clone();
        new.data.as_mut().unwrap().insert("more".to_owned(), "1".to_owned());
        let new = maps.replace("one", &PostParams::default(), &new).await.unwrap();
        assert_ne!(new.resource_version(), old.resource_version());
        old.data = None;
        let refused = refusal(maps.replace("one", &PostParams::default(), &old).await);
        assert_eq!((refused.code, refused.reason.as_str()), (409, "Conflict"));
        let patch =
            json!({ "metadata": { "resourceVersion": old.resource_version() }, "data": { "i": "2" } });
        let refused = refusal(maps.patch("one", &PatchParams::default(), &Patch::Merge(patch)).await);
        assert_eq!(refused.code, 409);
        // Whoever does not say what it was made from writes over all.
        old.metadata.resource_version = None;
        assert_eq!(maps.replace("one", &PostParams::default(), &old).await.unwrap().data, None);
    });
}

#[test]
fn a_lease_is_written_only_by_who_knows_it() {
    on_stage(|stage| async move {
        let leases = stage.api::<Lease>();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "one" },
            "spec": { "holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": "2026-01-02T03:04:05.000006Z" },
        });
        let lease: Lease = serde_json::from_value(lease).unwrap();
        let made = leases.create(&PostParams::default(), &lease).await.unwrap();
        assert_eq!(refusal(leases.replace("one", &PostParams::default(), &lease).await).code, 422);
        let mut mine = made.clone();
        mine.spec.as_mut().unwrap().holder_identity = Some("b".to_owned());
        leases.replace("one", &PostParams::default(), &mine).await.unwrap();
        let mut late = made;
        late.spec.as_mut().unwrap().holder_identity = Some("c".to_owned());
        assert_eq!(refusal(leases.replace("one", &PostParams::default(), &late).await).code, 409);
        let now = leases.get("one").await.unwrap();
        assert_eq!(now.spec.unwrap().holder_identity.as_deref(), Some("b"));
    });
}

#[test]
fn a_write_that_changes_nothing_makes_no_new_version() {
    on_stage(|stage| async move {
        let maps = stage.api::<ConfigMap>();
        let map: ConfigMap =
            serde_json::from_value(stage.config_map("one", json!({ "a": "b" })).await).unwrap();
        let again = maps.replace("one", &PostParams::default(), &map).await.unwrap();
        assert_eq!(again.resource_version(), map.resource_version());
        let patch = Patch::Merge(json!({ "metadata": { "labels": { "a": "b" } } }));
        let again = maps.patch("one", &PatchParams::default(), &patch).await.unwrap();
        assert_eq!(again.resource_version(), map.resource_version());
    });
}

#[test]
fn a_generation_counts_changes_of_the_spec_alone() {
    on_stage(|stage| async move {
        let (things, _) = stage.things().await;
        let thing = stage.thing(&things, "one", json!({ "port": 1 })).await;
        assert_eq!(thing.metadata.generation, Some(1));
        let params = PatchParams::default();
        let label = Patch::Merge(json!({ "metadata": { "labels": { "a": "b" } } }));
        assert_eq!(things.patch("one", &params, &label).await.unwrap().metadata.generation, Some(1));
        let status = Patch::Merge(json!({ "status": { "seen": 1 } }));
        assert_eq!(things.patch_status("one", &params, &status).await.unwrap().metadata.generation, Some(1));
        let spec = Patch::Merge(json!({ "spec": { "port": 2 } }));
        assert_eq!(things.patch("one", &params, &spec).await.unwrap().metadata.generation, Some(2));
    });
}

#[test]
fn spec_and_status_are_written_apart() {
    on_stage(|stage| async move {
        let (things, _) = stage.things().await;
        let mut thing = stage.thing(&things, "one", json!({ "port": 1 })).await;
        let params = PatchParams::default();
        let both = Patch::Merge(json!({ "spec": { "port": 2 }, "status": { "seen": 1 } }));
        let by_status = things.patch_status("one", &params, &both).await.unwrap();
        assert_eq!(
            (&by_status.data["spec"]["port"], &by_status.data["status"]["seen"]),
            (&json!(1), &json!(1))
        );
        let both = Patch::Merge(json!({ "spec": { "port": 3 }, "status": { "seen": 2 } }));
        let by_spec = things.patch("one", &params, &both).await.unwrap();
        assert_eq!((&by_spec.data["spec"]["port"], &by_spec.data["status"]["seen"]), (&json!(3), &json!(1)));
        thing.metadata.resource_version = by_spec.resource_version();
        thing.data = json!({ "spec": { "port": 4 } });
        let replaced = things.replace("one", &PostParams::default(), &thing).await.unwrap();
        assert_eq!(
            (&replaced.data["spec"]["port"], &replaced.data["status"]["seen"]),
            (&json!(4), &json!(1))
        );
        // The status of a new object is nobody's word yet.
        thing.metadata.resource_version = None;
        thing.metadata.name = Some("two".to_owned());
        thing.data = json!({ "spec": {}, "status": { "seen": 1 } });
        let made = things.create(&PostParams::default(), &thing).await.unwrap();
        assert!(made.data["status"].is_null(), "{made:?}");
    });
}

#[test]
fn a_merge_patch_sets_and_removes_by_null() {
    on_stage(|stage| async move {
        stage.config_map("one", json!({ "a": "b", "c": "d" })).await;
        let patch = Patch::Merge(
            json!({ "metadata": { "labels": { "a": null, "e": "f" } }, "data": { "more": "1" } }),
        );
        let maps = stage.api::<ConfigMap>();
        let patched = maps.patch("one", &PatchParams::default(), &patch).await.unwrap();
        let labels: Vec<_> = patched.labels().iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(labels, ["c=d", "e=f"]);
        assert_eq!(patched.data.unwrap().len(), 2);
    });
}

#[test]
fn a_json_patch_is_carried_out_whole_or_not_at_all() {
    on_stage(|stage| async move {
        stage.config_map("one", json!({})).await;
        let path = stage.path("configmaps/one");
        let replace = json!({ "op": "replace", "path": "/data/i", "value": "new" });
        let test = |value: &str| json!([{ "op": "test", "path": "/data/i", "value": value }, replace]);
        let (code, answer) = stage.ask("PATCH", &path, "application/json-patch+json", &test("other")).await;
        assert_eq!((code, &answer["reason"]), (422, &json!("Invalid")), "{answer}");
        let (code, answer) = stage.ask("PATCH", &path, "application/json-patch+json", &test("one")).await;
        assert_eq!((code, &answer["data"]["i"]), (200, &json!("new")), "{answer}");
    });
}

#[test]
fn a_strategic_patch_merges_lists_by_their_keys_and_is_for_built_in_kinds_alone() {
    on_stage(|stage| async move {
        stage.pod("one", "").await;
        let pods = stage.api::<Pod>();
        let patch = json!({ "spec": { "containers": [{ "name": "main", "image": "example.test/main:2" }] } });
        let patched = pods.patch("one", &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
        let containers = patched.spec.unwrap().containers;
        assert_eq!(containers.len(), 1);
        assert_eq!(containers[0].image.as_deref(), Some("example.test/main:2"));
        let condition = |name: &str, status: &str| json!({ "type": name, "status": status });
        for conditions in
            [vec![condition("Ready", "False"), condition("Other", "True")], vec![condition("Ready", "True")]]
        {
            let patch = Patch::Strategic(json!({ "status": { "conditions": conditions } }));
            pods.patch_status("one", &PatchParams::default(), &patch).await.unwrap();
        }
        let now = pods.get("one").await.unwrap().status.unwrap().conditions.unwrap();
        let mut now: Vec<_> = now.iter().map(|one| format!("{}={}", one.type_, one.status)).collect();
        now.sort();
        assert_eq!(now, ["Other=True", "Ready=True"]);

        let (things, _) = stage.things().await;
        stage.thing(&things, "one", json!({})).await;
        let patch = Patch::Strategic(json!({ "metadata": { "labels": { "a": "b" } } }));
        let refused = refusal(things.patch("one", &PatchParams::default(), &patch).await);
        assert_eq!((refused.code, refused.reason.as_str()), (415, "UnsupportedMediaType"));
    });
}

#[test]
fn an_apply_makes_and_repeats_without_a_new_version() {
    on_stage(|stage| async move {
        let maps = stage.api::<ConfigMap>();
        let wanted = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "one" }, "data": { "a": "1" } });
        let params = PatchParams::apply("first");
        let made = maps.patch("one", &params, &Patch::Apply(&wanted)).await.unwrap();
        let again = maps.patch("one", &params, &Patch::Apply(&wanted)).await.unwrap();
        assert_eq!(again.resource_version(), made.resource_version());
        let owner = &made.metadata.managed_fields.unwrap()[0];
        assert_eq!((owner.manager.as_deref(), owner.operation.as_deref()), (Some("first"), Some("Apply")));
        assert_eq!(serde_json::to_value(&owner.fields_v1).unwrap(), json!({ "f:data": { "f:a": {} } }));
    });
}

#[test]
fn an_apply_is_told_which_fields_are_whose_and_takes_them_by_force() {
    on_stage(|stage| async move {
        let (things, _) = stage.things().await;
        let types = stage.thing(&things, "zero", json!({})).await.types.unwrap();
        let wanted = |port: u16| {
            json!({
                "apiVersion": types.api_version, "kind": types.kind, "metadata": { "name": "one" },
                "spec": { "port": port, "name": "same" },
            })
        };
        things.patch("one", &PatchParams::apply("first"), &Patch::Apply(wanted(1))).await.unwrap();
        let second = PatchParams::apply("second");
        let refused = refusal(things.patch("one", &second, &Patch::Apply(wanted(2))).await);
        assert_eq!((refused.code, refused.reason.as_str()), (409, "Conflict"));
        let causes = refused.details.unwrap().causes;
        assert_eq!(causes.len(), 1, "{causes:?}");
        assert_eq!(
            (causes[0].reason.as_str(), causes[0].field.as_str()),
            ("FieldManagerConflict", ".spec.port")
        );
        assert_eq!(causes[0].message, "conflict with \"first\"");
        let taken = things.patch("one", &second.force(), &Patch::Apply(wanted(2))).await.unwrap();
        assert_eq!(taken.data["spec"]["port"], 2);
        // Now it is the first that meets another's field.
        let first = PatchParams::apply("first");
        assert_eq!(refusal(things.patch("one", &first, &Patch::Apply(wanted(3))).await).code, 409);
    });
}

#[test]
fn a_field_that_its_only_owner_gives_up_goes() {
    on_stage(|stage| async move {
        let maps = stage.api::<ConfigMap>();
        let wanted = |data: Value| {
            Patch::Apply(
                json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "one" }, "data": data }),
            )
        };
        let (first, second) = (PatchParams::apply("first"), PatchParams::apply("second"));
        maps.patch("one", &first, &wanted(json!({ "mine": "1", "ours": "1" }))).await.unwrap();
        maps.patch("one", &second, &wanted(json!({ "ours": "1", "theirs": "1" }))).await.unwrap();
        let now = maps.patch("one", &first, &wanted(json!({}))).await.unwrap();
        assert_eq!(now.data.unwrap().into_keys().collect::<Vec<_>>(), ["ours", "theirs"]);
    });
}

#[test]
fn conditions_are_applied_one_by_one() {
    on_stage(|stage| async move {
        let (things, _) = stage.things().await;
        let types = stage.thing(&things, "one", json!({ "port": 1 })).await.types.unwrap();
        let status = |name: &str| {
            Patch::Apply(json!({
                "apiVersion": types.api_version, "kind": types.kind,
                "status": { "conditions": [{ "type": name, "status": "True" }] },
            }))
        };
        things.patch_status("one", &PatchParams::apply("first"), &status("Accepted")).await.unwrap();
        let now =
            things.patch_status("one", &PatchParams::apply("second"), &status("Programmed")).await.unwrap();
        assert_eq!(now.data["spec"]["port"], 1);
        let types: Vec<_> = now.data["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["type"].clone())
            .collect();
        assert_eq!(types, ["Accepted", "Programmed"]);
    });
}

#[test]
fn an_apply_needs_a_name_for_its_writer() {
    on_stage(|stage| async move {
        let wanted = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "one" } });
        let path = stage.path("configmaps/one");
        let (code, answer) = stage.ask("PATCH", &path, "application/apply-patch+yaml", &wanted).await;
        assert!((400..=422).contains(&code), "{answer}");
    });
}

#[test]
fn a_finalizer_holds_an_object_until_it_is_taken_off() {
    on_stage(|stage| async move {
        let (things, _) = stage.things().await;
        stage.thing(&things, "one", json!({ "port": 1 })).await;
        let finalizers = |list: Value| Patch::Merge(json!({ "metadata": { "finalizers": list } }));
        let params = PatchParams::default();
        things.patch("one", &params, &finalizers(json!(["example.test/held"]))).await.unwrap();
        things.delete("one", &DeleteParams::default()).await.unwrap();
        let held = things.get("one").await.unwrap();
        assert!(held.metadata.deletion_timestamp.is_some());
        assert_eq!(held.metadata.generation, Some(2));
        things.patch("one", &params, &finalizers(Value::Null)).await.unwrap();
        assert_eq!(things.get_opt("one").await.unwrap(), None);
    });
}

#[test]
fn a_pod_on_a_node_is_given_time_to_end() {
    on_stage(|stage| async move {
        let pods = stage.api::<Pod>();
        stage.pod("placed", "nowhere").await;
        stage.pod("unplaced", "").await;
        pods.delete("unplaced", &DeleteParams::default()).await.unwrap();
        assert!(pods.get_opt("unplaced").await.unwrap().is_none());
        pods.delete("placed", &DeleteParams::default()).await.unwrap();
        let ending = pods.get("placed").await.unwrap().metadata;
        assert!(ending.deletion_timestamp.is_some());
        assert_eq!(ending.deletion_grace_period_seconds, Some(30));
        pods.delete("placed", &DeleteParams::default().grace_period(0)).await.unwrap();
        assert!(pods.get_opt("placed").await.unwrap().is_none());
    });
}

#[test]
fn a_deletion_may_say_which_object_it_means() {
    on_stage(|stage| async move {
        let maps = stage.api::<ConfigMap>();
        let map = stage.config_map("one", json!({})).await;
        let of = |uid: &str| DeleteParams {
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        let refused = refusal(maps.delete("one", &of("another")).await);
        assert_eq!((refused.code, refused.reason.as_str()), (409, "Conflict"));
        maps.delete("one", &of(map["metadata"]["uid"].as_str().unwrap())).await.unwrap();
        assert!(maps.get_opt("one").await.unwrap().is_none());
    });
}

#[test]
fn a_collection_is_deleted_as_far_as_it_is_selected() {
    on_stage(|stage| async move {
        for (name, colour) in [("one", "red"), ("two", "blue"), ("three", "red")] {
            stage.config_map(name, json!({ "colour": colour })).await;
        }
        let maps = stage.api::<ConfigMap>();
        let red = ListParams::default().labels("colour=red");
        maps.delete_collection(&DeleteParams::default(), &red).await.unwrap();
        let left = maps.list(&ListParams::default().labels("colour")).await.unwrap();
        assert_eq!(left.items.iter().map(|map| map.name_any()).collect::<Vec<_>>(), ["two"]);
    });
}

#[test]
fn a_dry_run_answers_and_keeps_nothing() {
    on_stage(|stage| async move {
        let (maps, dry) = (stage.api::<ConfigMap>(), PostParams { dry_run: true, ..PostParams::default() });
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "one" } });
        let map: ConfigMap = serde_json::from_value(map).unwrap();
        assert!(maps.create(&dry, &map).await.unwrap().uid().is_some());
        assert!(maps.get_opt("one").await.unwrap().is_none());
        stage.config_map("two", json!({})).await;
        let patch = Patch::Merge(json!({ "data": { "i": "other" } }));
        let params = PatchParams { dry_run: true, ..PatchParams::default() };
        assert_eq!(maps.patch("two", &params, &patch).await.unwrap().data.unwrap()["i"], "other");
        assert_eq!(maps.get("two").await.unwrap().data.unwrap()["i"], "two");
    });
}

#[test]
fn a_definition_makes_a_kind_served_and_its_end_takes_the_objects_along() {
    on_stage(|stage| async move {
        let (things, path) = stage.things().await;
        stage.thing(&things, "one", json!({})).await;
        let (group, _) = path.strip_prefix("/apis/").unwrap().split_once('/').unwrap();
        let (_, listed) = stage.get(&format!("/apis/{group}/v1")).await;
        let names: Vec<_> =
            listed["resources"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
        assert_eq!(names, ["things", "things/status"]);
        let definition = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/things.{group}");
        assert_eq!(stage.ask("DELETE", &definition, "application/json", &Value::Null).await.0, 200);
        for _ in 0..200 {
            if stage.get(&path).await.0 == 404 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{path} is still served");
    });
}

#[test]
fn the_token_of_an_account_is_reviewed_with_the_pod_it_is_bound_to() {
    on_stage(|stage| async move {
        let pod = stage.pod("one", "nowhere").await;
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {
                "audiences": ["weft-control"], "expirationSeconds": 3600,
                "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": "one", "uid": pod["metadata"]["uid"] },
            },
        });
        let answer = stage.create("serviceaccounts/default/token", &request).await.unwrap();
        let token = answer["status"]["token"].as_str().unwrap();
        assert!(answer["status"]["expirationTimestamp"].is_string(), "{answer}");
        let review = async |audience: &str, token: &str| {
            let review = json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                "spec": { "token": token, "audiences": [audience] },
            });
            stage.create_all("/apis/authentication.k8s.io/v1/tokenreviews", &review).await.unwrap()["status"]
                .clone()
        };
        let status = review("weft-control", token).await;
        assert_eq!(status["authenticated"], true, "{status}");
        assert_eq!(status["audiences"], json!(["weft-control"]));
        let user = &status["user"];
        assert_eq!(user["username"], format!("system:serviceaccount:{}:default", stage.namespace()));
        assert_eq!(user["extra"]["authentication.kubernetes.io/pod-name"], json!(["one"]));
        assert_eq!(user["extra"]["authentication.kubernetes.io/pod-uid"], json!([pod["metadata"]["uid"]]));
        for (audience, token) in [("another", token), ("weft-control", "none")] {
            let status = review(audience, token).await;
            assert_ne!(status["authenticated"], true, "{status}");
            assert!(status["error"].is_string(), "{status}");
        }
        let now = DeleteParams::default().grace_period(0);
        stage.api::<Pod>().delete("one", &now).await.unwrap();
        // A real server believes for 10 s what it found out about a token.
        for _ in 0..150 {
            if review("weft-control", token).await["authenticated"] != true {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("the token of a pod that is gone is still believed");
    });
}

#[test]
fn an_administrator_may_do_what_it_asks_for() {
    on_stage(|stage| async move {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": { "verb": "list", "resource": "secrets" } },
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = stage.create_all(path, &review).await.unwrap();
        assert_eq!(answer["status"]["allowed"], true, "{answer}");
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "one" }, "data": { "a": "MQ==" },
        });
        stage.create("secrets", &secret).await.unwrap();
        let secret = stage.api::<Secret>().get("one").await.unwrap();
        assert_eq!(secret.data.unwrap()["a"].0, b"1");
    });
}
