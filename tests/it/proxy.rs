//! The HTTP proxy before a real application on each of several nodes: readers see what they wrote, and what a planned
//! move and a loss of the primary cost.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::harness::certs::Certs;
use crate::harness::{
    App, Node, PATIENCE, Settings, Voters, eventually, free_address, http, needs_skein, skip, sql, within,
};

/// Where the primary moves as planned only: nobody else is elected because the machine is busy for a moment.
const CALM: [(&str, &str); 1] = [("SKEIN_ELECTION_TIMEOUT", "4s")];

/// Clients at a time.
const CLIENTS: usize = 4;

/// Three voters and perhaps a replica, an application and a proxy on each.
struct Site {
    /// Dropped first: while they use a mount it stays.
    apps: Vec<App>,
    proxies: Vec<SocketAddr>,
    voters: Voters,
}

impl Site {
    fn start(replicas: usize, secured: bool) -> Option<Self> {
        Self::start_with(replicas, secured, &[])
    }

    /// With environment for the nodes.
    fn start_with(replicas: usize, secured: bool, env: &[(&str, &str)]) -> Option<Self> {
        if !needs_skein() {
            return None;
        }
        if Command::new("python3").arg("-c").arg("import sqlite3").status().is_err() {
            skip("python3 is not installed");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("skein-proxy-").tempdir().unwrap();
        let certs = secured.then(|| Certs::init(&dir.path().join("certs")));
        let (mut nodes, mut proxies, mut targets) = (Vec::<Node>::new(), Vec::new(), Vec::new());
        for number in 0..3 + replicas {
            let name = format!("n{}", number + 1);
            let mut settings = match number {
                0 => Settings::primary(&name),
                1 | 2 => Settings { role: "voter", ..Settings::replica(&name, nodes[0].listen) },
                _ => Settings::replica(&name, nodes[0].listen),
            };
            settings.env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let (proxy, target) = (free_address(), free_address());
            let options =
                [("addr", proxy.to_string()), ("target", target.to_string()), ("db", "app.db".into())];
            settings.extra = options.map(|(key, value)| format!("--proxy-{key}={value}")).to_vec();
            if let Some(certs) = &certs {
                settings.extra.extend(certs.issue(&name));
                // Nobody is there: what is sent between proxies has to find another way.
                settings.extra.push(format!("--proxy-advertise=http://{}", free_address()));
            }
            let mut node = Node::new(dir.path(), settings);
            node.must_start();
            nodes.push(node);
            proxies.push(proxy);
            targets.push(target);
        }
        let voters = Voters::of(nodes, dir);
        voters.wait_voting(3);
        let db = sql::create(&voters.nodes[voters.primary()].path("app.db"), "wal", 4096);
        sql::run(&db, "CREATE TABLE note(topic, n, node)");
        drop(db);
        voters.same_bytes("app.db");
        let apps = (0..targets.len()).map(|which| start_app(&voters.nodes[which], targets[which])).collect();
        let site = Self { voters, proxies, apps };
        for proxy in &site.proxies {
            eventually("the proxy is healthy and its application answers", || {
                let healthy = http::request(*proxy, "GET", "/skein/health", b"").ok()?.status == 200;
                (healthy && http::request(*proxy, "GET", "/notes/x", b"").ok()?.status == 200).then_some(())
            });
        }
        Some(site)
    }

    /// What happened to the clients' notes, as the primary has them: all that were acknowledged are there, and none
    /// twice.
    fn check(&self, clients: &[Client]) {
        let db = self.voters.open(self.voters.primary(), "app.db");
        sql::check_integrity(&db);
        let twice =
            sql::rows(&db, "SELECT topic, n FROM note GROUP BY topic, n HAVING count(*) > 1").unwrap();
        assert!(twice.is_empty(), "sent more than once: {twice:?}");
        for client in clients {
            let topic = &client.topic;
            let kept = sql::number(&db, &format!("SELECT count(*) FROM note WHERE topic = '{topic}'"));
            let (least, most) = (client.written, client.written + client.unknown);
            let kept = u64::try_from(kept).unwrap();
            assert!((least..=most).contains(&kept), "{topic}: {kept}, {least} acknowledged, {most} at most");
            assert_eq!(client.wrong, Vec::<String>::new(), "{topic} read what is older than it wrote");
        }
    }
}

fn start_app(node: &Node, target: SocketAddr) -> App {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/apps/notes.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(target.port().to_string()).arg(node.path("app.db")).arg(&node.settings.name);
    App::spawn(&mut command)
}

/// A browser: one cookie, one request at a time, another node each time.
struct Client {
    topic: String,
    cookie: Option<String>,
    /// The number of the last note that was tried.
    n: u64,
    /// The number of the last note that was acknowledged.
    last: u64,
    written: u64,
    /// Notes whose fate it was not told.
    unknown: u64,
    reads: u64,
    wrong: Vec<String>,
    /// What went wrong, by cause.
    failures: Vec<String>,
    /// Nodes whose application answered a read.
    seen: std::collections::BTreeSet<String>,
}

impl Client {
    fn new(number: usize) -> Self {
        Self {
            topic: format!("t{number}"),
            cookie: None,
            n: 0,
            last: 0,
            written: 0,
            unknown: 0,
            reads: 0,
            wrong: Vec::new(),
            failures: Vec::new(),
            seen: std::collections::BTreeSet::new(),
        }
    }

