//! Where writes go, kept up to date in the background.

use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use hyper::http::uri::Authority;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::{Site, WriteGate};
use crate::store::{PrimaryInfo, StoreEvent};

/// Pause before a primary that could not be asked for its proxy is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// How long it has to answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Where a write goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum WriteTarget {
    /// To the application of this node.
    Here,
    /// To the node of this name, and its proxy; `None` where proxies are not asked for.
    There(String, Option<Authority>),
    /// Nowhere for now, and why.
    Nowhere(String),
}

/// Where writes go now, and what may change it.
#[derive(Clone)]
pub(super) struct WriteTargets {
    current: Arc<watch::Sender<WriteTarget>>,
    ask_again: Arc<Notify>,
}

impl WriteTargets {
    /// Nowhere yet.
    pub fn new() -> Self {
        let current = watch::Sender::new(WriteTarget::Nowhere("the node is starting".into()));
        Self { current: Arc::new(current), ask_again: Arc::default() }
    }

    /// Where writes go, as it changes. Told anew also where it is the same again.
    pub fn watch(&self) -> watch::Receiver<WriteTarget> {
        self.current.subscribe()
    }

    /// What is known of the primary's proxy does not hold: nobody answers there.
    pub fn doubt(&self) {
        self.ask_again.notify_one();
    }

    /// Keeps it up to date until `shutdown`. Proxies of other nodes are asked for where `asks`.
    pub async fn follow(
        &self,
        site: Arc<dyn Site>,
        gate: WriteGate,
        asks: bool,
        shutdown: CancellationToken,
    ) {
        let (mut events, mut gates) = (site.events(), gate.watch());
        let mut known: Option<(PrimaryInfo, Authority)> = None;
        loop {
            let open = gates.borrow_and_update().is_open();
            let primary = site.primary();
            let mut due = None;
            let place = match primary {
                _ if open => WriteTarget::Here,
                _ if gate.now().primary => WriteTarget::Nowhere("the primary is being moved".into()),
                None => WriteTarget::Nowhere("no primary is known".into()),
                Some(primary) if primary.name == site.name().as_str() => {
                    WriteTarget::Nowhere("this node is about to be primary".into())
                }
                Some(primary) if !asks => WriteTarget::There(primary.name, None),
                Some(primary) => {
                    let kept = known.take().filter(|(of, _)| *of == primary);
                    let found = match kept {
                        Some((_, authority)) => Ok(authority),
                        None => tokio::select! {
                            found = ask(&*site, &primary) => found,
                            () = moved(&mut events) => continue,
                            _ = gates.changed() => continue,
                            () = shutdown.cancelled() => return,
                        },
                    };
                    match found {
                        Ok(authority) => {
                            known = Some((primary.clone(), authority.clone()));
                            WriteTarget::There(primary.name, Some(authority))
                        }
                        Err(why) => {
                            due = Some(ASK_AGAIN);
                            WriteTarget::Nowhere(why)
                        }
                    }
                }
            };
            let _before = self.current.send_replace(place);
            tokio::select! {
                () = moved(&mut events) => {}
                changed = gates.changed() => if changed.is_err() { return },
                () = self.ask_again.notified() => {
                    known = None;
                    // Not as fast as requests fail.
                    tokio::time::sleep(ASK_AGAIN / 5).await;
                }
                () = after(due) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}

async fn ask(site: &dyn Site, primary: &PrimaryInfo) -> Result<Authority, String> {
    let name = &primary.name;
    let asked = tokio::time::timeout(ANSWER_MAX, site.proxy_of(primary)).await;
    let url = match asked {
        Err(_) => return Err(format!("the primary {name} does not say where its proxy is")),
        Ok(Err(why)) => return Err(format!("the primary {name} cannot be asked for its proxy: {why}")),
        Ok(Ok(None)) => return Err(format!("the primary {name} has no proxy: configure [proxy] there too")),
        Ok(Ok(Some(url))) => url,
    };
    let authority = url.parse::<Uri>().ok().and_then(|uri| uri.authority().cloned());
    authority.ok_or_else(|| format!("the primary {name} names {url:?} as its proxy, which is no URL"))
}

/// Waits for another primary, or for having missed whether there is one.
async fn moved(events: &mut broadcast::Receiver<StoreEvent>) {
    loop {
        match events.recv().await {
            Ok(StoreEvent::Primary(_)) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            // The node ends; so does this task.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

async fn after(due: Option<Duration>) {
    match due {
        Some(due) => tokio::time::sleep(due).await,
        None => std::future::pending().await,
    }
}
