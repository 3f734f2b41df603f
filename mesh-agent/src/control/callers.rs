//! Which node is asking? Two ways to know: a join token of its own, or the token of the agent's pod.

use std::sync::Arc;

use super::review::Reviews;
use super::tokens::JoinTokens;

/// How callers prove themselves.
#[derive(Debug)]
pub enum Callers {
    /// Standalone: a file per node.
    JoinTokens(Arc<JoinTokens>),
    /// In a cluster: the API server is asked.
    Reviews(Box<Reviews>),
}

/// Why it is not known who asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// The token names no node, or not one of an agent.
    #[error("{0}")]
    Refused(String),
    /// Nobody can say now; the caller should try again.
    #[error("{0}")]
    Unavailable(String),
}

impl Callers {
    /// The node of whoever presents this token.
    ///
    /// # Errors
    /// Nobody's token, or it cannot be checked now.
    pub async fn node_of(&self, token: Option<&str>) -> Result<Arc<str>, Unknown> {
        match self {
            Self::JoinTokens(tokens) => token.and_then(|token| tokens.node_of(token)).ok_or_else(|| {
                Unknown::Refused("join token: none was presented, or it names no node".to_owned())
            }),
            Self::Reviews(reviews) => {
                let none = || Unknown::Refused("token: none was presented".to_owned());
                reviews.node_of(token.ok_or_else(none)?).await
            }
        }
    }
}
