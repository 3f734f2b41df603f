//! Questions that are posted and answered: whose token this is, what one may do, and a token for a service account.

use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::faults::{Faults, What};
use super::refusal::Refusal;
use super::resource::Kept;
use super::state::State;
use super::store::Key;
use super::write::text;

/// The audience of the server itself.
pub const API_AUDIENCE: &str = "https://kubernetes.default.svc";

/// How long a token lives that nobody gave a time.
const TOKEN_SECONDS: i64 = 3600;

/// Whom a token speaks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Token {
    /// Name.
    pub username: String,
    /// UID.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Who shall believe it; the server itself when empty.
    pub audiences: Vec<String>,
    /// More about the user: `authentication.kubernetes.io/pod-name` and so on.
    pub extra: BTreeMap<String, Vec<String>>,
    /// Until when it is good; always when absent.
    pub expires: Option<Timestamp>,
}

/// Names of what a token says of the pod and node it is bound to.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";

impl Token {
    /// A user's token for the server itself.
    pub fn user(username: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Self { username: username.to_owned(), groups, ..Self::default() }
    }

    /// A service account's token for an audience.
    pub fn account(namespace: &str, name: &str, audience: &str) -> Self {
        Self {
            username: format!("system:serviceaccount:{namespace}:{name}"),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ],
            audiences: vec![audience.to_owned()],
            ..Self::default()
        }
    }

    /// Bound to a pod.
    #[must_use]
    pub fn bound_to(mut self, pod: &str, uid: &str) -> Self {
        self.extra.insert(POD_NAME.to_owned(), vec![pod.to_owned()]);
        self.extra.insert(POD_UID.to_owned(), vec![uid.to_owned()]);
        self
    }

    /// Says the node of its pod.
    #[must_use]
    pub fn on_node(mut self, node: &str, uid: &str) -> Self {
        self.extra.insert(NODE_NAME.to_owned(), vec![node.to_owned()]);
        self.extra.insert(NODE_UID.to_owned(), vec![uid.to_owned()]);
        self
    }

    fn audiences(&self) -> Vec<String> {
        if self.audiences.is_empty() { vec![API_AUDIENCE.to_owned()] } else { self.audiences.clone() }
    }

    fn is_expired(&self) -> bool {
        self.expires.is_some_and(|expires| Timestamp::now() >= expires)
    }
}

impl State {
    /// The user of a bearer token that is good for the server itself.
    pub fn user(&self, bearer: &str) -> Option<String> {
        let token = self.tokens.get(bearer)?;
        let is_for_us = token.audiences().iter().any(|audience| audience == API_AUDIENCE);
        (is_for_us && !token.is_expired() && self.is_bound_pod_there(token)).then(|| token.username.clone())
    }

    /// A token that is bound to a pod ends with the pod, if its namespace can be told.
    fn is_bound_pod_there(&self, token: &Token) -> bool {
        let first = |name: &str| token.extra.get(name).and_then(|values| values.first());
        let namespace =
            token.username.strip_prefix("system:serviceaccount:").and_then(|u| u.split(':').next());
        let (Some(namespace), Some(name), Some(uid)) = (namespace, first(POD_NAME), first(POD_UID)) else {
            return true;
        };
        let pod = self.store.get(&Kept::new("", "pods"), &Key::new(Some(namespace), name));
        pod.is_some_and(|pod| text(&pod.object["metadata"]["uid"]) == uid)
    }