    fn ask(&mut self, proxy: SocketAddr, method: &str, body: &str) -> Result<u64, String> {
        let cookie = self.cookie.as_ref().map(|cookie| format!("Cookie: {cookie}\r\n")).unwrap_or_default();
        let path = format!("/notes/{}", self.topic);
        let reply = http::request_with(proxy, method, &path, &cookie, body.as_bytes())?;
        for cookie in &reply.cookies {
            self.cookie = cookie.split(';').next().map(str::to_owned).filter(|pair| !pair.ends_with('='));
        }
        if reply.status != 200 {
            return Err(format!("{} {}", reply.status, reply.text().trim()));
        }
        let answer: serde_json::Value =
            serde_json::from_slice(&reply.body).map_err(|error| error.to_string())?;
        if method == "GET" {
            self.seen.insert(answer["node"].as_str().unwrap_or_default().to_owned());
        }
        answer["last"].as_u64().ok_or_else(|| format!("no number in {answer}"))
    }

    /// A write through one node, a read through another.
    fn step(&mut self, write_at: SocketAddr, read_at: SocketAddr) {
        self.n += 1;
        match self.ask(write_at, "POST", &self.n.to_string()) {
            Ok(_) => (self.last, self.written) = (self.n, self.written + 1),
            Err(why) => {
                // Where nobody listens, nobody has got it.
                self.unknown += u64::from(!why.contains("refused"));
                self.failures.push(format!("POST {why}"));
            }
        }
        match self.ask(read_at, "GET", "") {
            Ok(last) if last >= self.last => self.reads += 1,
            Ok(last) => self.wrong.push(format!("{last} after {}, cookie {:?}", self.last, self.cookie)),
            Err(why) => self.failures.push(format!("GET {why}")),
        }
    }
}

/// Runs clients over these proxies while `during` runs; they count their steps.
fn under_load(proxies: &[SocketAddr], during: impl FnOnce(&AtomicU64)) -> Vec<Client> {
    let (stop, steps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (stop, steps) = (&stop, &steps);
        let run = move |number: usize| {
            let mut client = Client::new(number);
            let mut at = number;
            while !stop.load(Ordering::SeqCst) {
                client.step(proxies[at % proxies.len()], proxies[(at + 1) % proxies.len()]);
                at += 1;
                steps.fetch_add(1, Ordering::SeqCst);
            }
            client
        };
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || run(number))).collect();
        during(steps);
        stop.store(true, Ordering::SeqCst);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

fn wait_steps(steps: &AtomicU64, more: u64) {
    let goal = steps.load(Ordering::SeqCst) + more;
    let done = within(PATIENCE * 4, || (steps.load(Ordering::SeqCst) >= goal).then_some(()));
    assert!(done.is_some(), "the clients do not get on: {} of {goal}", steps.load(Ordering::SeqCst));
}

fn total(clients: &[Client], of: impl Fn(&Client) -> u64) -> u64 {
    clients.iter().map(of).sum()
}

/// Printed with --nocapture.
fn report(what: &str, clients: &[Client]) -> Vec<String> {
    let failures: Vec<_> = clients.iter().flat_map(|client| client.failures.clone()).collect();
    println!(
        "{what}: {} writes, {} reads, {} wrong, {} failed",
        total(clients, |client| client.written),
        total(clients, |client| client.reads),
        total(clients, |client| client.wrong.len() as u64),
        failures.len()
    );
    let known = |failure: &&String| cause_of(failure) != Some(Cause::NobodyThere);
    failures.iter().filter(known).for_each(|failure| println!("    {failure}"));
    failures
}

#[test]
fn clients_read_what_they_wrote_whichever_node_they_ask() {
    let Some(site) = Site::start_with(1, false, &CALM) else { return };
    let clients = under_load(&site.proxies, |steps| wait_steps(steps, 600));
    let failures = report("four nodes", &clients);
    assert!(failures.is_empty(), "{failures:?}");
    site.check(&clients);
    let seen: std::collections::BTreeSet<_> = clients.iter().flat_map(|client| client.seen.clone()).collect();
    assert_eq!(seen.len(), 4, "every node's application serves reads: {seen:?}");
    let written_by = {
        let db = site.voters.open(site.voters.primary(), "app.db");
        sql::number(&db, "SELECT count(DISTINCT node) FROM note")
    };
    assert_eq!(written_by, 1, "only the primary's application writes");
    let metrics = http::request(site.voters.nodes[0].http, "GET", "/metrics", b"").unwrap().text();
    for part in ["skein_proxy_requests_total{kind=\"write\"", "skein_proxy_txid_wait_seconds_bucket"] {
        assert!(metrics.contains(part), "{part} is not in {metrics}");
    }
}

#[test]
fn between_nodes_with_certificates_requests_travel_inside_tls() {
    let Some(site) = Site::start_with(0, true, &CALM) else { return };
    let clients = under_load(&site.proxies, |steps| {
        wait_steps(steps, 100);
        let from = site.voters.primary();
        let to = site.voters.nodes[(from + 1) % 3].settings.name.clone();
        site.voters.nodes[from].must_client(&["handoff", &to]);
        wait_steps(steps, 100);
    });
    let failures = report("with certificates", &clients);
    assert!(failures.is_empty(), "{failures:?}");
    site.check(&clients);
}

#[test]
fn a_handoff_fails_no_request() {
    let Some(site) = Site::start_with(0, false, &CALM) else { return };
    let clients = under_load(&site.proxies, |steps| {
        for _ in 0..6 {
            wait_steps(steps, 40);
            let from = site.voters.primary();
            let to = site.voters.nodes[(from + 1) % 3].settings.name.clone();
            site.voters.nodes[from].must_client(&["handoff", &to]);
        }
        wait_steps(steps, 40);
    });
    let failures = report("six handoffs", &clients);
    assert!(failures.is_empty(), "{failures:?}");
    site.check(&clients);
}

#[test]
fn the_loss_of_the_primary_fails_only_what_was_under_way_there() {
    let Some(mut site) = Site::start(0, false) else { return };
    let proxies = site.proxies.clone();
    let first = site.voters.primary();
    let survivors: Vec<_> = (0..3).filter(|which| *which != first).collect();
    let (voters, apps) = (&mut site.voters, &mut site.apps);
    let clients = under_load(&proxies, |steps| {
        wait_steps(steps, 60);
        voters.nodes[first].kill9();
        apps[first].kill9();
        let _second = voters.primary_among(&survivors);
        wait_steps(steps, 60);
    });
    let failures = report("kill -9 of the primary", &clients);
    site.check_after_loss(&survivors, &clients);
    // Who asks the node that is gone finds nobody, or loses his connection with it: a request under way, and one more,
    // because a process that is killed may still take connections while its other threads end. Who asks another one is
    // told that the primary broke off, at most once at each that is left: after that nothing is sent there.
    let of = |cause| failures.iter().filter(move |failure| cause_of(failure) == Some(cause)).count();
    let (nobody, cut, broke_off) = (of(Cause::NobodyThere), of(Cause::Cut), of(Cause::BrokeOff));
    println!("    nobody there {nobody}, cut {cut}, broke off {broke_off}");
    assert_eq!(nobody + cut + broke_off, failures.len(), "{failures:?}");
    assert!(cut <= CLIENTS * 2 && broke_off <= CLIENTS * survivors.len(), "{failures:?}");
}

/// Why a client was not served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cause {
    /// It asked the proxy of the node that is gone.
    NobodyThere,
    /// It was waiting for that proxy when it went.
    Cut,
    /// It asked another one, which had passed the request on when the primary went.
    BrokeOff,
}

