//! Streams that wait for the next request of their clients.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use rusqlite::TransactionState;
use subtle::ConstantTimeEq;

use super::EngineOptions;
use super::session::{Session, moved};
use crate::sql::hrana::Failure;

/// What is said of a stream that is not there, whether it has been or was guessed: nothing has to be remembered.
const EXPIRED: &str = "the stream is not there: it was idle for longer than sql.stream_idle_timeout, its node was \
                       restarted, or the baton was used before; a transaction that was open on it is rolled back";

/// All streams of the engine.
pub(super) struct Streams {
    options: Arc<EngineOptions>,
    all: Mutex<HashMap<u128, Waiting>>,
}

struct Waiting {
    db: String,
    write: bool,
    secret: u128,
    since: Instant,
    /// None while a request is under way.
    session: Option<Session>,
}

/// A stream that a request works on. Dropped it is no more.
pub(super) struct Taken {
    streams: Arc<Streams>,
    id: u128,
    kept: bool,
}

impl Streams {
    /// None yet.
    pub fn new(options: Arc<EngineOptions>) -> Arc<Self> {
        Arc::new(Self { options, all: Mutex::default() })
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u128, Waiting>> {
        self.all.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A new one, for clients that may do the same.
    ///
    /// # Errors
    /// Where there are too many.
    pub fn begin(self: &Arc<Self>, db: &str, write: bool) -> Result<Taken, Failure> {
        let (id, secret) = (random()?, random()?);
        let mut all = self.all();
        if all.len() >= self.options.streams_max {
            let why = format!("{} streams are open on this node (sql.streams)", all.len());
            return Err(Failure::new("TOO_MANY_STREAMS", why));
        }
        let waiting = Waiting { db: db.to_owned(), write, secret, since: Instant::now(), session: None };
        drop(all.insert(id, waiting));
        Ok(Taken { streams: self.clone(), id, kept: false })
    }

    /// Goes on with the one that `baton` names. A baton is used once.
    ///
    /// # Errors
    /// Where there is none, or it is of another database or of other rights, or a request is under way on it.
    pub fn take(self: &Arc<Self>, baton: &str, db: &str, write: bool) -> Result<(Taken, Session), Failure> {
        let expired = || Failure::new("STREAM_EXPIRED", EXPIRED);
        let (id, secret) = parse(&self.options.node, baton).ok_or_else(expired)?;
        let mut all = self.all();
        let waiting = all.get_mut(&id).ok_or_else(expired)?;
        let known: bool = waiting.secret.to_be_bytes().ct_eq(&secret.to_be_bytes()).into();
        if !known || waiting.db != db || waiting.write != write {
            return Err(expired());
        }
        let session = waiting.session.take();
        let busy = || Failure::new("STREAM_BUSY", "a request of this stream is under way");
        let session = session.ok_or_else(busy)?;
        Ok((Taken { streams: self.clone(), id, kept: false }, session))
    }

    /// Ends what has waited too long. Blocking.
    pub fn expire(&self) {
        let limit = self.options.stream_idle_max;
        let old: Vec<_> = {
            let mut all = self.all();
            let old = |waiting: &Waiting| waiting.session.is_some() && waiting.since.elapsed() >= limit;
            let ids: Vec<_> = all.iter().filter(|(_, waiting)| old(waiting)).map(|(id, _)| *id).collect();
            ids.into_iter().filter_map(|id| all.remove(&id)).collect()
        };
        // Rolls back.
        drop(old);
        self.on_each_idle(|session| session.end_late(&self.options));
    }

    /// Rolls back what has written and waits for its client. Blocking.
    pub fn abort_writers(&self) {
        self.on_each_idle(|session| {
            let state = session.connection.sqlite.transaction_state(None::<&str>);
            if matches!(state, Ok(TransactionState::Write)) {
                session.abort(moved());
            }
        });
    }

    /// Sessions are taken for as long as they may block.
    fn on_each_idle(&self, work: impl Fn(&mut Session)) {
        let ids: Vec<_> = self.all().keys().copied().collect();
        for id in ids {
            let taken = self.all().get_mut(&id).and_then(|waiting| waiting.session.take());
            let Some(mut session) = taken else { continue };
            work(&mut session);
            if let Some(waiting) = self.all().get_mut(&id) {
                waiting.session = Some(session);
            }
        }
    }
}

impl Taken {
    /// The baton by which the client goes on.
    ///
    /// # Errors
    /// Where there are no random numbers.
    pub fn baton(&self) -> Result<String, Failure> {
        let secret = random()?;
        if let Some(waiting) = self.streams.all().get_mut(&self.id) {
            waiting.secret = secret;
        }
        Ok(format!("{}.{:032x}{secret:032x}", self.streams.options.node, self.id))
    }

    /// The request has ended, and the stream waits for the next one.
    pub fn keep(mut self, session: Session) {
        if let Some(waiting) = self.streams.all().get_mut(&self.id) {
            waiting.since = Instant::now();
            waiting.session = Some(session);
            self.kept = true;
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.kept {
            drop(self.streams.all().remove(&self.id));
        }
    }
}

/// The node that a baton belongs to.
pub fn node_of(baton: &str) -> Option<&str> {
    baton.rsplit_once('.').map(|(node, _)| node)
}

fn parse(node: &str, baton: &str) -> Option<(u128, u128)> {
    let (of, numbers) = baton.rsplit_once('.')?;
    let hex = numbers.len() == 64 && numbers.bytes().all(|byte| byte.is_ascii_hexdigit());
    if of != node || !hex {
        return None;
    }
    let number = |text| u128::from_str_radix(text, 16).ok();
    Some((number(&numbers[..32])?, number(&numbers[32..])?))
}

fn random() -> Result<u128, Failure> {
    let mut bytes = [0; 16];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|error| Failure::new("INTERNAL", format!("reading /dev/urandom: {error}")))?;
    Ok(u128::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batons_of_other_nodes_and_forged_ones_name_nothing() {
        let (id, secret) = ("0".repeat(31) + "1", "f".repeat(32));
        assert_eq!(parse("n1", &format!("n1.{id}{secret}")), Some((1, u128::MAX)));
        assert_eq!(node_of(&format!("a.b.{id}{secret}")), Some("a.b"));
        for baton in ["", ".", "n1", "n1.", &format!("n2.{id}{secret}"), &format!("n1.{id}{secret}0"), "n1.ä"]
        {
            assert_eq!(parse("n1", baton), None, "{baton}");
        }
        assert_eq!(parse("n1", &format!("n1.+{}{secret}", &id[1..])), None);
    }
}