    /// Answers a TokenReview.
    pub fn review_token(&self, review: &Value) -> Value {
        let asked: Vec<String> = review["spec"]["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|a| text(a).to_owned())
            .collect();
        let asked = if asked.is_empty() { vec![API_AUDIENCE.to_owned()] } else { asked };
        let mut answer = review.clone();
        let refuse = |why: &str| json!({ "user": {}, "error": why });
        answer["status"] = match self.tokens.get(text(&review["spec"]["token"])) {
            None => refuse("[invalid bearer token]"),
            Some(token) if token.is_expired() => refuse("[invalid bearer token, token has expired]"),
            Some(token) if !self.is_bound_pod_there(token) => {
                refuse("[invalid bearer token, the pod of the token is gone]")
            }
            Some(token) => {
                let common: Vec<String> =
                    token.audiences().into_iter().filter(|audience| asked.contains(audience)).collect();
                if common.is_empty() {
                    refuse(&format!(
                        "[invalid bearer token, token audiences {:?} is invalid for the target audiences {asked:?}]",
                        token.audiences()
                    ))
                } else {
                    let mut user = json!({ "username": token.username, "groups": token.groups });
                    if !token.uid.is_empty() {
                        user["uid"] = token.uid.clone().into();
                    }
                    if !token.extra.is_empty() {
                        user["extra"] = json!(token.extra);
                    }
                    json!({ "authenticated": true, "user": user, "audiences": common })
                }
            }
        };
        answer
    }

    /// Makes a token for a service account, bound to a pod where asked (TokenRequest).
    ///
    /// # Errors
    /// There is no such account or pod.
    pub fn request_token(
        &mut self,
        namespace: &str,
        account: &str,
        request: &Value,
    ) -> Result<Value, Refusal> {
        let kept = Kept::new("", "serviceaccounts");
        let found = self.store.get(&kept, &Key::new(Some(namespace), account));
        let found = found.ok_or_else(|| Refusal::not_found(&kept, account))?;
        let mut token = Token::account(namespace, account, API_AUDIENCE);
        text(&found.object["metadata"]["uid"]).clone_into(&mut token.uid);
        let spec = &request["spec"];
        if let Some(audiences) = spec["audiences"].as_array().filter(|audiences| !audiences.is_empty()) {
            token.audiences = audiences.iter().map(|audience| text(audience).to_owned()).collect();
        }
        let bound = &spec["boundObjectRef"];
        if bound["kind"] == "Pod" {
            let (pods, name) = (Kept::new("", "pods"), text(&bound["name"]));
            let pod = self.store.get(&pods, &Key::new(Some(namespace), name));
            let pod = &pod.ok_or_else(|| Refusal::not_found(&pods, name))?.object;
            let uid = text(&pod["metadata"]["uid"]);
            if !bound["uid"].is_null() && text(&bound["uid"]) != uid {
                return Err(Refusal::conflict(
                    &pods,
                    name,
                    "the UID in the bound object reference is another",
                ));
            }
            token = token.bound_to(name, uid);
            let node = text(&pod["spec"]["nodeName"]);
            if let Some(found) = self.store.get(&Kept::new("", "nodes"), &Key::new(None, node)) {
                token = token.on_node(node, text(&found.object["metadata"]["uid"]));
            }
        }
        let seconds = spec["expirationSeconds"].as_i64().unwrap_or(TOKEN_SECONDS);
        let expires = Timestamp::now() + SignedDuration::from_secs(seconds);
        token.expires = Some(expires);
        let mut answer = request.clone();
        let secret = web_token(&token, expires);
        answer["metadata"] = json!({ "name": account, "namespace": namespace });
        answer["spec"]["audiences"] = json!(token.audiences);
        answer["spec"]["expirationSeconds"] = seconds.into();
        let expires = expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        answer["status"] = json!({ "token": secret, "expirationTimestamp": expires });
        self.tokens.insert(secret, token);
        Ok(answer)
    }
}

/// What a token says of itself, as readers without its key see it (RFC 7519); the signature is none.
fn web_token(token: &Token, expires: Timestamp) -> String {
    let claims = json!({ "aud": token.audiences, "exp": expires.as_second(), "sub": token.username });
    let part = |value: Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    format!("{}.{}.{:032x}", part(json!({ "alg": "none" })), part(claims), fastrand::u128(..))
}

/// Answers a SelfSubjectAccessReview or SubjectAccessReview: all is allowed for which no 403 is ordered.
pub fn review_access(faults: &Faults, review: &Value, user: &str) -> Value {
    let asked = &review["spec"]["resourceAttributes"];
    let user = review["spec"]["user"].as_str().unwrap_or(user);
    let is_403 = |what: &What| matches!(what, What::Status { code: 403, .. });
    let is_denied = faults.stands(text(&asked["verb"]), text(&asked["resource"]), user, is_403);
    let mut answer = review.clone();
    answer["status"] = json!({ "allowed": !is_denied });
    answer
}