fn cause_of(failure: &str) -> Option<Cause> {
    let cut = ["reset", "failed to fill", "end of file"];
    if failure.contains("refused") {
        Some(Cause::NobodyThere)
    } else if failure.contains("broke off") {
        Some(Cause::BrokeOff)
    } else if failure.ends_with(" 0 ") || cut.iter().any(|part| failure.contains(part)) {
        Some(Cause::Cut)
    } else {
        None
    }
}

impl Site {
    fn check_after_loss(&mut self, survivors: &[usize], clients: &[Client]) {
        let _primary = self.voters.primary_among(survivors);
        self.check(clients);
        // Through those that are left everything goes on, without a failure.
        let left: Vec<_> = survivors.iter().map(|which| self.proxies[*which]).collect();
        let mut client = Client::new(100);
        for _ in 0..20 {
            client.step(left[0], left[1]);
        }
        assert!(client.failures.is_empty() && client.wrong.is_empty(), "{:?}", client.failures);
        assert_eq!(client.written, 20);
        let waited = Duration::from_secs(10);
        let same = within(waited, || {
            let pos: Vec<_> = survivors.iter().map(|which| self.voters.nodes[*which].pos("app.db")).collect();
            (pos[0].is_some() && pos[0] == pos[1]).then_some(())
        });
        assert!(same.is_some(), "the survivors differ");
    }
}
