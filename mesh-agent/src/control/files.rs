//! Standalone mode: keys and join tokens in files, and what to do when they change.
//!
//! A rotation by `rotate-root`, a new node's token and an ageing certificate are taken up without a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ca::{Authority, store};
use super::callers::Callers;
use super::reports::Leading;
use super::reports::desk::Desk;
use super::server::{self, Signing, server_names};
use super::tokens::JoinTokens;
use super::{Control, Error, Settings};
use crate::identity::watch::DirWatch;
use crate::lifecycle::Shutdown;
use crate::model::TrustDomain;
use crate::registry::Registry;

/// See [`Control::open`].
pub(super) fn open(settings: Settings, registry: Registry) -> Result<Control, Error> {
    let authority = Authority::open(&settings.state_dir, &settings.trust_domain)?;
    let tokens = Arc::new(JoinTokens::load(&settings.join_tokens_dir)?);
    if let Some(path) = &settings.trust_bundle_out {
        publish(path, &authority)?;
    }
    let names = server_names(settings.listen, &settings.server_names);
    let callers = Callers::JoinTokens(tokens.clone());
    let (trust_domain, desk) = (settings.trust_domain.clone(), Desk::new(Leading::alone()));
    let signing = Signing::begin(authority, trust_domain, callers, registry, names, desk)?;
    let control = Control::listen(settings.listen, &signing)?;
    Ok(control(server::Follower::Files(Follower {
        signing,
        tokens,
        trust_domain: settings.trust_domain,
        state_dir: settings.state_dir,
        tokens_dir: settings.join_tokens_dir,
        bundle_out: settings.trust_bundle_out,
    })))
}

/// Takes up changes of the state directory and of the join tokens.
#[derive(Debug)]
pub(super) struct Follower {
    signing: Signing,
    tokens: Arc<JoinTokens>,
    trust_domain: TrustDomain,
    state_dir: PathBuf,
    tokens_dir: PathBuf,
    bundle_out: Option<PathBuf>,
}

impl Follower {
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        let dirs = [self.state_dir.clone(), self.tokens_dir.clone()];
        let mut watch = DirWatch::of_directories(dirs.iter().map(PathBuf::as_path));
        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                () = watch.changed() => {}
            }
            if let Err(error) = self.follow_authority() {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "the CA goes on with what it has");
            }
            self.follow_tokens();
        }
    }

    fn follow_authority(&mut self) -> Result<(), Error> {
        let found = match self.signing.service.authority.load().intermediate_is_due() {
            true => Authority::open(&self.state_dir, &self.trust_domain)?,
            false => Authority::read(&self.state_dir)?,
        };
        // Publish first: agents must know a root before they meet a certificate under it.
        if let Some(path) = &self.bundle_out {
            publish(path, &found)?;
        }
        self.signing.take(found)
    }

    fn follow_tokens(&self) {
        match self.tokens.reload() {
            Ok(left_out) => {
                for error in left_out {
                    tracing::error!(%error, "its node is refused");
                }
            }
            Err(error) => tracing::error!(%error, "the join tokens stay as they were"),
        }
    }
}

/// Writes the bundle where it differs from what is there.
fn publish(path: &Path, authority: &Authority) -> Result<(), Error> {
    let bundle = authority.bundle_pem();
    if std::fs::read(path).is_ok_and(|present| present == bundle.as_bytes()) {
        return Ok(());
    }
    store::write_whole(path, bundle.as_bytes(), store::PUBLIC)
}
